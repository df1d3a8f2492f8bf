"""Latency and throughput of variants of one model, measured side by side."""

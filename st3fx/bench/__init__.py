"""Latency and throughput of variants of one model, measured side by side.

A ``variant`` says how to prepare a model. ``rounds`` gives each a process of its own (``worker``)
and lets all of them have turns; ``result`` has the times, and ``verdict`` what they show. It may
import ONNX Runtime and what exports are made of, and no command; start at ``rounds.measure``.
"""

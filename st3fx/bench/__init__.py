"""Latency and throughput of variants of one model, measured side by side.

Start at ``rounds.measure``. A ``variant`` says how to prepare a model: ``onnx_call`` does it for a
file, of which ``onnx_file`` knows the inputs, and ``dense`` writes the counterpart without zeros.
``rounds`` gives each variant a process of its own (``worker``) and lets all of them have turns;
``bench_result`` has the times, and ``verdict`` what they show. The package may import ONNX Runtime,
what exports are made of and the passes over ONNX graphs, and no command.
"""

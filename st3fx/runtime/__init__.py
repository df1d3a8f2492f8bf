"""Sparse models in ONNX Runtime: operators of our own (see ``ops.md``) and sessions that know them."""

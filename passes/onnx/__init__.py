"""Passes over exported graphs (onnx_ir), each in a file named by its effect."""

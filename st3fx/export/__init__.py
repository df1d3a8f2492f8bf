"""From a folded model to an ONNX file that was checked against it."""

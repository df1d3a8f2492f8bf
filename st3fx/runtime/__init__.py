"""Sparse models in ONNX Runtime: operators of our own (see ``ops.md``) and sessions that know them.

In a session of one's own, two lines do it::

    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(st3fx.runtime.library())
"""

from st3fx.runtime.inference import DOMAIN, HINT, OPSET, library, session

__all__ = ["DOMAIN", "HINT", "OPSET", "library", "session"]

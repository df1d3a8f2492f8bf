"""How a forward is captured: a tracer on ``torch.fx`` that asks before it assumes.

:func:`st3fx.passes.trace.trace.trace` is the door: it gives one module's forward as an fx graph
with guards, or says what stopped it. Proxies answer questions of Python code (``questions``), what
code reads becomes a guard (``reads``), contexts become regions. Imports :mod:`st3fx.graphs` and
below.

Why not TorchDynamo: a graph must run with the user's module as ``self``, keep autograd hooks,
structure and names, and be readable; bytecode analysis gives flat functions of tensors, breaks
graphs without a word and is bound to an interpreter's version.
"""

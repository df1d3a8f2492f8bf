"""Lowers an exported graph to the sparse operators of ``st3fx/runtime/ops.md``.

``patterns`` is the table of what can become what, ``choose`` decides by the cost model which layers
and tensors do, ``emit`` writes it, ``free_sizes`` leaves the size of images open.
"""

"""The pass that lowers an exported graph to the sparse operators of ``st3fx/runtime/ops.md``.

Start at ``lower``, which is the pass. ``patterns`` is the table of what can become what (``role``),
or why not; ``choose`` decides by the cost model which layers and tensors do, and knows where that
takes a change of layout. ``fuse`` finds what our operators do besides, ``emit`` writes the graph,
and ``kernel_report`` says what was chosen. ``free_sizes`` leaves the size of images open
in the result; ``hints`` is for runtimes that have not loaded our library. It imports what
``passes.onnx`` does, and the cost model.
"""

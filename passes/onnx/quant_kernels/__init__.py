"""The pass that lowers a quantized graph to the quantized operators of ``st3fx/runtime/ops.md``.

Start at ``lower``: the pass, and what a file goes through. ``qdq_form`` writes what other tools
write as ``QuantizeLinear`` and ``DequantizeLinear`` around float operators (``packed_ops`` those
that hold their conversions), and ``qdq`` reads those. ``patterns`` says what stands before each
``QuantizeLinear`` (``quant_role``) or why it stays; ``layers`` has the layers with weights,
``cones`` what needs a look further up the graph: functions of one number, and moves of channels;
``free_sizes`` which sizes are the same. ``choose_quant`` decides by the cost model, ``emit_quant``
writes the graph, ``quant_report`` says what was chosen. It imports what ``sparse_kernels`` does,
and that package, and ONNX Runtime, which computes tables.
"""

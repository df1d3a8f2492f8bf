"""Passes over exported graphs: what happens between ``torch.onnx.export`` and a file, and back.

Files are opened by ``open_model`` alone, which believes nothing that they say of themselves; ours
begin with a digest (``seal``). A pass (``graph_pass``) changes a graph of onnx_ir in place; it
notes what it changed, and of what it is for but left as it was, the reason. Start at
``pipeline.prepare``, which has the order in which a fresh graph goes through ``fold_batch_norm``
and onnxscript's optimiser. ``lower_opset`` writes the result in an older opset, and the package
``sparse_kernels`` puts our operators in, as ``quant_kernels`` does with those of quantized graphs.
``plain_operators`` takes these out again, ``plain_quant`` those of bytes. ``normal_form`` is no
such pass: it works on files of others as protobuf has them, as onnx_ir would drop their sparse
initializers and takes nodes in their right order for granted.

The package may import ``runtime``, which knows our operators and their layouts, onnx, onnx_ir and
onnxscript, and nothing of exports, counts or benchmarks, which use it.
"""

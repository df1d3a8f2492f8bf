"""From an exported fp32 file to one of 8-bit integers, by ONNX Runtime's quantizer.

Start at ``engine.quantize``. ``layers`` finds the products with constant weights and says which
nodes run in integers; ``calibrate`` gives the ranges of activations, ``qdq`` the file, ``check``
compares its zeros with the fp32 file's, and ``measure`` runs both. ``search`` tries each layer in
fp32 and leaves as many there as an accuracy asks for. A ``quantize_result`` is what came of it.

``finetune`` trains a file: ``torch_graph`` makes it an fx graph again, of the operators in
``torch_ops`` and ``torch_shapes``; ``trainable`` rewrites its roundings into those of ``fake``,
which pass gradients, and writes what was learned into the file.

The package may import ONNX Runtime, what exports are made of and the passes over ONNX graphs, and
no data and no command.
"""

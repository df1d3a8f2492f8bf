"""Exact counts of multiplications, on what a model runs (ATen) and on an ONNX graph.

A MAC is one multiplication with its addition. All counts are integers. Three conventions:

exact   a weight that is not zero counts once for every output position where it meets a real input
        value, so padding with zeros costs nothing, given to the convolution or put before it
        (``F.pad``, ``Pad``). Reflected, repeated and circular padding are real values. Products of
        two activations (attention) count in full.
st3     as ST-3 reports it: convolutions and products with a weight, nonzeros × output positions,
        padding counted; no products of two activations, no bias, no normalisation.
str     as STR reports it: ``st3`` and one MAC for every input value of average pooling.

A weight has the zeros of the values that it multiplies with, however they are stored or computed. A
product of constants is counted where a layer makes it, as of a learned query, and its values are
known all the same: as a weight of another layer it has the zeros of these. Operators, sizes and
weights that nobody knows are named, never guessed.

Start at ``aten`` for models, at ``onnx_file`` for files. A model runs once on fake activations
under an ``observer``, which keeps ``constants`` apart from them; a file is walked node by node.
Either way each operator has its ``operand`` objects, shapes and values, and a rule in the table of
``aten_rules``, of ``onnx_rules``, or, for ONNX Runtime's own, of ``onnx_contrib_rules``.
``products`` has the arithmetic of multiplications, ``einsum`` that of einsums, ``elementwise`` what
everything else costs; ``collect`` adds up into a ``flops_report``. What has no rule is named there.
The package imports plans and modules, and, for files, ``runtime`` and the passes over ONNX graphs.
"""

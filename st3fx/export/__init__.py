"""From a folded model to an ONNX file that was checked against it.

Start at ``engine.export``. It makes a ``job`` of a model with an example of a ``call``; which of
its sizes are free ``batch`` knows. The job has the graph made: by ``reduced``, where dead channels
are to go, by ``capture``, which runs torch's exporter, and by the passes over ONNX graphs. The
engine has it written (``write``, and ``sparse`` with our kernels) and checked: ``zeros`` counts
those of the weights, ``parity`` runs the file beside the model, ``first_difference`` names the
layer where they part, ``rounding`` says by how much orders of addition may differ. The result is an
``export_result``. ``weights`` writes files of weights alone, for ``fold``.

The package may import the compiler, ``files`` and ``runtime``, and no command.
"""

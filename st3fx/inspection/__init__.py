"""What a file or folder of ours is, by what is in it: no code of it runs, no model is built.

``found`` has what is said of one; ``weights`` looks at files of tensors, ``converted`` at bundles
and checkpoints, ``graph`` at ONNX files, ``trained`` at the folders of trainings. Tensors are read
one by one, so that a file may be larger than the memory. It may import what reads these files;
start at ``found``.
"""

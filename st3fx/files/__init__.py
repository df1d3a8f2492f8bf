"""What st3fx writes and reads, whole or not at all.

``atomic`` replaces files in one step. A bundle (``bundle``, with its ``manifest``) is a converted
model that needs no code to be read; ``compact`` is one bit for each weight and the values that are
not zero; ``tensor_file`` is state dicts as safetensors, or as ``torch.save`` has them. What is read
of JSON and TOML goes through ``reading``. It may import the compiler and nothing that measures or
trains; start at ``bundle``.
"""

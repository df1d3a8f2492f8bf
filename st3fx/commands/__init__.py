"""The workflows behind the commands, one file each, on SPECs, bundles and files.

``models`` goes from a SPEC, a bundle or a file to a model with its example. Public functions of the
facade that need files live here too. Imports every engine; prints nothing.
"""

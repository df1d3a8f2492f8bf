"""Where models are trained: what other libraries' trainers need to train a converted model.

One file for each library, which alone imports it: ``from st3fx.integrations.lightning import
SparseCallback`` asks for Lightning, and ``import st3fx`` for none of them. They share
:mod:`st3fx.integrations.driver`. ``docs/how-to/`` has a page for each; start there.
"""

"""Converts a model, and folds a converted one back.

Start at ``convert`` in :mod:`st3fx.api`, which calls them in order. ``observe`` watches examples
(``tracker`` follows tensors by their ``origins`` into ``products``, and ``written`` notes what is
written to; all of it is an ``observation``), ``discover`` sorts parameters into sites and skipped
sites, ``islands`` and ``computed`` have graphs captured, ``rewrite`` puts operators behind weights,
``verify`` holds the result against the original (``equality``) and finds what is at fault.
``fold`` is the way back; ``dataflow`` is a view of what was converted. It imports
:mod:`st3fx.passes.trace` by its door, and what is below.
"""

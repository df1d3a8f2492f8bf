"""Converts a model, and folds a converted one back.

Start at ``stages``, which runs them in order: ``observe`` watches the examples (``tracker`` follows
tensors by their ``origins`` into ``products``, and ``written`` notes what is written to; all of it
is an ``observation``), ``discover`` sorts parameters into sites and skipped sites, ``islands`` and
``computed`` have graphs captured, ``rewrite`` puts operators behind weights, ``verify`` holds the
result against the original (``equality``). ``fold`` is the way back; ``dataflow`` is a view of what
was converted. It imports :mod:`st3fx.passes.trace` by its door, and what is below.
"""

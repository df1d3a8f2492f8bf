"""From a model to a converted one, and back.

:mod:`st3fx.passes.convert.stages` has the stages in order: observe the examples, discover sites,
capture islands, rewrite them, verify. ``fold`` is the way back. Imports the tracer and below.
"""

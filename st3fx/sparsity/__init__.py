"""The mathematics: formulas of effective weights, their operators, thresholds, schedules.

``formula`` says what a method computes, ``ops`` makes differentiable operators of it, ``cache``
keeps what was computed until a weight changes, ``threshold`` finds the exact quantile over all
sites. The methods themselves are :mod:`st3fx.methods`. Knows tensors, no models. Imports the plan
and :mod:`st3fx.native`. Start at :mod:`st3fx.sparsity.formula`.
"""

"""The exact global threshold: one quantile over the weights of all sites, without sorting.

``search`` narrows an interval, ``scan`` counts what lies in it in one pass, ``radix`` is the same
on a GPU. Start at :mod:`st3fx.sparsity.threshold.search`.
"""

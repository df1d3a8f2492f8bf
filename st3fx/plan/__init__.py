"""Plain data: what a conversion is asked for, and what it has decided.

Sites and their plan, the selection of sites, the example calls, why a weight is sparse or dense.
Nothing here knows a module that was converted. Imports errors and :mod:`st3fx.tensors`. Start at
:mod:`st3fx.plan.sites`.
"""

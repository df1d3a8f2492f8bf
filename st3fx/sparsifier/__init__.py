"""Drives the thresholds of a converted model with the optimizer's steps.

``run`` is where a training stands, ``bound`` the sites as they are now and what has drifted,
``sparsifier`` what users hold. Start at :mod:`st3fx.sparsifier.sparsifier`.
"""

"""Campaigns: many seeded attempts to make st3fx lose, trust, hang on or silently take a thing.

A campaign is one file with one function ``case(seed, folder) -> str | None``. It does one attempt
in an empty folder, decided by the seed alone, and returns ``None`` where st3fx held, or else a line
that says what went wrong. What an attempt needs ready-made (a bundle, a trained run) is built once
in a process, by a cached function, into a folder of its own.

``table.py`` lists the campaigns with their goals; ``test_campaigns.py`` runs a short form of each.
``python -m tests.campaigns`` runs them long, in processes of their own (one that crashes or hangs
is a failed case, not the end), and ``--write`` puts the table into ``docs/campaigns.md``. A failed
case is tried again by ``--only NAME --from SEED --cases 1``.
"""

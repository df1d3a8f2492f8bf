"""Tied embeddings: the projection as a site of its own, beside the table that lookups read."""

from __future__ import annotations

import dataclasses

from st3fx.core.sites import Site, SkippedSite
from st3fx.passes.names import is_below, owner
from st3fx.passes.observation import Observation


def projection(site: Site, observation: Observation, *, include: bool) -> Site | SkippedSite:
    """The projection of a tied embedding, or why it stays dense.

    Its own forward is given the effective weight; where the same forward reads rows, they could not
    be told apart.

    Args:
        site: The whole parameter, as if nothing but products read it.
        observation: Who else reads it.
        include: Whether the user wants projections sparse.
    """
    names = [site.name, *site.aliases]
    homes = [name for name in names if owner(name) in site.holders]
    readers = observation.readers[site.name]
    reason = "tied: an embedding reads its rows too (include_tied makes the projection sparse)"
    if include:
        together = any(is_below(reader, holder) for reader in readers for holder in site.holders)
        if not together and len(homes) == len(site.holders):
            others = [name for name in names if name not in homes]
            return dataclasses.replace(
                site, name=homes[0], aliases=tuple(homes[1:]), parameters=(*homes, *others),
                tied=True,
            )  # fmt: skip
        reason = "tied: one forward both multiplies with it and reads its rows"
    return SkippedSite(site.name, site.shape, site.op, reason)

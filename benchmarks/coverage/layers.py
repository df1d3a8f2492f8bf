"""A threshold of its own for each layer.

One threshold for all would empty some layers of an untrained network, and outputs that do not
depend on the input are easily equal.
"""

from __future__ import annotations

import torch
from torch import nn

import st3fx
from st3fx.modules.marks import homes, state_name

_SAMPLES = 100_000


@torch.no_grad()
def set_layer_sparsity(
    model: nn.Module, sparsifier: st3fx.Sparsifier, sparsity: float
) -> dict[str, int]:
    """Set the threshold of each layer to the quantile of its own magnitudes.

    Args:
        model: Converted.
        sparsifier: Its sparsifier.
        sparsity: Of each layer, as a sample of its weights tells.

    Returns:
        Site -> zeros in its effective weight.
    """
    sparsifier.set_sparsity(0.0)
    latent = sparsifier.effective_weights()
    for site in sparsifier.plan.sites:
        magnitudes = latent[site.name].flatten()[:: site.numel // _SAMPLES + 1].abs().float()
        rank = max(1, round(sparsity * magnitudes.numel()))
        threshold = magnitudes.kthvalue(rank).values
        for home in homes(site):
            owner, _, parameter = home.rpartition(".")
            getattr(model.get_submodule(owner), state_name(parameter, "threshold")).fill_(threshold)
    del latent
    effective = sparsifier.effective_weights()
    return {name: int((weight == 0).sum()) for name, weight in effective.items()}

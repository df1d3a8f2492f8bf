"""What a bundle's model is: its zeros, costs and sizes, each from the engine that knows it."""

from __future__ import annotations

import dataclasses
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from torch import nn

from st3fx.api import dataflow, fold
from st3fx.core.messages import describe
from st3fx.errors import EmptyLayerWarning, St3fxError
from st3fx.export.result import Size
from st3fx.export.sizes import size_of_files, size_of_tensors
from st3fx.files.bundle import read_bundle
from st3fx.files.compact import SUFFIX, save_compact
from st3fx.files.manifest import Recipe
from st3fx.flops.report import Convention, FlopsReport
from st3fx.report.facts import Layer, ModelFacts
from st3fx.report.histogram import Weights, small, spread
from st3fx.sparsifier import Sparsifier
from st3fx.verbs.analysis import count_flops
from st3fx.verbs.folded import bundle_example
from st3fx.verbs.workflow import load_bundle


def measure(bundle: Path, files: Sequence[Path], progress: Callable[[str], None]) -> ModelFacts:
    """Load a bundle's model and measure it.

    Args:
        bundle: The bundle.
        files: Other files made of the model, for their sizes.
        progress: Called with the name of each stage as it begins.

    Raises:
        St3fxError: As ``load_bundle``.
    """
    progress("load")
    manifest = read_bundle(bundle).manifest
    with warnings.catch_warnings():
        # The report names empty layers itself.
        warnings.simplefilter("ignore", EmptyLayerWarning)
        model = load_bundle(bundle)
        sparsifier = Sparsifier(model)
    weights = _weights(sparsifier)
    flow = dataflow(model)
    own = {key: value for key, value in model.state_dict().items() if "st3fx_" not in key}
    progress("fold")
    folded = fold(model)
    progress("count")
    flops, uncounted = _count(folded, manifest.recipe, frozenset(weights))
    rows = flops["exact"].by_layer if flops else {}
    progress("measure")
    return ModelFacts(
        recipe=manifest.recipe,
        versions=manifest.versions,
        plan=sparsifier.plan,
        layers=tuple(
            Layer(
                site=site,
                nonzeros=int(weights[site.name].effective.count_nonzero()),
                threshold=weights[site.name].threshold,
                counts=small(weights[site.name]),
                flops=rows.get(site.name),
            )
            for site in sparsifier.plan.sites
        ),
        spread=spread(list(weights.values())),
        flops=flops,
        uncounted=uncounted,
        flow=flow,
        sizes=(size_of_tensors("dense weights", own), *_sizes(folded, files)),
    )


def _weights(sparsifier: Sparsifier) -> dict[str, Weights]:
    """Latent and effective weights by site."""
    held = {item.site.name: item for item in sparsifier.run.bound()}
    effective, thresholds = sparsifier.effective_weights(), sparsifier.thresholds
    return {
        name: Weights(
            latent=held[name].weight().detach(),
            effective=effective[name],
            threshold=thresholds[name] if thresholds[name] >= 0 else None,
        )
        for name in (site.name for site in sparsifier.plan.sites)
    }


def _count(
    folded: nn.Module, recipe: Recipe, sites: frozenset[str]
) -> tuple[dict[str, FlopsReport], str]:
    """The count by each convention for one sample, or why there is none."""
    try:
        example = bundle_example(recipe)
        counts = {
            name: count_flops(folded, example, name, batch=1) for name in get_args(Convention)
        }
    except St3fxError as error:
        return {}, describe(error)
    return {name: dataclasses.replace(c, sites=sites) for name, c in counts.items()}, ""


def _sizes(folded: nn.Module, files: Sequence[Path]) -> list[Size]:
    """Of the folded weights as they are and as a compact file, and of the files that are there."""
    state = folded.state_dict()
    sizes = [size_of_tensors("folded weights", state)]
    if not any(path.suffix == SUFFIX for path in files):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"folded{SUFFIX}"
            save_compact(state, path)
            sizes.append(size_of_files("compact file", [path]))
    return sizes + [size_of_files(path.name, [path]) for path in files]

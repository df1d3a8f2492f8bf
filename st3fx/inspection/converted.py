"""Bundles and checkpoints: converted models, with the zeros that their thresholds make."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from st3fx import methods
from st3fx.errors import BundleError, InspectError, St3fxError, describe
from st3fx.files.bundle import GRAPH, MANIFEST, WEIGHTS, checked_manifest, source_holds
from st3fx.files.manifest import FORMAT, Manifest
from st3fx.files.reading import DamageError, check_regular
from st3fx.inspection.found import Digest, Found, Layer, share_of_zeros
from st3fx.inspection.weights import counted, is_statistic
from st3fx.methods.base import Method, ScheduledMethod
from st3fx.modules.marks import LEVEL, STEP, is_state, state_name
from st3fx.plan.names import owner
from st3fx.plan.sites import Layout, Site, SparsityPlan
from st3fx.sparsity.drawing import decided
from st3fx.sparsity.granularity import Unstructured
from st3fx.sparsity.mask_bits import unpacked
from st3fx.training.method import make_method
from st3fx.training.saving import FORMAT as CHECKPOINT
from st3fx.training.saving import FORMAT_VERSION as CHECKPOINT_VERSION
from st3fx.training.saving import Checkpoint, load_checkpoint
from st3fx.training.settings import from_dict

Get = Callable[[str], Tensor | None]
"""A tensor of a state dict by its name."""


def effective(site: Site, method: Method, get: Get) -> Layer:
    """A site with the zeros of its effective weight.

    Raises:
        DamageError: When its tensors do not fit together.
    """
    weight = get(site.name)
    if site.computed or weight is None:  # its forward makes it
        return Layer(site.name, site.shape, "" if weight is None else _dtype(weight), None)
    if tuple(weight.shape) != site.shape or not weight.is_floating_point():
        raise DamageError(f"{site.name} is {tuple(weight.shape)}, and the plan says {site.shape}")
    above, parameter = owner(site.name), site.name.rpartition(".")[2]
    prefix = f"{above}." if above else ""
    threshold = get(prefix + state_name(parameter, "threshold"))
    mask = get(prefix + state_name(parameter, "mask"))
    learned = [get(prefix + state_name(parameter, key)) for key in method.learned]
    if threshold is None:
        raise DamageError(f"{site.name} has no threshold")
    if any(tensor is None for tensor in learned):
        raise DamageError(f"{site.name} has no {' or '.join(method.learned)}")
    bits = torch.empty(0, dtype=torch.bool) if mask is None else unpacked(mask, site.shape)
    try:
        with torch.no_grad():
            own = (weight, decided(threshold), bits, *learned)
            made = method.op(*own, *method.arguments(site))
    except (RuntimeError, ValueError, LookupError, TypeError, ArithmeticError) as error:
        raise DamageError(f"{site.name} has a threshold that does not fit: {error}") from error
    return Layer(site.name, site.shape, _dtype(weight), counted(site.name, made).zeros)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _progress(get: Get) -> tuple[int, float | None]:
    """Steps so far, and the sparsity that the thresholds were set for.

    Raises:
        DamageError: When they are no numbers.
    """
    step, level = get(STEP), get(LEVEL)
    if step is None:
        return 0, None
    if step.numel() != 1 or (level is not None and level.numel() != 4):
        raise DamageError(f"{STEP} or {LEVEL} is not what a conversion writes")
    number, wanted = float(step), math.nan if level is None else float(level.reshape(-1)[0])
    if not math.isfinite(number):
        raise DamageError(f"{STEP} is {number}")
    return round(number), None if math.isnan(wanted) else wanted


WITHOUT_WEIGHTS = (
    "It was converted on the meta device and has no weights: "
    "those of a checkpoint are folded by it."
)
"""A note of a bundle."""


def look_bundle(path: Path) -> Found:
    """A bundle, checked against its hashes; its tensors are read one by one.

    Raises:
        BundleError: When it is damaged, edited, or from a newer version.
    """
    manifest = checked_manifest(path)
    plan, recipe = manifest.plan, manifest.recipe
    method = methods.from_dict(recipe.method)
    weights = path / WEIGHTS
    try:
        check_regular(weights)
        with safe_open(weights, framework="pt") as file:
            names = {
                key: manifest.aliases.get(key, key) for key in (*file.keys(), *manifest.aliases)
            }

            def get(name: str) -> Tensor | None:
                return file.get_tensor(names[name]) if name in names else None

            layers = tuple(effective(site, method, get) for site in plan.sites)
            step, wanted = _progress(get)
    except (SafetensorError, OSError, ValueError, St3fxError) as error:
        raise BundleError(f"{path} does not fit together: {describe(error)}") from error
    reached = share_of_zeros(layers)
    return Found(
        str(path), "bundle, a converted model", f"{FORMAT} {manifest.format_version}", _size(path),
        files={name: (path / name).stat().st_size for name in (MANIFEST, WEIGHTS, GRAPH)},
        versions=manifest.versions, model=recipe.spec, method=_method_text(plan, method),
        settings=recipe.method, target=plan.target,
        reached=wanted if reached is None else reached, step=step, total_steps=recipe.total_steps,
        sites=len(plan.sites), parameters=plan.total_parameters, skipped=plan.skipped,
        digests=(*(Digest(name, holds=True) for name in (MANIFEST, WEIGHTS, GRAPH)),
                 *_source(manifest)),
        layers=layers, notes=(*_without_weights(manifest), *_notes(plan)),
    )  # fmt: skip


def _method_text(plan: SparsityPlan, method: Method) -> str:
    return f"{methods.key_of(method)}, {plan.granularity}"


def _size(path: Path) -> int:
    return sum((path / name).stat().st_size for name in (MANIFEST, WEIGHTS, GRAPH))


def _source(manifest: Manifest) -> tuple[Digest, ...]:
    """Whether the model's own file is the one that it was converted from."""
    source = manifest.recipe.source
    if source is None:
        return ()
    if not source.path.is_file():
        return (Digest(str(source.path), None, "is missing: the bundle can be folded without it"),)
    if source_holds(source):
        return (Digest(str(source.path), holds=True),)
    return (Digest(str(source.path), False, "was changed since the bundle was made from it"),)


def _without_weights(manifest: Manifest) -> tuple[str, ...]:
    if not manifest.absent:
        return ()
    return (WITHOUT_WEIGHTS,)


def _notes(plan: SparsityPlan) -> tuple[str, ...]:
    computed = [site.name for site in plan.sites if site.computed]
    if not computed:
        return ()
    said = (
        f"{len(computed)} of the weights are computed by the model's own forward, which does not "
        "run here: their zeros are not counted."
    )
    return (said,)


def is_checkpoint(content: Any) -> bool:
    """Whether what ``torch.save`` wrote says that it is a checkpoint of a training of ours."""
    return isinstance(content, dict) and f"{content.get('format')}" == CHECKPOINT


def look_checkpoint(path: Path) -> Found:
    """A checkpoint of ``st3fx train``.

    Raises:
        CheckpointError: When it is damaged, or of another version.
    """
    saved = load_checkpoint(path, mapped=True)
    settings = from_dict(saved.settings, f"the settings in {path}")
    method = make_method(settings)
    try:
        layers = tuple(_layers(saved, method))
        step, wanted = _progress(_getter(saved.model))
    except (DamageError, RuntimeError, ValueError, TypeError) as error:
        raise InspectError(f"{path} does not fit together: {describe(error)}") from error
    reached = share_of_zeros(layers)
    own = [t for name, t in saved.model.items() if isinstance(t, Tensor) and _is_own(name)]
    together = f", {saved.processes} processes together" if saved.processes > 1 else ""
    return Found(
        str(path), "checkpoint of a training", f"{CHECKPOINT} {CHECKPOINT_VERSION}",
        path.stat().st_size, model=settings.spec,
        method=f"{methods.key_of(method)}, {method.granularity.text}",
        settings=methods.to_dict(method), target=method.target,
        reached=wanted if reached is None else reached, step=step,
        progress=f"epoch {saved.epoch + 1} of {settings.epochs}, after {saved.batch} of its "
        f"batches{together}" if saved.epoch < settings.epochs else "after the last epoch",
        scores={} if saved.best is None else {"best top-1": saved.best},
        sites=len(saved.sites), parameters=sum(tensor.numel() for tensor in own),
        digests=(Digest("all of it", holds=True),), layers=layers,
    )  # fmt: skip


def _is_own(name: str) -> bool:
    return not is_state(name) and not is_statistic(name)


def _getter(state: dict[str, Any]) -> Get:
    def get(name: str) -> Tensor | None:
        found = state.get(name)
        return found if isinstance(found, Tensor) else None

    return get


def _layers(saved: Checkpoint, method: Method) -> list[Layer]:
    """The sites. A checkpoint has their names alone: of groups it does not say what they are."""
    get, single = _getter(saved.model), method.granularity == Unstructured()
    layers = []
    for name in saved.sites:
        weight = get(name)
        shape = () if weight is None else tuple(weight.shape)
        if weight is None or not (single and isinstance(method, ScheduledMethod)):
            layers.append(Layer(name, shape, "" if weight is None else _dtype(weight), None))
        else:
            site = Site(name, (name,), shape, "", Layout(()), ())
            layers.append(effective(site, method, get))
    return layers

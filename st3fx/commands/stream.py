"""From a bundle without weights and a checkpoint in shards to folded shards: ``st3fx fold``.

The weights stay in their files. A stand-in on the meta device takes their place, whose thresholds
are set over the files by the same code as those of any model.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from st3fx.errors import EmptyLayerWarning, ExportError, SpecError, StateError, few
from st3fx.export.export_result import FoldResult
from st3fx.export.stream import Written, check_folder, pieces_of, write_folded
from st3fx.export.weights import size_of_files
from st3fx.files.atomic import check_place
from st3fx.files.bundle import Bundle
from st3fx.files.shards import Checkpoint, open_checkpoint
from st3fx.loading.weights import differences, matched, shape_of
from st3fx.methods import from_dict as method_from_dict
from st3fx.methods.base import DrawnMethod, LearnedMethod, Method, check_sparsity
from st3fx.methods.moving import MovingMethod
from st3fx.modules.marks import LEVEL, PREFIX, STEP, homes, is_state, state_name
from st3fx.passes.convert.fold import projections
from st3fx.passes.convert.stand_in import can_stand_in, stand_in
from st3fx.plan.names import owner
from st3fx.plan.sites import Site
from st3fx.sparsifier.bound import Bound
from st3fx.sparsifier.run import Run, run_of
from st3fx.sparsifier.sparsifier import check_kept, check_settable
from st3fx.sparsifier.stored import StoredBound, floor_of
from st3fx.sparsity.drawing import as_it_was
from st3fx.sparsity.formula import INACTIVE
from st3fx.sparsity.mask_bits import checked
from st3fx.sparsity.stored import Stored

_SAMPLE = 1 << 25
"""Bytes that are compressed of large files, which else would take longer than to fold them."""

_KINDS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def fold_stored(
    bundle: Bundle,
    weights: str | Path,
    target: str | Path,
    *,
    sparsity: float | None = None,
    allow_dense: bool = False,
    force: bool = False,
    progress: Callable[[str], None],
) -> FoldResult:
    """Fold a checkpoint that stays in its files, by the plan of a bundle without weights.

    What a training has left in it (thresholds, masks, the step) is what it is folded with.

    Args:
        bundle: Converted on the meta device.
        weights: An index of shards, a folder with one, or a file of safetensors.
        target: The folder to make; of one file the file.
        sparsity: Prune to it now; ``None``: the checkpoint is of a sparse training.
        allow_dense: Take one without sparsity too.
        force: Whether what is there is replaced.
        progress: Called with the name of each stage as it begins.

    Raises:
        SpecError: When the checkpoint is broken or does not fit.
        StateError: When its thresholds do not, or the sparsity cannot be set.
        ExportError: When the model is dense and that was not allowed, or nothing can be written.
    """
    progress("headers")
    checkpoint, place = open_checkpoint(weights), Path(target)
    if checkpoint.has_index:
        check_folder(place, checkpoint.path, force=force)
    elif place.exists() and place.samefile(checkpoint.path):
        raise ExportError(f"{place} is where the weights are read from: choose another file")
    check_place(place, ExportError)
    if sparsity is not None:
        check_sparsity(sparsity)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", EmptyLayerWarning)  # the result names them
        subject = _Subject.of(bundle, checkpoint)
        progress("threshold")
        subject.set(sparsity, allow_dense=allow_dense, pin=bundle.manifest.recipe.keep_zeros)
        progress("shards")
        written = subject.write(place)
    progress("measure")
    return subject.result(written, place)


@dataclasses.dataclass(frozen=True)
class _Subject:
    """What is folded.

    Attributes:
        checkpoint: Where the weights are.
        names: State-dict key -> name in it.
        model: The stand-in.
        sites: Its sites.
        is_trained: Whether the checkpoint says where a training stood.
        copies: Site -> all names in the checkpoint of its weight, where it is there several times.
    """

    checkpoint: Checkpoint
    names: dict[str, str]
    model: nn.Module
    sites: list[StoredBound]
    is_trained: bool
    copies: dict[str, list[str]]

    @classmethod
    def of(cls, bundle: Bundle, checkpoint: Checkpoint) -> _Subject:
        """Put a stand-in in the place of the model, and its sites over the checkpoint.

        Raises:
            SpecError: When the checkpoint does not fit.
            StateError: When it lacks what the method has trained.
            ExportError: When the plan needs the model's own code.
        """
        manifest = bundle.manifest
        if not can_stand_in(manifest.plan):
            raise ExportError(
                f"{bundle.directory} has weights that its forward computes, which cannot be folded "
                "in their files: load the weights into the model, and fold that"
            )
        method = method_from_dict(manifest.recipe.method)
        own = {key: value for key, value in bundle.state_dict.items() if not is_state(key)}
        names = matched(own, checkpoint)
        state = _fitting(own, names, checkpoint)
        is_trained = STEP in names
        if is_trained:
            state |= {k: checkpoint.read(names[k]) for k in (STEP, LEVEL) if k in names}
        _require_trained(method, is_trained, checkpoint)
        _require_kinds(manifest.plan.sites, state)
        model = stand_in(
            manifest.plan, method, state, total_steps=manifest.recipe.total_steps,
            update_every=manifest.recipe.update_every, pin=manifest.recipe.keep_zeros,
        )  # fmt: skip
        sites = [_stored(item, names, checkpoint, trained=is_trained)
                 for item in run_of(model).bound()]  # fmt: skip
        user = {key: name for key, name in names.items() if not is_state(key)}
        copies = _copies([item.site.name for item in sites], own, user)
        for several in copies.values():
            _require_equal(several, checkpoint)
        return cls(checkpoint, user, model, sites, is_trained, copies)

    def set(self, sparsity: float | None, *, allow_dense: bool, pin: bool) -> None:
        """Set the thresholds over the files.

        Raises:
            StateError: If the sparsity cannot be set, or weights are NaN.
            ExportError: When the model is dense and that was not allowed.
        """
        run, bound = run_of(self.model), list[Bound](self.sites)
        method = self.sites[0].sparse.method
        if sparsity is not None:
            if isinstance(method, DrawnMethod | MovingMethod):
                raise ExportError(
                    f"{method.name} has trained what it prunes: leave --sparsity out, or load the "
                    "weights into the model to prune them further"
                )
            check_settable(run, method, sparsity)
            check_kept(run, method, sparsity, bound)
            if not self.is_trained:
                run.floor = floor_of(self.sites) if pin else 0.0
            if self.is_trained or sparsity > run.floor:
                run.set(sparsity, bound)
            run.sparsity, run.held = sparsity, True
            return
        self._require_sparse(run, allow_dense=allow_dense)
        run.fit(bound)

    def _require_sparse(self, run: Run, *, allow_dense: bool) -> None:
        learned = isinstance(self.sites[0].sparse.method, LearnedMethod)
        sparse = self.is_trained and (learned or run.frozen or bool(run.sparsity))
        if not (sparse or allow_dense or (self.is_trained and run.moving is not None)):
            raise ExportError(
                f"{self.checkpoint.path} is of no sparse training: prune it now by --sparsity, or "
                "take it as it is by --allow-dense"
            )

    def write(self, target: Path) -> Written:
        """Fold and write."""
        apart = {
            name: [_full(self.model, *place) for place in places]
            for name, places in projections(self.model, self.sites).items()
        }
        files = pieces_of(self.checkpoint, self.names, self.sites, apart, self.copies)
        return write_folded(self.checkpoint, files, target)

    def result(self, written: Written, target: Path) -> FoldResult:
        """What was done."""
        elements = sum(item.site.numel for item in self.sites)
        parameters = sum(self.checkpoint.entries[name].numel for name in {*self.names.values()})
        before = [self.checkpoint.file(name) for name in self.checkpoint.shards]
        return FoldResult(
            path=target,
            format="safetensors",
            weights=len(self.sites),
            elements=elements,
            zeros=elements - sum(written.nonzeros.values()),
            parameters=parameters,
            empty=tuple(name for name, count in written.nonzeros.items() if not count),
            sizes=(
                size_of_files("weights before", before, _SAMPLE),
                size_of_files(target.name, written.files, _SAMPLE),
            ),
        )  # fmt: skip


def _fitting(
    own: Mapping[str, Tensor], names: Mapping[str, str], checkpoint: Checkpoint
) -> dict[str, Tensor]:
    """The state of the stand-in: what the checkpoint has, without values; tied tensors are one.

    Raises:
        SpecError: When keys or shapes differ from the model's.
    """
    found = {k: shape_of(checkpoint.entries[n]) for k, n in names.items() if not is_state(k)}
    difference = differences(own, found)
    if difference:
        raise SpecError(f"weights {checkpoint.path} do not fit the model: {difference}")
    first: dict[int, str] = {}
    return {key: found[first.setdefault(id(value), key)] for key, value in own.items()}


def _copies(
    sites: Sequence[str], own: Mapping[str, Tensor], names: Mapping[str, str]
) -> dict[str, list[str]]:
    """Names of tied weights that a checkpoint has under several, by site."""
    found = {
        site: list(dict.fromkeys(names[key] for key, value in own.items() if value is own[site]))
        for site in sites
    }
    return {site: several for site, several in found.items() if len(several) > 1}


def _require_equal(names: Sequence[str], checkpoint: Checkpoint) -> None:
    """Fail where copies of a tied weight differ: loaded, one of them would be all.

    Raises:
        SpecError: Then.
    """
    first, *others = (_in_file(name, checkpoint) for name in names)
    for name, other in zip(names[1:], others, strict=True):
        same = other.dtype == first.dtype and all(
            torch.equal(first.rows(*ends), other.rows(*ends)) for ends in first.ends(None)
        )
        if not same:
            raise SpecError(
                f"weights {checkpoint.path}: {names[0]} and {name} are one tensor in the model, "
                "and differ: save the checkpoint again, or untie them"
            )


def _require_trained(method: Method, is_trained: bool, checkpoint: Checkpoint) -> None:
    """Fail where only a training can say what is pruned, and none has.

    Raises:
        StateError: Then.
    """
    if not is_trained and isinstance(method, LearnedMethod | MovingMethod | DrawnMethod):
        raise StateError(
            f"{method.name} finds in training what it prunes, and {checkpoint.path} has nothing of "
            "that: write the state dict of the converted model, with its entries "
            f"{PREFIX}..., into shards, or convert with st3 or gmp"
        )


def _require_kinds(sites: tuple[Site, ...], state: Mapping[str, Tensor]) -> None:
    odd = [site.name for site in sites if state[site.name].dtype not in _KINDS]
    if odd:
        kind = str(state[odd[0]].dtype).removeprefix("torch.")
        raise SpecError(
            f"{few(odd, limit=3)} of the type {kind} cannot be pruned: give weights in float32, "
            "bfloat16 or float16"
        )


def _stored(
    item: Bound, names: Mapping[str, str], checkpoint: Checkpoint, *, trained: bool
) -> StoredBound:
    """A site over its file, with thresholds on the CPU and what a training has left.

    Raises:
        StateError: When the checkpoint lacks some of that, or it does not fit.
    """
    site = item.site

    def name_of(key: str) -> str | None:
        for home in homes(site):
            own = f"{owner(home)}.{state_name(home.rpartition('.')[2], key)}".removeprefix(".")
            if own in names:
                return names[own]
        return None

    def left(key: str) -> str:
        name = name_of(key)
        if name is None:
            raise StateError(f"{checkpoint.path} has no {key} of {site.name}, but of other weights")
        return name

    threshold = as_it_was(checkpoint.read(left("threshold"))) if trained else torch.tensor(INACTIVE)
    for module, parameter in item.places:
        _put(module, state_name(parameter, "threshold"), threshold, site)
    probability = None
    if item.sparse.method.learned:
        name = left(item.sparse.method.learned[0])
        if checkpoint.entries[name].shape != site.shape:
            raise StateError(f"{name} is not of the shape {site.shape}, as its weight is")
        probability = _in_file(name, checkpoint)
    bits = None
    if trained:
        bits = checked(checkpoint.read(left("mask")), site.shape)
        bits = None if _all_ones(bits, site.numel) else bits
    return StoredBound(
        item.site, item.owner, item.parameter, item.sparse, item.places, item.compute,
        stored=_in_file(names[site.name], checkpoint), bits=bits, probability=probability,
    )  # fmt: skip


def _put(module: nn.Module, name: str, value: Tensor, site: Site) -> None:
    """A threshold with a value, in the place of one on the meta device."""
    own: Any = module._parameters.get(name)
    if own is None:
        if value.dim() == 0:
            value = value.float()
        module.__dict__[name] = value
        return
    if own.shape != value.shape:
        raise StateError(
            f"{site.name}: a threshold of shape {tuple(value.shape)} for one of {tuple(own.shape)}"
        )
    module._parameters[name] = nn.Parameter(value.to(own.dtype), requires_grad=False)


def _all_ones(bits: Tensor, count: int) -> bool:
    whole, rest = divmod(count, 8)
    last = 2**rest - 1
    ones = bool((bits[:whole] == 255).all())
    return ones and (not rest or int(bits[whole]) & last == last)


def _in_file(name: str, checkpoint: Checkpoint) -> Stored:
    entry = checkpoint.entries[name]
    return Stored(torch.Size(entry.shape), entry.dtype, lambda a, b: checkpoint.read(name, a, b))


def _full(model: nn.Module, module: nn.Module, parameter: str) -> str:
    path = next(name for name, own in model.named_modules() if own is module)
    return f"{path}.{parameter}" if path else parameter

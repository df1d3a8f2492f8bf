"""The stages of a conversion; ``st3fx.api`` puts them in order.

Observe a model that has no values, by shapes alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from st3fx.errors import InputError, PlanError, VerificationError, few
from st3fx.graphs.forward import SparseForward
from st3fx.methods.base import Method
from st3fx.modules import rnn
from st3fx.modules.hooks import has_backward_hooks
from st3fx.modules.layers import IDLE
from st3fx.modules.marks import homes, state_name
from st3fx.modules.state import single_thread
from st3fx.modules.strangers import Stranger
from st3fx.passes.convert.discover import Discovery, nothing_to_do
from st3fx.passes.convert.discover import discover as _discover
from st3fx.passes.convert.equality import Difference
from st3fx.passes.convert.fold import undo
from st3fx.passes.convert.islands import Archipelago, capture_islands
from st3fx.passes.convert.observation import Observation, TrialRun
from st3fx.passes.convert.observe import observe as _observe
from st3fx.passes.convert.rewrite import Rewriter
from st3fx.passes.convert.verify import Subject, differs
from st3fx.passes.convert.written import Kept
from st3fx.plan.example import Example
from st3fx.plan.names import is_below, owner
from st3fx.plan.selection import Selection
from st3fx.plan.sites import IslandInfo, SparsityPlan
from st3fx.sparsifier.bound import bound_sites
from st3fx.sparsifier.run import Run, run_of


@dataclass
class Conversion:
    """A conversion under way: what was given, then what each stage found.

    Attributes:
        model: Changed in place.
        examples: Calls as in training.
        source: Full name of a parameter -> a tensor that has its values and keeps them: trial runs
            leave the parameters as they were, whatever the forward does.
        method: The method that makes effective weights.
        selection: What the user wants sparse.
        strangers: What in the model means another one, that it was copied from.
    """

    model: nn.Module
    examples: tuple[Example, ...]
    source: Mapping[str, Tensor]
    method: Method
    selection: Selection
    strangers: Sequence[Stranger] = ()
    observation: Observation = field(default_factory=Observation)
    found: Discovery = field(default_factory=Discovery)
    islands: Archipelago = field(default_factory=Archipelago)
    forwards: list[SparseForward] = field(default_factory=list)
    dropped: set[str] = field(default_factory=set)
    verified: bool = False

    def plan(self) -> SparsityPlan:
        """What was done."""
        graphs = [(f.name, f.variants) for f in self.forwards if f.name in self.islands.captures]
        return SparsityPlan(
            sites=tuple(self.found.sites),
            skipped=tuple(self.found.skipped),
            islands=tuple(
                IslandInfo(
                    name,
                    tuple(variant.mode for variant in variants),
                    max(len(variant.run.graph.nodes) for variant in variants),
                    tuple(dict.fromkeys(w for v in variants for w in v.spec.words())),
                )
                for name, variants in graphs
                if variants
            ),
            opaque=tuple(self.islands.opaque),
            method=self.method.name,
            target=self.method.target,
            total_parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            verified=self.verified,
        )


Stage = Callable[[Conversion], None]


def observe(conversion: Conversion) -> None:
    """Run the example and see what multiplies with which parameter."""
    model, examples, source = conversion.model, conversion.examples, conversion.source
    conversion.observation = _observe(model, examples, source)


def discover(conversion: Conversion) -> None:
    """Decide which parameters become sparse.

    Raises:
        PlanError: If none can.
    """
    others = conversion.strangers
    try:
        found = _discover(conversion.model, conversion.observation, conversion.selection)
    except PlanError as error:
        if not others:
            raise
        raise PlanError(f"{error}; {others[0].message}: give inplace=True") from error
    for index, item in enumerate(found.skipped):
        meant = [other for other in others if is_below(item.name, other.part)]
        if item.reason == IDLE and meant:
            reason = f"{IDLE}; {meant[0].message}"
            found.skipped[index] = dataclasses.replace(item, reason=reason)
    conversion.found = found


def trace(conversion: Conversion) -> None:
    """Capture the model as islands."""
    conversion.islands = capture_islands(
        conversion.model, conversion.observation, conversion.found, conversion.dropped
    )


def rewrite(conversion: Conversion) -> None:
    """Put the method's operator into graphs and forwards, and install them."""
    run = Run()
    rewriter = Rewriter(conversion.model, conversion.found, conversion.method, run)
    conversion.forwards = rewriter.install(conversion.islands)
    conversion.model.__dict__["st3fx_plan"] = conversion.plan()
    conversion.model.__dict__["st3fx_method"] = conversion.method
    run.bind(conversion.model)


def verify(conversion: Conversion) -> None:
    """Compare with the original; what differs stays as it was.

    A graph that differs is dropped to its children; a site whose gradient differs although no graph
    is to blame (activation checkpointing around a weight) is skipped.

    Raises:
        VerificationError: If the model differs for no such reason, or has weights that are NaN.
    """
    _require_numbers(conversion)
    kept = Kept(conversion.model, conversion.source)
    try:
        _verify(conversion)
        conversion.verified = True
    finally:
        moved = kept.set_back()
        if moved:  # and so nothing was compared with what it should have been
            raise VerificationError(
                f"{type(conversion.model).__name__}: its backward pass writes to {moved[0]}; if it "
                "is meant to, use verify=False"
            )


def _verify(conversion: Conversion) -> None:
    model = conversion.model
    while True:
        trial = _trial(conversion)
        if _differs(conversion, trial) is None:
            break
        with single_thread():  # is it a difference, or a sum in another order?
            difference = _differs(conversion, trial)
            if difference is None:
                break
            guilty = _guilty(conversion, trial)
        undo(model)
        if guilty:
            conversion.dropped |= guilty
        elif difference.site is not None:
            conversion.found.skip(difference.site, "gets another gradient inside its own forward")
            if not conversion.found.sites:
                raise PlanError(nothing_to_do(model, conversion.found))
        else:
            raise VerificationError(
                f"{type(model).__name__}: the {difference.what} of the converted model differs "
                f"from the original's; {_advice(conversion)}"
            )
        trace(conversion)
        rewrite(conversion)


def _advice(conversion: Conversion) -> str:
    """What may be the reason of a difference, and what to do."""
    seen = conversion.observation
    read = [
        site.name
        for site in conversion.found.sites
        if site.name in seen.handed and conversion.found.users[site.name] - {owner(site.name)}
    ]
    if not read:
        return (
            "a weight that the forward reads by another way than its attribute (a list that holds "
            "it, _parameters) has to be excluded; if the model is not deterministic, use "
            "verify=False"
        )
    return (
        f"while it runs, it computes with {few(read)}, got by parameters() or a state dict, which "
        "give latent weights and not those that multiply: read the attribute (layer.weight), do "
        "that outside of the forward, or exclude these weights"
    )


def _require_numbers(conversion: Conversion) -> None:
    """NaN has no magnitude to prune by, and no output of it can be compared.

    Raises:
        VerificationError: With the name of the first weight.
    """
    for site in conversion.found.sites:
        for name in site.parameters:
            if bool(conversion.model.get_parameter(name).isnan().any()):
                raise VerificationError(
                    f"weights have NaN: {name}; load or initialise them before the conversion"
                )


def _differs(conversion: Conversion, trial: dict[str, Tensor]) -> Difference | None:
    """What differs first in any of the examples, or ``None``."""
    for subject in _subjects(conversion):
        difference = differs(subject, trial)
        if difference is not None:
            return difference
    return None


def _subjects(conversion: Conversion) -> Iterator[Subject]:
    seen, model = conversion.observation, conversion.model
    # What steps an optimizer in a hook writes to whatever it likes.
    moving = list(conversion.source) if has_backward_hooks(model) else seen.written
    written = {name: conversion.source[name] for name in moving}
    for number, example in enumerate(conversion.examples):
        left = {training: seen.left[TrialRun(number, training)] for training in (True, False)}
        yield Subject(model, example, conversion.forwards, left, written)


def _trial(conversion: Conversion) -> dict[str, Tensor]:
    """Thresholds with which about half of each site is pruned, by full name."""
    model, trial = conversion.model, {}
    weights = {bound.site.name: bound.weight() for bound in bound_sites(model, run_of(model))}
    with torch.no_grad():
        for site in conversion.found.sites:
            threshold = conversion.method.trial(site, weights[site.name])
            for home in homes(site):
                owner, _, parameter = home.rpartition(".")
                name = state_name(parameter, "threshold")
                trial[f"{owner}.{name}" if owner else name] = threshold
    return trial


def _guilty(conversion: Conversion, trial: dict[str, Tensor]) -> set[str]:
    """Islands whose graphs, alone, make the model differ; all of the outermost if none does.

    Empty if the model differs without any graph.
    """
    islands = [f for f in conversion.forwards if f.name in conversion.islands.captures]
    graphs = {forward.name: forward.variants for forward in islands}

    def differs_with(*names: str) -> bool:
        for forward in islands:
            forward.variants = graphs[forward.name] if forward.name in names else []
        return bool(_differs(conversion, trial))

    try:
        if not graphs or differs_with():
            return set()
        guilty = {name for name in graphs if differs_with(name)} if len(graphs) > 1 else set(graphs)
    finally:
        for forward in islands:
            forward.variants = graphs[forward.name]
    return guilty or _without_children(set(graphs))


def _without_children(names: set[str]) -> set[str]:
    return {n for n in names if not any(n != other and is_below(n, other) for other in names)}


def observe_shapes(conversion: Conversion) -> None:
    """The stage *observe* of :mod:`st3fx.passes.convert.stages` for a model on the meta device.

    Raises:
        InputError: If the forward asks for values, or as there.
    """
    conversion.examples = tuple(example.on_meta() for example in conversion.examples)
    with fakes(conversion.model, conversion.examples) as examples:
        source = dict(conversion.model.named_parameters())
        faked = dataclasses.replace(conversion, examples=examples, source=source)
        try:
            observe(faked)
        except InputError as error:
            if not isinstance(error.__cause__, DataDependentOutputException):
                raise
            raise InputError(
                f"{type(conversion.model).__name__} is on the meta device, and its forward "
                f"branches on values ({error.__cause__.func}): give it values first, with "
                "to_empty() and its weights"
            ) from error
    conversion.observation = faked.observation


@contextlib.contextmanager
def fakes(model: nn.Module, examples: tuple[Example, ...]) -> Iterator[tuple[Example, ...]]:
    """Fake tensors in place of all tensors of ``model``, inside; gives the same calls with fakes.

    Libraries ask whether a tensor is fake before they branch on its values; of one that is merely
    on the meta device they would ask for these.
    """
    mode = FakeTensorMode()
    faked: dict[int, Tensor] = {}
    saved = [
        (table, name, tensor)
        for module in model.modules()
        for table in (module._parameters, module._buffers)
        for name, tensor in table.items()
        if tensor is not None
    ]
    for table, name, tensor in saved:
        table[name] = faked.setdefault(id(tensor), mode.from_tensor(tensor))  # type: ignore[assignment]
    try:
        given = tuple(example.changed(mode.from_tensor) for example in examples)
        with rnn.other_lists(model, lambda weight: faked[id(weight)]), mode:
            yield given
    finally:
        for table, name, tensor in saved:
            table[name] = tensor  # type: ignore[assignment]

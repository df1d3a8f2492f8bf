"""The facade: one function per verb, and the order of the passes."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parameter import UninitializedParameter

from st3fx.errors import FoldError, GranularityWarning, HookWarning, InputError, PlanError
from st3fx.graphs.forward import Islands
from st3fx.methods import Method, MovingMethod, ScheduledMethod
from st3fx.methods.st3 import ST3
from st3fx.methods.targets import check_targets, named_targets
from st3fx.modules.copying import copied
from st3fx.modules.marks import change_conversion, conversion_of
from st3fx.modules.saving import watch_loading
from st3fx.modules.state import not_collecting, outside_inference_mode
from st3fx.modules.strangers import Stranger, strangers
from st3fx.modules.unloaded import buffers_on_meta, on_meta, watch_values
from st3fx.modules.unwrap import unwrapped
from st3fx.passes.convert.dataflow import dataflow
from st3fx.passes.convert.discover import Discovery, discover, require_sites
from st3fx.passes.convert.fold import fold_in_place, is_converted, undo
from st3fx.passes.convert.islands import Archipelago, capture_islands
from st3fx.passes.convert.observe import observe, observe_shapes
from st3fx.passes.convert.rewrite import rewrite
from st3fx.passes.convert.verify import Faults, find_faults
from st3fx.plan.example import examples_of
from st3fx.plan.selection import Selectors, named, selectors_of
from st3fx.plan.settings import ConversionSettings
from st3fx.plan.sites import Site
from st3fx.sparsifier.run import run_of, runs_in
from st3fx.sparsifier.sparsifier import Sparsifier
from st3fx.sparsity.granularity import Unstructured
from st3fx.whose import callers_level

__all__ = ["convert", "dataflow", "fold"]


def convert(
    model: nn.Module,
    example_inputs: Any,
    method: Method | None = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    total_steps: int | None = None,
    update_every: int = 1,
    include: Selectors = None,
    exclude: Selectors = None,
    skip_depthwise: bool = False,
    skip_first: bool = False,
    skip_last: bool = False,
    include_tied: bool = False,
    keep_zeros: bool = True,
    recompute_weights: bool = False,
    verify: bool = True,
    inplace: bool = False,
    group: dist.ProcessGroup | None = None,
    progress: Callable[[str], None] | None = None,
) -> tuple[nn.Module, Sparsifier]:
    """Give back a model whose convolutions and matrix products use effective weights.

    Before the first threshold it computes what the original computes, bit for bit.

    A model on the meta device is converted by shapes alone, and not verified. Give it its values
    afterwards: ``load_state_dict(weights, assign=True)``, or ``to_empty`` and then load.

    Args:
        model: Any model; not touched unless ``inplace``.
        example_inputs: A tensor, a tuple of positional arguments, or a dict of keyword arguments,
            as the model is called in training. Batch size and shapes stay free. A list is one
            argument, and so are a ``PackedSequence``, and a dict or named tuple that the forward
            takes as one. Several calls (two tasks, other public methods) are a list with
            ``st3fx.Call(*args, method="forward", **kwargs)`` in it; what any of them shows counts,
            and each is verified.
        method: Settings of the sparsification; ``ST3()`` by default.
        example_kwargs: Keyword arguments beside positional ``example_inputs``.
        total_steps: Optimizer steps of the whole training; the schedule needs it.
        update_every: Optimizer steps between two searches for the threshold.
        include: Only sites that match: a glob over full names, a module type, a module or
            parameter of ``model``, a predicate on the site, or several of these. An adapter's own
            factors (LoRA) are sites only if one of these matches such alone.
        exclude: No site that matches.
        skip_depthwise: Leave depthwise convolutions dense.
        skip_first: Leave the first site dense.
        skip_last: Leave the last site dense.
        include_tied: Make the projection of a tied embedding sparse. Its lookups stay dense, so
            that ``fold`` unties the two: the projection gets a parameter of its own.
        keep_zeros: Of a model that comes with zeros (at least a twentieth of one site), or gets
            such weights loaded before its first step: let them stay zero while the schedule raises
            the sparsity from their share. Otherwise they may come back while others go; the
            sparsity starts at their share all the same.
        recompute_weights: Keep no effective weights from one step to the next: compute them in each
            forward, and again in its backward. Saves the weights' bytes once, and the results are
            the same; a compiled forward decides by itself what it keeps.
        verify: Compare with the original, which costs eight to ten training steps; left out where
            parameters have no values.
        inplace: Convert ``model`` itself.
        group: Where ``model`` is one stage of a pipeline: one process for each stage, in their
            order. Their thresholds are one, and the sparsity is that of all of them; each process
            converts its own stage.
        progress: Called with the name of each stage as it begins.

    Returns:
        The converted model, of the same class and with the same keys, and its sparsifier.
        ``model.st3fx_plan`` says what was done, ``model.st3fx_islands`` holds the graphs.

    Raises:
        InputError: If the model refuses an example.
        MethodError: If the method cannot make one of the weights sparse.
        PlanError: If nothing can become sparse, or a selector matches nothing.
        VerificationError: If the converted model differs from the original.
    """
    settings = ConversionSettings(
        include=selectors_of(include),
        exclude=selectors_of(exclude),
        skip_depthwise=skip_depthwise,
        skip_first=skip_first,
        skip_last=skip_last,
        include_tied=include_tied,
        keep_zeros=keep_zeros,
        recompute_weights=recompute_weights,
    )
    return convert_with(
        settings,
        model,
        example_inputs,
        method,
        example_kwargs=example_kwargs,
        total_steps=total_steps,
        update_every=update_every,
        verify=verify,
        inplace=inplace,
        group=group,
        progress=progress,
    )


@outside_inference_mode()
def convert_with(
    settings: ConversionSettings,
    model: nn.Module,
    example_inputs: Any,
    method: Method | None = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    total_steps: int | None = None,
    update_every: int = 1,
    verify: bool = True,
    inplace: bool = False,
    group: dist.ProcessGroup | None = None,
    progress: Callable[[str], None] | None = None,
) -> tuple[nn.Module, Sparsifier]:
    """Convert a model as :func:`convert` does, by settings that were read from elsewhere."""
    _check(model, total_steps, update_every, inplace=inplace)
    _require_own_steps(method, update_every)
    settings = named(settings, model)
    examples = examples_of(example_inputs, example_kwargs, model)
    converted = model if inplace else _copied(model)
    others = [] if inplace else strangers(converted, model)
    _warn_of(others, "convert")
    source = _source(model, converted)
    method = method if method is not None else ST3()
    unloaded = on_meta(converted)  # parameters on the meta device have no values to compare
    verify = verify and not unloaded
    begin = _announcing(progress)
    dropped: set[str] = set()
    repeat = True
    try:
        with buffers_on_meta(converted) if unloaded else contextlib.nullcontext():
            # Garbage collection would look at all nodes of a large graph again and again;
            # verification leaves garbage, whole steps of the model.
            with not_collecting():
                # What multiplies with which parameter is the ground truth for the rest.
                begin("observe_shapes" if unloaded else "observe")
                observed = (
                    observe_shapes(converted, examples)
                    if unloaded
                    else observe(converted, examples, source)
                )
                begin("discover")  # so only modules with sites are traced into
                found = discover(converted, observed, settings, others)
                method.require(found.sites)
                _require_prunable(method, found.sites)
                if isinstance(method, ScheduledMethod):
                    check_targets(method, found.sites)
                _warn_of_single(method, found.sites)
            while True:
                with not_collecting():
                    begin("trace")
                    islands = capture_islands(converted, observed, found, dropped, repeat=repeat)
                    begin("rewrite")
                    forwards = rewrite(converted, found, islands, method, keep=verify)
                if not verify:
                    break
                begin("verify")
                faults = find_faults(
                    converted, examples, source, observed, found, islands, forwards, method
                )
                if faults is None:
                    break
                undo(converted)
                repeat = False
                _leave_out(converted, found, islands, faults, dropped)
    except BaseException:
        undo(converted)  # the user's own model, if in place
        raise
    _attach(converted, total_steps, update_every, settings, verified=verify)
    if unloaded:
        watch_values(converted)
    run_of(converted).share(group)
    _start(converted, method, keep_zeros=settings.keep_zeros)
    return converted, Sparsifier(converted)


def _leave_out(
    converted: nn.Module, found: Discovery, islands: Archipelago, faults: Faults, dropped: set[str]
) -> None:
    """Drop the graphs, or skip the sites, that are to blame for a difference.

    Blocks may not be as alike as they looked: each is traced before anything is left out.
    """
    if not islands.repeated:
        dropped |= faults.islands
        for site, reason in faults.sites.items():
            found.skip(site, reason)
        require_sites(converted, found)


def _require_own_steps(method: Method | None, update_every: int) -> None:
    if isinstance(method, MovingMethod) and update_every != 1:
        raise PlanError(f"{method.name} has steps of its own for its masks: leave update_every out")


def _start(converted: nn.Module, method: Method, *, keep_zeros: bool) -> None:
    """Begin with the zeros that the weights have, or with the first masks of a method."""
    zeros = run_of(converted).keep_zeros(pin=keep_zeros)
    if zeros and keep_zeros and isinstance(method, MovingMethod):
        undo(converted)
        raise PlanError(
            f"{zeros:.1%} of the weights are zero, and {method.name} may bring any of them back: "
            "give keep_zeros=False (--no-keep-zeros), or take a method that keeps zeros, e.g. st3"
        )


def _require_prunable(method: Method, sites: Sequence[Site]) -> None:
    """Refuse a granularity by which no weight can go."""
    if sites and not any(method.granularity.prunable(site) for site in sites):
        raise PlanError(
            f"{method.granularity.text} can prune none of the {len(sites)} weights: they have too "
            f"few input channels, for example {sites[0].name} of shape {sites[0].shape}"
        )


def _warn_of_single(method: Method, sites: Sequence[Site]) -> None:
    """Say of a model without any group that it is pruned weight by weight."""
    granularity = method.granularity
    if granularity == Unstructured() or any(granularity.grouping(site) for site in sites):
        return
    for site in sites[:1]:
        warnings.warn(
            f"{granularity.text} finds no groups in the weights, which have too few input "
            f"channels, for example {site.name} of shape {site.shape}: they are pruned one by one",
            GranularityWarning,
            stacklevel=callers_level(),
        )


def _announcing(progress: Callable[[str], None] | None) -> Callable[[str], None]:
    """Says that a stage begins, the first time: what differs is traced and rewritten again."""
    said: set[str] = set()

    def begin(stage: str) -> None:
        if progress is not None and stage not in said:
            said.add(stage)
            progress(stage)

    return begin


def _source(model: nn.Module, converted: nn.Module) -> dict[str, Tensor]:
    """What keeps the values of the parameters while the model runs for trial.

    Those of the given model, unless it is that one which runs.
    """
    running = {id(parameter) for parameter in converted.parameters()}
    return {
        name: parameter.detach().clone() if id(parameter) in running else parameter.detach()
        for name, parameter in model.named_parameters()
    }


@not_collecting()
def _copied(model: nn.Module) -> nn.Module:
    try:
        return copied(model)
    except Exception as error:
        reason = str(error).partition(".")[0] or type(error).__name__
        raise InputError(
            f"{type(model).__name__} cannot be copied ({reason}); give inplace=True"
        ) from error


def _warn_of(others: list[Stranger], verb: str) -> None:
    for other in others:
        put = "register it" if other.is_hook else "set it"
        warnings.warn(
            f"{other.message} that {verb} makes, too: give inplace=True, or {put} on the result",
            HookWarning,
            stacklevel=callers_level(),
        )


def _check(model: nn.Module, total_steps: int | None, update_every: int, *, inplace: bool) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}: give an nn.Module")
    if unwrapped(model) is not model:
        raise InputError(
            f"{type(model).__name__} wraps a model: convert the model in it, then wrap the result"
        )
    if any(isinstance(p, UninitializedParameter) for p in model.parameters()):
        raise InputError(
            f"{type(model).__name__} has lazy parameters without a shape: call it once before"
        )
    made = [*model.named_parameters(), *model.named_buffers()]
    split = next((name for name, tensor in made if isinstance(tensor, DTensor)), None)
    if split is not None:
        raise InputError(
            f"{split} is split over processes (DTensor): convert the model before fully_shard or "
            "parallelize_module, and give them the result"
        )
    inference = [name for name, tensor in made if tensor.is_inference()]
    if inference and inplace:
        raise InputError(
            f"{inference[0]} was made in torch.inference_mode, where nothing can be trained: make "
            "the model outside of it, or convert a copy (inplace=False)"
        )
    if is_converted(model):
        raise PlanError(f"{type(model).__name__} is converted already: fold it first")
    if total_steps is not None and total_steps < 1:
        raise PlanError(f"total_steps={total_steps}: give the number of optimizer steps, 1 or more")
    if update_every < 1:
        raise PlanError(f"update_every={update_every}: give a number of optimizer steps, 1 or more")


@not_collecting()
def _attach(
    model: nn.Module,
    total_steps: int | None,
    update_every: int,
    settings: ConversionSettings,
    *,
    verified: bool,
) -> None:
    conversion = conversion_of(model)
    plan, method = conversion.plan, conversion.method
    edges = tuple(dataflow(model).edges)
    change_conversion(
        model,
        plan=dataclasses.replace(
            plan, verified=verified, edges=edges, targets=named_targets(method, plan.sites)
        ),
        islands=Islands(model, {island.name for island in plan.islands}),
        total_steps=total_steps,
        update_every=update_every,
        recompute_weights=settings.recompute_weights,
    )
    run_of(model).bind(model)
    watch_loading(model)


@outside_inference_mode()
def fold(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Give back a plain module of the user's class with static sparse weights.

    Its eval output equals the converted model's bit for bit. Pruned weights are exactly ``+0.0``,
    no denormals are left, and it needs no st3fx to run. Where the multiplied weight was computed
    (weight standardisation, ``weight_norm``), a plain layer stands in its place.

    Args:
        model: What :func:`convert` gave, trained or not; a ``DistributedDataParallel`` or
            ``torch.compile`` wrapper around it is taken off. A sharded one stays sharded, and no
            process holds more than one weight whole at a time; all processes call this.
        inplace: Fold ``model`` itself, as one that FSDP2 has sharded has to be.

    Raises:
        FoldError: If the model was not converted.
    """
    if not isinstance(model, nn.Module):
        raise FoldError(f"model is a {type(model).__name__}: give what convert gave")
    inner = unwrapped(model)
    if not is_converted(inner):
        raise FoldError(f"{type(model).__name__} is not a converted model: fold what convert gave")
    if not inplace and any(isinstance(module, FSDPModule) for module in inner.modules()):
        raise FoldError(
            f"{type(inner).__name__} is sharded by FSDP2, which refuses a copy: give inplace=True, "
            "in all processes"
        )
    target = inner if inplace else copied(inner)
    _warn_of([] if inplace else strangers(target, inner), "fold")
    for run in runs_in(target):
        run.before_fold()
    return fold_in_place(target)

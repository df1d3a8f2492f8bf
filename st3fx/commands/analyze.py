"""What a model costs: the facade's verb that counts multiplications."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from st3fx.api import fold
from st3fx.commands.models import Request, folded, no_example
from st3fx.commands.progress import silent
from st3fx.errors import FlopsError, St3fxError, TrustError, quoted
from st3fx.files.bundle import read_bundle
from st3fx.files.ours import BUNDLE
from st3fx.files.shards import INDEX
from st3fx.flops import aten
from st3fx.flops.collect import Collector
from st3fx.flops.flops_report import Convention, FlopsReport
from st3fx.modules.marks import conversion_of
from st3fx.modules.unloaded import on_meta, ones_in_place
from st3fx.modules.unwrap import unwrapped
from st3fx.passes.convert.fold import is_converted
from st3fx.passes.convert.stand_in import can_stand_in
from st3fx.plan.example import Example, batch_in
from st3fx.sparsity.granularity import parse

WEIGHT_FILES = (".safetensors", ".st3w", ".pt", ".pth", ".bin", ".ckpt")
"""Suffixes of files that hold weights and no graph."""


def count_flops(
    model: nn.Module | str | Path,
    example_inputs: Any = None,
    convention: Convention = "exact",
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    batch: int | None = None,
    blocks: int | None = None,
) -> FlopsReport:
    """Count the multiplications of one call, exactly.

    The model runs once in eval mode, without values: the size of the input costs nothing. Of an
    ONNX file the graph is read.

    Args:
        model: Any model, or the path of an ONNX file. A converted model counts with its effective
            weights, any other with its own; it is left as it was.
        example_inputs: A tensor, a tuple of positional arguments, or a dict of keyword arguments.
            Of a model on the meta device no weight counts as zero. For an ONNX file shapes, or
            tensors, in the order of its inputs or by name; ``None`` where the graph has them.
        convention: ``exact`` counts each weight that is not zero once for every output position
            where it meets a real input value, so that padding with zeros costs nothing; ``st3``
            counts convolutions and products with a weight, padding included; ``str`` adds average
            pooling to that.
        example_kwargs: Keyword arguments beside positional ``example_inputs``.
        batch: Count for so many samples; by default as many as the example has, and 1 where an
            ONNX graph leaves it free.
        blocks: Count blocks of so many consecutive inputs, too: how many are left, and the zeros in
            these. By default the blocks that a converted model is pruned in, if it is.

    Returns:
        ``dense_macs``, ``sparse_macs``, ``by_layer`` and more; operators without a rule are in
        ``unknown`` and in no total.

    Raises:
        InputError: If the model refuses the example.
        FlopsError: If a file cannot be read, or a size in it is not known.
    """
    if convention not in get_args(Convention):
        raise FlopsError(f"convention {convention!r}: choose exact, st3 or str")
    if batch is not None and batch < 1:
        raise FlopsError(f"batch {batch}: give a number of samples, 1 or more")
    if blocks is not None and blocks < 2:
        raise FlopsError(f"blocks of {blocks}: give 2 or more consecutive inputs, for example 4")
    if isinstance(model, str | Path):
        shapes = _shapes(example_inputs, example_kwargs)
        return _count_file(Path(model), convention, shapes, batch, blocks)
    if not isinstance(model, nn.Module):
        raise FlopsError(f"model is a {type(model).__name__}: give an nn.Module or an ONNX file")
    example = Example.of(example_inputs, example_kwargs, model)
    return _count_model(model, _resized(example, batch), convention, blocks)


def analyze(
    request: Request,
    convention: Convention = "exact",
    *,
    batch: int | None = None,
    blocks: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> FlopsReport:
    """Count what a command line names: a bundle, a SPEC, or an ONNX file.

    Args:
        request: Which, with which weights and inputs, and how sparse.
        convention: As for :func:`count_flops`.
        batch: As for :func:`count_flops`.
        blocks: As for :func:`count_flops`.
        progress: Called with the name of each stage as it begins.

    Raises:
        St3fxError: As ``st3fx.commands.models.folded`` and :func:`count_flops`.
    """
    report = progress or silent
    path = Path(request.spec)
    if path.suffix in WEIGHT_FILES or _is_of_shards(path):
        raise FlopsError(
            f"{path} holds weights and no graph: st3fx analyze SPEC --weights {quoted(path)}"
        )
    if path.suffix == ".pt2":
        raise FlopsError(
            f"{path} is a program of torch.export: in Python, "
            f"st3fx.count_flops(torch.export.load({str(path)!r}).module(), inputs) counts it; "
            "loading one may run code of whoever wrote it"
        )
    if path.suffix == ".onnx" or (path.is_file() and path.suffix != ".py"):
        if request.weights or request.sparsity is not None:
            raise FlopsError(f"{path} has its weights: leave --weights and --sparsity out")
        report("counting multiplications")
        # Values do not matter: sizes alone are read.
        sizes = _sizes(request.inputs) or None
        return count_flops(path, sizes, convention, batch=batch, blocks=blocks)
    try:
        model = folded(request, report, with_example=True, shapes=True)
    except TrustError:
        counted = of_file(request, report, convention, batch=batch, blocks=blocks)
        if counted is None:
            raise
        return counted
    if model.example is None:
        raise no_example(request.spec)
    report("counting multiplications")
    if blocks is None:
        blocks = parse(model.granularity).consecutive
    counted = count_flops(model.model, model.example, convention, batch=batch, blocks=blocks)
    pruned = request.is_bundle or request.sparsity is not None
    sites = frozenset(model.weights) if pruned else None
    return dataclasses.replace(counted, model=request.name, sites=sites)


def _is_of_shards(path: Path) -> bool:
    """Whether it is an index of shards, or a folder with one and nothing to run."""
    is_index = path.name.endswith(INDEX)
    return is_index or (not (path / BUNDLE[0]).exists() and any(path.glob(f"*{INDEX}")))


def of_file(
    request: Request,
    progress: Callable[[str], None],
    convention: Convention = "exact",
    *,
    batch: int | None = None,
    blocks: int | None = None,
) -> FlopsReport | None:
    """Count a bundle's model without running its code, by an ONNX file of it that lies there.

    That is ``model.onnx`` in the folder of its run, or ``NAME.onnx`` beside ``NAME.st3fx``, if
    every sparse weight is in it with as many zeros as in the bundle.

    Args:
        request: Names the bundle.
        progress: Called with the name of each stage as it begins.
        convention: As for :func:`count_flops`.
        batch: As for :func:`count_flops`; by default as in the bundle's example.
        blocks: As for :func:`count_flops`.

    Returns:
        The count, whose ``model`` is the path of the file; ``None`` where there is none.
    """
    bundle = read_bundle(request.spec)
    files = [path for path in onnx_files(bundle.directory) if path.is_file()]
    if not files or not can_stand_in(bundle.manifest.plan):
        return None
    model = folded(
        dataclasses.replace(request, allow_dense=True), progress,
        with_example=False, weights_only=True,
    )  # fmt: skip
    weights = {name: (w.numel(), int(w.count_nonzero())) for name, w in model.tensors().items()}
    sizes = _sizes(request.inputs or bundle.manifest.recipe.inputs or ()) or None
    if blocks is None:
        blocks = parse(model.granularity).consecutive
    for path in files:
        try:
            counted = count_flops(path, sizes, convention, batch=batch, blocks=blocks)
        except St3fxError:
            continue
        found = {row.name: (row.parameters, row.nonzeros) for row in counted.by_layer.values()}
        if all(found.get(name) == weight for name, weight in weights.items()):
            return dataclasses.replace(counted, model=str(path), sites=frozenset(weights))
    return None


def onnx_files(bundle: Path) -> tuple[Path, ...]:
    """Where an ONNX file of a bundle may lie."""
    return (bundle.parent / "model.onnx", bundle.with_name(f"{bundle.stem}.onnx"))


def _count_model(
    model: nn.Module, example: Example, convention: str, blocks: int | None
) -> FlopsReport:
    plain = unwrapped(model)
    sites = None
    if is_converted(plain):
        plan = conversion_of(plain).plan
        sites = frozenset(site.name for site in plan.sites)
        blocks = parse(plan.granularity).consecutive if blocks is None else blocks
        plain = fold(plain)
    leaves = pytree.tree_leaves((example.args, example.kwargs))
    has_values = not on_meta(plain)
    with contextlib.nullcontext() if has_values else ones_in_place(plain):
        steps = aten.observe(plain, example)
        rows = _rows(aten.count(steps, convention, blocks))
    return FlopsReport(
        model=type(plain).__name__,
        level="aten",
        convention=convention,
        inputs=tuple(tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor)),
        **rows,
        parameters=sum(parameter.numel() for parameter in plain.parameters()),
        sites=sites,
        block=blocks,
        has_values=has_values,
    )


def _count_file(
    path: Path, convention: str, shapes: Any, batch: int | None, blocks: int | None
) -> FlopsReport:
    # onnx takes a second to import.
    from st3fx.flops.onnx_file import count_file  # noqa: PLC0415

    counted = count_file(path, convention, shapes, batch, blocks)
    return FlopsReport(
        model=path.name,
        level="onnx",
        convention=convention,
        inputs=counted.inputs,
        **_rows(counted.rows),
        parameters=counted.parameters,
        block=blocks,
    )


def _rows(collector: Collector) -> dict[str, Any]:
    return {
        "by_layer": collector.layers, "by_op": collector.ops, "unknown": collector.unknown
    }  # fmt: skip


def _shapes(inputs: Any, kwargs: Mapping[str, Any] | None) -> Any:
    """Shapes from shapes or tensors, in order or by name."""
    if isinstance(inputs, Tensor):
        inputs = (inputs,)
    if isinstance(inputs, Mapping) or kwargs:
        named = {**(inputs or {}), **(kwargs or {})}
        return {name: _shape(value) for name, value in named.items()}
    if isinstance(inputs, Sequence) and inputs and all(isinstance(size, int) for size in inputs):
        inputs = (inputs,)
    return None if inputs is None else [_shape(value) for value in inputs]


def _shape(value: Any) -> tuple[int, ...]:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    try:
        return tuple(int(size) for size in value)
    except (TypeError, ValueError) as error:
        raise FlopsError(f"{value!r} is no shape: give sizes, e.g. (1, 3, 224, 224)") from error


def _sizes(texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Shapes of ``--input`` texts."""
    from st3fx.loading.input_spec import parse_inputs  # noqa: PLC0415

    return [tuple(tensor.shape) for tensor in parse_inputs(texts)]


def _resized(example: Example, batch: int | None) -> Example:
    """The call with so many samples, where its tensors have a common first dimension."""
    leaves = pytree.tree_leaves((example.args, example.kwargs))
    old = batch_in(leaf for leaf in leaves if isinstance(leaf, Tensor))
    if batch is None or not old:
        return example
    chosen = torch.arange(batch) % old
    return example.changed(
        lambda tensor: (
            tensor[chosen.to(tensor.device)] if tensor.dim() and tensor.shape[0] == old else tensor
        )
    )

"""Stages *nncf* and *torch-pruning*: what share of the prunable weights the peers reach.

Both get the model, its example, and the question that we answer: how many of the scalars that
multiply can you prune? NNCF masks weights (unstructured magnitude pruning); Torch-Pruning removes
channels, so its figure is the weights of layers in the groups from which it may remove some.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

import st3fx
from benchmarks.coverage.case import Call, Case
from benchmarks.coverage.reached import INPUT, TIED


def nncf(case: Case) -> dict[str, Any]:
    """Scalars of the weights that NNCF puts a mask on."""
    from nncf import PruneMode, prune  # noqa: PLC0415 - installed for this stage alone

    torch.manual_seed(0)
    model = case.build().eval()
    args, kwargs = case.inputs(case.batch, False)
    pruned = prune(
        model,
        mode=PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL,
        ratio=0.5,
        examples_inputs=_example(model, (args, kwargs)),
    )
    masks = [name for name, _ in pruned.named_buffers() if name.endswith("binary_mask")]
    # "__nncf_hooks.post_hooks.fc:weight__0.0.binary_mask" is that of "fc.weight".
    names = {name.split(".")[2].split("__")[0].replace(":", ".") for name in masks}
    return {"reached": _scalars(case, names), "runs": _runs(pruned, (args, kwargs))}


def torch_pruning(case: Case) -> dict[str, Any]:
    """Scalars of the weights in Torch-Pruning's groups."""
    import torch_pruning as tp  # noqa: PLC0415 - installed for this stage alone

    torch.manual_seed(0)
    model = case.build().eval()
    args, kwargs = case.inputs(case.batch, False)
    example = _example(model, (args, kwargs))
    importance = tp.importance.MagnitudeImportance(p=2)
    pruner = tp.pruner.MagnitudePruner(
        model,
        example_inputs=example,
        importance=importance,
        pruning_ratio=0.3,
        global_pruning=False,
    )
    grouped = _grouped(pruner)
    names = {name for name, parameter in model.named_parameters() if id(parameter) in grouped}
    pruner.step()
    return {"reached": _scalars(case, names), "runs": _runs(model, (args, kwargs))}


def _example(model: nn.Module, call: Call) -> Any:
    """A call as both take it: positional arguments alone, or all by their names."""
    args, kwargs = call
    if not kwargs:
        return args
    return dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)


def _scalars(case: Case, names: set[str]) -> int:
    """Scalars of these parameters, as far as they multiply: tables that are only read are none."""
    args, kwargs = case.inputs(case.batch, False)
    options = {**case.options, "verify": False}
    _, sparsifier = st3fx.convert(case.build(), args, example_kwargs=kwargs, **options)
    plan = sparsifier.plan
    sites = sum(s.numel for s in plan.sites if names & {s.name, *s.aliases, *s.parameters})
    multiply = [item for item in plan.skipped if item.op != "none"]
    skipped = [s for s in multiply if TIED not in s.reason and INPUT not in s.reason]
    return sites + sum(item.numel for item in skipped if item.name in names)


def _grouped(pruner: Any) -> set[int]:
    """Identities of the parameters in the groups from which channels may be removed."""
    found: set[int] = set()
    for group in pruner.DG.get_all_groups(
        ignored_layers=pruner.ignored_layers, root_module_types=pruner.root_module_types
    ):
        for dependency, _ in group:
            module = dependency.target.module
            tensors = [module] if isinstance(module, nn.Parameter) else list(module.parameters())
            found.update(id(tensor) for tensor in tensors)
    return found


@torch.no_grad()
def _runs(model: nn.Module, call: Call) -> bool:
    args, kwargs = call
    try:
        model.eval()(*args, **kwargs)
    except Exception:  # noqa: BLE001 - whatever a pruned model raises
        return False
    return True

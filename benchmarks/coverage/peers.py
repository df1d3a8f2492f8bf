"""Stages *nncf* and *torch-pruning*: what share of the prunable weights the peers reach.

Both get the model, its example, and the question that we answer: how many of the scalars that
multiply can you prune? NNCF masks weights (unstructured magnitude pruning); Torch-Pruning removes
channels, so its figure is the weights of layers in the groups from which it may remove some.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks.coverage.case import Call, Case


def nncf(case: Case) -> dict[str, Any]:
    """Scalars of the parameters that NNCF puts a mask on."""
    from nncf import PruneMode, prune  # noqa: PLC0415 - installed for this stage alone

    torch.manual_seed(0)
    model = case.build().eval()
    args, kwargs = case.inputs(case.batch, False)
    pruned = prune(
        model,
        mode=PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL,
        ratio=0.5,
        examples_inputs=(args if not kwargs else {"args": args, **kwargs} if args else kwargs),
    )
    masks = [b for name, b in pruned.named_buffers() if name.endswith("binary_mask")]
    return {"reached": sum(mask.numel() for mask in masks), "runs": _runs(pruned, (args, kwargs))}


def torch_pruning(case: Case) -> dict[str, Any]:
    """Scalars of the layers in Torch-Pruning's groups."""
    import torch_pruning as tp  # noqa: PLC0415 - installed for this stage alone

    torch.manual_seed(0)
    model = case.build().eval()
    args, kwargs = case.inputs(case.batch, False)
    example: Any = kwargs or args
    importance = tp.importance.MagnitudeImportance(p=2)
    pruner = tp.pruner.MagnitudePruner(
        model,
        example_inputs=example,
        importance=importance,
        pruning_ratio=0.3,
        global_pruning=False,
    )
    weights = _group_weights(pruner)
    pruner.step()
    return {"reached": sum(weights.values()), "runs": _runs(model, (args, kwargs))}


def _group_weights(pruner: Any) -> dict[int, int]:
    found: dict[int, int] = {}
    for group in pruner.DG.get_all_groups(
        ignored_layers=pruner.ignored_layers, root_module_types=pruner.root_module_types
    ):
        for dependency, _ in group:
            module = dependency.target.module
            tensors = [module] if isinstance(module, nn.Parameter) else list(module.parameters())
            found.update({id(t): t.numel() for t in tensors if t.dim() > 1})
    return found


@torch.no_grad()
def _runs(model: nn.Module, call: Call) -> bool:
    args, kwargs = call
    try:
        model.eval()(*args, **kwargs)
    except Exception:  # noqa: BLE001 - whatever a pruned model raises
        return False
    return True

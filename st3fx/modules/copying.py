"""A deep copy of a model that keeps what torch's own loses or bends."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from st3fx.modules.state import loose_tensors
from st3fx.tensors import is_dense


def copied(model: nn.Module) -> nn.Module:
    """A deep copy of a model.

    Activations that a forward left in attributes are copied without their history, sparse and
    nested tensors at all; the parameters of a ScriptModule stay leaves; hooks on gradients are
    kept, and weights that share memory share that of the copy.
    """
    tensors = (*loose_tensors(model), *model.buffers())
    kept = [tensor for tensor in tensors if not tensor.is_leaf or not is_dense(tensor)]
    memo: dict[int, Any] = {id(tensor): tensor.detach().clone() for tensor in kept}
    for parameter in model.parameters():
        if not is_dense(parameter):
            own = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
            memo[id(parameter)] = own
    with torch.no_grad():
        twin = copy.deepcopy(model, memo)
    pairs = list(zip(model.parameters(), twin.parameters(), strict=True))
    for theirs, ours in pairs:
        ours.requires_grad_(theirs.requires_grad)
        _keep_gradient_hooks(theirs, ours, memo)
    _share_memory([*pairs, *zip(model.buffers(), twin.buffers(), strict=True)])
    return twin


def _keep_gradient_hooks(theirs: Tensor, ours: Tensor, memo: dict[int, Any]) -> None:
    """Torch copies a parameter without them."""
    for hook in (getattr(theirs, "_backward_hooks", None) or {}).values():
        ours.register_hook(copy.deepcopy(hook, memo))
    for hook in (getattr(theirs, "_post_accumulate_grad_hooks", None) or {}).values():
        ours.register_post_accumulate_grad_hook(copy.deepcopy(hook, memo))


@torch.no_grad()
def _share_memory(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Give copies of tensors that lie in one memory a common memory, too."""
    groups: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for theirs, ours in pairs:
        plain = type(theirs) in (Tensor, nn.Parameter) and theirs.layout is torch.strided
        if plain and theirs.numel() and not theirs.is_meta and not ours.is_inference():
            groups.setdefault(theirs.untyped_storage()._cdata, []).append((theirs, ours))
    for group in groups.values():
        if len(group) < 2 or len({theirs.dtype for theirs, _ in group}) > 1:
            continue
        memory = group[0][0].untyped_storage().clone()
        for theirs, ours in group:
            view = torch.empty(0, dtype=theirs.dtype, device=theirs.device)
            ours.data = view.set_(memory, theirs.storage_offset(), theirs.shape, theirs.stride())

"""A deep copy of a model that keeps what torch's own loses or bends."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from st3fx.core.kinds import is_dense
from st3fx.core.state import loose_tensors


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


def closures_over(model: nn.Module) -> list[str]:
    """Hooks that have a part of ``model`` in a variable: those of a copy would still mean it.

    Returns:
        One line for each: the module or parameter, and where the hook's code stands.
    """
    parts = {id(part) for part in (*model.modules(), *model.parameters(), *model.buffers())}
    found = []
    for name, hook in _hooks(model):
        function = _function(hook)
        if function is not None and any(id(value) in parts for value in _variables(function)):
            code = function.__code__
            place = f"{code.co_filename.rpartition('/')[2]}:{code.co_firstlineno}"
            found.append(f"{name or type(model).__name__} ({place})")
    return found


def _hooks(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        for key, table in module.__dict__.items():
            if key.endswith("_hooks") and isinstance(table, dict):
                for hook in table.values():
                    yield name, hook
    for name, parameter in model.named_parameters():
        for key in ("_backward_hooks", "_post_accumulate_grad_hooks"):
            for hook in (getattr(parameter, key, None) or {}).values():
                yield name, hook


def _function(hook: Any) -> Any:
    """The plain function of a hook; ``None`` for bound methods and objects, which are copied."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    return hook if hasattr(hook, "__code__") and not hasattr(hook, "__self__") else None


def _variables(function: Callable[..., Any]) -> Iterator[Any]:
    """What a function has in its closure, and by the global names that its code uses."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    names = function.__code__.co_names
    yield from (function.__globals__[name] for name in names if name in function.__globals__)

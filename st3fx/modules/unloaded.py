"""Models without values: converted on the meta device, and completed when the values have come.

Thresholds and the step of such a conversion have no values either, and ``to_empty`` would give
them any. So the conversion leaves a mark: when weights are loaded, or the model first runs with
them, the tensors of the method are made as a conversion with values would have made them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from st3fx.errors import StateError
from st3fx.modules.marks import change_conversion, conversion_of, is_state, put_state


def on_meta(model: nn.Module) -> bool:
    """Whether parameters of ``model`` have no values."""
    return any(parameter.is_meta for parameter in model.parameters())


@contextlib.contextmanager
def buffers_on_meta(model: nn.Module) -> Iterator[None]:
    """Buffers without values too, inside: operators refuse to mix the two."""
    saved = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and not buffer.is_meta
    ]
    for module, name, buffer in saved:
        module._buffers[name] = buffer.to("meta")
    try:
        yield
    finally:
        for module, name, buffer in saved:
            module._buffers[name] = buffer


@contextlib.contextmanager
def ones_in_place(model: nn.Module) -> Iterator[None]:
    """Ones where parameters and buffers have no values, inside; each tensor has memory for one."""
    tables: list[dict[str, Any]] = [
        table for module in model.modules() for table in (module._parameters, module._buffers)
    ]
    saved = [
        (table, name, tensor)
        for table in tables
        for name, tensor in table.items()
        if tensor is not None and tensor.is_meta
    ]
    made: dict[int, Tensor] = {}
    for table, name, tensor in saved:
        one = torch.ones((), dtype=tensor.dtype).expand(tensor.shape)
        if isinstance(tensor, nn.Parameter):
            one = nn.Parameter(one, requires_grad=False)
        table[name] = made.setdefault(id(tensor), one)
    try:
        yield
    finally:
        for table, name, tensor in saved:
            table[name] = tensor


def give_values(model: nn.Module, values: Iterable[tuple[str, Tensor]]) -> None:
    """Put values where parameters and buffers are on the meta device; tied ones stay one tensor.

    ``load_state_dict(assign=True)`` would untie them. What has values already is written to.

    Args:
        model: Changed in place.
        values: Full name of a tensor of the model -> its value, of the same shape; the dtype is
            that of the model.

    Raises:
        StateError: For a name that is of neither.
    """
    tables = _tables(model)
    places: dict[int, list[_Place]] = {}
    for table, name in tables.values():
        places.setdefault(id(table[name]), []).append((table, name))
    for full, value in values:
        if full not in tables:
            raise StateError(
                f"{full} is no parameter or buffer of the model, but a state of its own: build the "
                "model with values, and load one file"
            )
        table, name = tables[full]
        old = table[name]
        if not old.is_meta:
            with torch.no_grad():
                old.copy_(value)
            continue
        new: Tensor = value.to(old.dtype)
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, requires_grad=old.requires_grad)
        for other, key in places[id(old)]:
            other[key] = new
        places[id(new)] = places.pop(id(old))


_Place = tuple[dict[str, Any], str]
"""A table of a module's parameters or buffers, and a name in it."""


def _tables(model: nn.Module) -> dict[str, _Place]:
    """Where each parameter and buffer is kept, by each of its full names."""
    return {
        f"{path}.{name}" if path else name: (table, name)
        for path, module in model.named_modules(remove_duplicate=False)
        for table in (module._parameters, module._buffers)
        for name, tensor in table.items()
        if tensor is not None
    }


def watch_values(model: nn.Module) -> None:
    """Mark a converted model as one without values."""
    change_conversion(model, unloaded=True)
    model.register_forward_pre_hook(_before_forward)
    model.register_load_state_dict_post_hook(_after_loading)


def unwatch_values(model: nn.Module) -> None:
    """Take the hooks off again, if they are there."""
    for hooks in (model._forward_pre_hooks, model._load_state_dict_post_hooks):
        for key in [
            key for key, hook in hooks.items() if hook in (_before_forward, _after_loading)
        ]:
            del hooks[key]


def complete(model: nn.Module) -> None:
    """Give the method's tensors of a marked model their first values, where its weights have some.

    Raises:
        StateError: If weights have none yet.
    """
    if not conversion_of(model).unloaded:
        return
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    missing = [name for name in missing if not is_state(name)]
    if missing:
        raise StateError(
            f"{len(missing)} parameters have no values, for example {missing[0]} on the meta "
            "device: load_state_dict(weights, assign=True), or to_empty() and then load or "
            "initialise them"
        )
    _fill(model, set())


def _before_forward(model: nn.Module, _: Any) -> None:
    if not on_meta(model):
        complete(model)


def _after_loading(model: nn.Module, _: Any) -> None:
    """What the loaded weights do not bring of the method's tensors is made."""
    latent = [p for name, p in model.named_parameters() if not is_state(name)]
    if not any(parameter.is_meta for parameter in latent):
        absent = conversion_of(model).run.absent
        _fill(model, {name for name in model.state_dict() if is_state(name)} - absent)


@torch.no_grad()
def _fill(model: nn.Module, loaded: set[str]) -> None:
    """Make all tensors of the method but those that are ``loaded``; the mark goes."""
    conversion = conversion_of(model)
    for site in conversion.plan.sites:
        put_state(model, site, conversion.method, loaded)
    unwatch_values(model)
    change_conversion(model, unloaded=False)
    if not loaded:  # what was loaded says what it has, or was looked at
        conversion.run.keep_zeros(pin=conversion.run.pin)

"""Fold: make the effective weights the parameters and take every trace of st3fx out of a model."""

from __future__ import annotations

import functools
import types
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.utils import parametrize

from st3fx.errors import FoldError
from st3fx.modules.converted import leave
from st3fx.modules.layers import plain_layer
from st3fx.modules.marks import (
    COMPUTE,
    ENDED,
    FORWARD,
    IS_FORWARD,
    PREFIX,
    SITES,
    Sparse,
    is_entered,
    plain_class,
)
from st3fx.modules.saving import unwatch_loading
from st3fx.modules.unloaded import unwatch_values
from st3fx.sparsifier.bound import Bound, is_present, marks
from st3fx.sparsity import cache
from st3fx.sparsity.granularity import too_full
from st3fx.sparsity.shards import like, local_part, set_part, whole


def fold_in_place(model: nn.Module) -> nn.Module:
    """Fold a converted model in place.

    Pruned weights become exactly ``+0.0``; denormals are flushed. A module whose weight was
    computed loses its parametrization, or is replaced by the plain layer of its kind. The
    projection of a tied embedding is untied.

    Args:
        model: A converted model; changed.

    Returns:
        ``model``, or the plain layer that replaces it where it was itself a computed layer.

    Raises:
        FoldError: If the model was not converted, or a group has more weights left than N of M
            allows though the schedule is through.
    """
    held = all_bound(model)
    if not held:
        if any(module.__dict__.get(ENDED) for module in model.modules()):
            raise FoldError(
                f"{type(model).__name__} has no sparse weight any more: other parameters were "
                "assigned to all of its sites; fold first, then assign"
            )
        raise FoldError(f"{type(model).__name__} is not a converted model: fold what convert gave")
    reshard(model)
    with torch.no_grad():
        static = [_own_part(item, _checked(item, clean(effective(item)))) for item in held]
    untied = projections(model, held)
    undo(model)
    for item, weight in zip(held, static, strict=True):
        if item.compute is not None:
            model = _replace_computed(model, item, weight)
        elif item.site.name in untied:
            latent = item.weight()
            own = nn.Parameter(like(latent, weight), requires_grad=latent.requires_grad)
            for module, parameter in untied[item.site.name]:
                module.register_parameter(parameter, own)
        else:
            set_part(item.weight(), weight)
    return model


def reshard(model: nn.Module) -> None:
    """Have FSDP2 hold its own parts: after a forward alone a module has whole copies of weights."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _own_part(item: Bound, weight: Tensor) -> Tensor:
    """What is here of a site's weight: no process holds more than one site whole at a time."""
    latent = None if item.compute is not None else item.weight()
    return local_part(weight, latent).clone() if isinstance(latent, DTensor) else weight


def _checked(item: Bound, weight: Tensor) -> Tensor:
    """What has arrived at N of M is N of M in every group; what is on the way there is not yet."""
    granularity, reached = item.sparse.method.granularity, item.sparse.run.sparsity
    grouping = granularity.grouping(item.site)
    if grouping is None or not grouping.kept or (reached or 0.0) < granularity.most:
        return weight
    full = too_full(weight, grouping)
    if full:
        raise FoldError(
            f"{item.site.name}: {full:,} groups have more weights left than {granularity.text} "
            "allows; was its threshold or mask written to? Sparsifier.refresh() sets it anew"
        )
    return weight


def all_bound(model: nn.Module) -> list[Bound]:
    """All sites in a model, of whichever conversion, found by the marks of their modules."""
    places: dict[tuple[int, str], list[tuple[nn.Module, str]]] = {}
    sparse: dict[tuple[int, str], Sparse] = {}
    for module, parameter, mark in marks(model):
        if is_present(module, parameter, mark):
            key = id(mark.run), mark.site.name
            places.setdefault(key, []).append((module, parameter))
            sparse[key] = mark
    compute = {
        key: own[0][0].__dict__.get(COMPUTE, {}).get(own[0][1]) for key, own in places.items()
    }
    return [
        Bound(sparse[key].site, *own[0], sparse[key], tuple(own), compute[key])
        for key, own in places.items()
    ]


def projections(model: nn.Module, held: Sequence[Bound]) -> dict[str, list[tuple[nn.Module, str]]]:
    """Sites whose parameter has a name without a threshold beside it -> their names with one.

    These are projections of tied embeddings. The table stays dense, so the projection gets a
    parameter of its own.
    """
    names: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                names.setdefault(id(parameter), []).append((module, name))
    found = {}
    for item in held:
        places = names[id(item.weight())] if item.compute is None else []
        sparse = [place for place in places if place[1] in place[0].__dict__.get(SITES, {})]
        if len(sparse) < len(places):
            found[item.site.name] = sparse
    return found


def undo(model: nn.Module) -> None:
    """Take a conversion out of a model again; its latent weights stay."""
    cache.forget(item.weight() for item in all_bound(model) if item.compute is None)
    unwatch_loading(model)
    unwatch_values(model)
    for module in model.modules():
        forward = module.__dict__.get(FORWARD)
        if forward is not None:
            forward.end()
        if is_entered(module):
            leave(module)
        _rebind_wrappers(module)
    _strip(model)


def _rebind_wrappers(module: nn.Module) -> None:
    """A forward that was set on the module itself may wrap the method of our class."""
    forward = module.__dict__.get("forward")
    plain = _plain_forward(forward)
    if plain is not forward:
        module.__dict__["forward"] = plain


def _plain_forward(forward: Any) -> Any:
    """Bound methods and partial functions over our class's forward, over the user's instead."""
    if isinstance(forward, functools.partial):
        inner = _plain_forward(forward.func)
        if inner is not forward.func:
            return functools.partial(inner, *forward.args, **forward.keywords)
    if isinstance(forward, types.MethodType) and getattr(forward.__func__, IS_FORWARD, False):
        owner = forward.__self__
        return types.MethodType(plain_class(type(owner)).forward, owner)  # type: ignore[attr-defined]
    return forward


def effective(held: Bound) -> Tensor:
    """The effective weight as a tensor of its own, whole, without gradient."""
    inputs = held.inputs()
    constants = tuple(whole(own) if isinstance(own, DTensor) else own for own in inputs.constants)
    inputs = inputs._replace(
        weight=whole(inputs.weight), threshold=whole(inputs.threshold), constants=constants
    )
    out = torch.empty_like(inputs.weight, requires_grad=False)
    inputs.evaluate(out)
    return out


def clean(weight: Tensor) -> Tensor:
    """No negative zeros, no denormals (which fp16 needs, and CPUs multiply slowly); in place."""
    weight = weight.clone() if weight.requires_grad else weight
    weight.add_(0.0)
    if weight.dtype != torch.float16:
        weight.masked_fill_(weight.abs() < torch.finfo(weight.dtype).tiny, 0.0)
    return weight


def _replace_computed(model: nn.Module, held: Bound, weight: Tensor) -> nn.Module:
    """A layer with a static weight in the place of one that computes it."""
    module = held.owner
    if parametrize.is_parametrized(module, held.parameter):
        _own_class(module)
        parametrize.remove_parametrizations(module, held.parameter, leave_parametrized=True)
        delattr(module, held.parameter)  # a parameter, or a plain tensor for several originals
        module.register_parameter(held.parameter, nn.Parameter(weight))
        return model
    layer = plain_layer(module, weight)
    if module is model:
        return layer
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is module:
                parent._modules[name] = layer
    return model


def _own_class(module: nn.Module) -> None:
    """A class of its own for a copied parametrized module.

    Copies share the class that parametrize made for the original, and removing a parametrization
    takes the property off that class: off the original too.
    """
    shared = type(module)
    hidden = ("__dict__", "__weakref__")
    body = {key: value for key, value in vars(shared).items() if key not in hidden}
    module.__class__ = type(shared.__name__, shared.__bases__, body)


def _strip(model: nn.Module) -> None:
    """Remove st3fx's buffers, parameters and attributes."""
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue  # never converted, and its tables are no dicts
        for table in (module._buffers, module._parameters, module.__dict__):
            for name in [name for name in table if name.startswith(PREFIX)]:
                table.pop(name)
                module._non_persistent_buffers_set.discard(name)


def is_converted(model: nn.Module) -> bool:
    """Whether any module of ``model`` is a converted one."""
    return any(map(is_entered, model.modules()))

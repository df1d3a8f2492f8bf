"""Fold: make the effective weights the parameters and take every trace of st3fx out of a model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from st3fx.core import cache
from st3fx.core.forward import Held, SparseForward, sparse_forwards
from st3fx.core.masks import unwatch_loading
from st3fx.core.unloaded import unwatch as unwatch_values
from st3fx.errors import FoldError
from st3fx.passes.plain import plain_layer

PREFIX = "st3fx_"
"""Every buffer, parameter and attribute that a conversion adds begins with this."""


def fold(model: nn.Module) -> nn.Module:
    """Fold a converted model in place.

    Pruned weights become exactly ``+0.0``; denormals are flushed. A module whose weight was
    computed loses its parametrization, or is replaced by the plain layer of its kind. The
    projection of a tied embedding is untied.

    Args:
        model: A converted model; changed.

    Returns:
        ``model``, or the plain layer that replaces it where it was itself a computed layer.

    Raises:
        FoldError: If the model was not converted.
    """
    forwards = sparse_forwards(model)
    if not forwards:
        raise FoldError(f"{type(model).__name__} is not a converted model: fold what convert gave")
    held = {item.site: item for forward in forwards for item in forward.held}
    with torch.no_grad():
        static = {name: clean(effective(item)) for name, item in held.items()}
    untied = projections(model, held)
    undo(model)
    for name, weight in static.items():
        if held[name].compute is not None:
            model = _replace_computed(model, held[name], weight)
        elif name in untied:
            latent = held[name].weight()
            own = nn.Parameter(weight, requires_grad=latent.requires_grad)
            for module, parameter in untied[name]:
                module.register_parameter(parameter, own)
        else:
            held[name].weight().data = weight
    return model


def projections(model: nn.Module, held: dict[str, Held]) -> dict[str, list[tuple[nn.Module, str]]]:
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
    for site, item in held.items():
        places = names[id(item.weight())] if item.compute is None else []
        state = f"{PREFIX}{{}}_threshold"
        sparse = [(module, name) for module, name in places if hasattr(module, state.format(name))]
        if len(sparse) < len(places):
            found[site] = sparse
    return found


def undo(model: nn.Module) -> None:
    """Take a conversion out of a model again; its latent weights stay."""
    for forward in sparse_forwards(model):
        cache.forget(item.weight() for item in forward.held if item.compute is None)
        forward.uninstall()
    unwatch_loading(model)
    unwatch_values(model)
    _strip(model)


def effective(held: Held) -> Tensor:
    """The effective weight as a tensor of its own, without gradient."""
    inputs = held.inputs()
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


def _replace_computed(model: nn.Module, held: Held, weight: Tensor) -> nn.Module:
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
    """Whether any module of ``model`` runs a sparse forward."""
    return any(isinstance(m.__dict__.get("forward"), SparseForward) for m in model.modules())

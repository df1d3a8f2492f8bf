"""State dicts of converted modules: the latent weights, and the method's tensors beside them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from st3fx.errors import StateError
from st3fx.modules.marks import (
    PREFIX,
    SITES,
    Sparse,
    conversion_of,
    found_conversion,
    state_name,
)
from st3fx.sparsity.drawing import as_it_was, is_drawn, of_one_shape
from st3fx.sparsity.mask_bits import packed, unpacked
from st3fx.sparsity.ties import is_split

LOADING: list[bool] = []

"""Not empty while a state dict is loaded: what is assigned then are latent weights."""


def move_state(module: nn.Module, parameter: str, sparse: Sparse) -> None:
    """Bring the method's tensors to where the weight is; they keep their precision."""
    weight = module._parameters.get(parameter)
    if weight is None:
        weight = next(iter(module.parameters()), None)
    if weight is None:
        return
    for key in ("threshold", "mask"):
        name = state_name(parameter, key)
        tensor = module.__dict__.get(name)
        if tensor is None or tensor.device == weight.device:
            continue
        if tensor.is_meta:  # it had no value yet
            tensor = sparse.method.state(sparse.site, weight.detach())[key]
        module.__dict__[name] = tensor.to(weight.device)


def save_to_state_dict(base: type[nn.Module]) -> Callable[..., None]:
    """The method of a class of ours that writes a module's own entries."""

    @functools.wraps(base._save_to_state_dict)
    def save(self: Any, destination: Any, prefix: str, keep_vars: bool) -> None:
        base._save_to_state_dict(self, destination, prefix, keep_vars)
        for parameter, sparse in self.__dict__.get(SITES, {}).items():
            destination.update(saved_state(self, parameter, sparse, prefix))
        conversion = found_conversion(self)
        if conversion is not None:
            destination.update(conversion.run.saved(prefix))

    return save


def saved_state(
    module: nn.Module, parameter: str, sparse: Sparse, prefix: str
) -> Iterator[tuple[str, Tensor]]:
    """Copies of the method's tensors, so that what is done to a state dict changes no model.

    The mask is there whether or not the sparsity is frozen, a bit for each weight in the order of
    its dimensions, so that state dicts of both kinds have the same keys and shapes.
    """
    threshold = module.__dict__.get(state_name(parameter, "threshold"))
    if threshold is not None:  # a learned one is a parameter
        threshold = sparse.run.of_training(sparse.site.name, threshold).detach()
        scheduled = not threshold.dim() or is_split(threshold) or is_drawn(threshold)
        if scheduled and _is_distributed():
            threshold = of_one_shape(threshold)
        yield prefix + state_name(parameter, "threshold"), threshold.clone()
    mask = module.__dict__[state_name(parameter, "mask")]
    count = 1
    for size in sparse.site.shape:
        count *= size
    yield prefix + state_name(parameter, "mask"), packed(mask, count)


def _is_distributed() -> bool:
    """Whether ``torch.distributed.checkpoint`` asks for a state dict."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == _CHECKPOINTS:
            return True
        frame = frame.f_back
    return False


_CHECKPOINTS = "torch.distributed.checkpoint.state_dict"


def load_from_state_dict(base: type[nn.Module]) -> Callable[..., None]:
    """The method of a class of ours that takes a module's own entries."""

    @functools.wraps(base._load_from_state_dict)
    def load(
        self: Any, state: Any, prefix: str, meta: Any, strict: bool,
        missing: list[str], unexpected: list[str], errors: list[str],
    ) -> None:  # fmt: skip
        LOADING.append(True)
        try:
            base._load_from_state_dict(
                self, state, prefix, meta, strict, missing, unexpected, errors
            )
        finally:
            LOADING.pop()
        conversion = found_conversion(self)
        if conversion is not None:
            conversion.run.load(state, prefix)
        own = prefix + PREFIX
        unexpected[:] = [key for key in unexpected if not key.startswith(own)]
        absent = {key for key in missing if key.startswith(own)}  # learned thresholds stay
        missing[:] = [key for key in missing if key not in absent]
        for parameter, sparse in self.__dict__.get(SITES, {}).items():
            sparse.run.absent |= absent
            try:
                _take(self, parameter, sparse, state, prefix)
            except StateError as error:
                errors.append(f"{sparse.site.name}: {error}")

    return load


def _take(
    module: nn.Module, parameter: str, sparse: Sparse, state: Mapping[str, Any], prefix: str
) -> None:
    """The method's tensors from a state dict, as far as they are in it."""
    move_state(module, parameter, sparse)
    with torch.no_grad(), torch.inference_mode(False):
        name = state_name(parameter, "threshold")
        given, present = state.get(prefix + name), module.__dict__.get(name)
        if isinstance(given, Tensor) and present is not None:
            given = as_it_was(given)
            if _may_be(sparse, present, given):
                dtype = torch.float64 if given.dim() else torch.float32
                module.__dict__[name] = given.detach().to(present.device, dtype, copy=True)
            elif given.shape != present.shape:
                raise StateError(
                    f"a threshold of shape {tuple(given.shape)} for one of {tuple(present.shape)}"
                )
            else:
                present.copy_(given)
        name = state_name(parameter, "mask")
        given = state.get(prefix + name)
        if isinstance(given, Tensor):
            device = module.__dict__[name].device
            module.__dict__[name] = unpacked(given, sparse.site.shape).to(device)
        elif sparse.run.loading:  # a file of an older version, whose masks are not frozen
            module.__dict__[name] = module.__dict__[name].new_empty(0)


def _may_be(sparse: Sparse, present: Tensor, given: Tensor) -> bool:
    """Whether a scheduled threshold may be exchanged for one of another shape: it says more.

    See :mod:`st3fx.sparsity.ties` and :mod:`st3fx.sparsity.drawing`.
    """
    shapes = [(), (3,), (5,)] if sparse.method.learned else [(), (3,)]
    scheduled = not present.dim() or is_split(present) or is_drawn(present)
    return scheduled and given.shape != present.shape and tuple(given.shape) in shapes


def watch_loading(root: nn.Module) -> None:
    """Let the root's run know when all of its modules have been loaded."""
    root.register_load_state_dict_post_hook(_after_loading)


def unwatch_loading(model: nn.Module) -> None:
    """Take the hook off again, from ``model`` and all modules in it."""
    for module in model.modules():
        hooks = module.__dict__.get("_load_state_dict_post_hooks", {})
        for key in [key for key, hook in hooks.items() if hook is _after_loading]:
            del hooks[key]


def _after_loading(root: nn.Module, _: Any) -> None:
    conversion_of(root).run.loaded()

"""PEFT: LoRA over a sparse, frozen base, which stays sparse when the adapter is merged.

    base, sparsifier = st3fx.convert(model, example)
    sparsifier.set_sparsity(0.5)                       # or a folded model, or one with zeros
    model = keep_zeros(get_peft_model(base, LoraConfig(...)))
    ...                                                # train, with any trainer
    merged = merge(model)                              # a plain model, with the base's zeros

An adapter's product ``ΔW = s·B·A`` is dense: merged as it is, it fills every zero of the base. Here
the adapter is ``ΔW ⊙ (W ≠ 0)`` already while it trains, as in SparsePEFT of SQFT
(https://arxiv.org/abs/2410.03750), so that the merged model computes what was trained. That takes a
weight's memory for each adapted layer in a forward, where LoRA alone takes none.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from st3fx.api import fold
from st3fx.errors import InputError, few
from st3fx.modules.copying import copied
from st3fx.passes.convert.fold import is_converted


class KeepsZeros:
    """A LoRA layer whose adapters leave the zeros of the base alone: the class before its own."""

    def get_delta_weight(self: Any, adapter: str) -> Tensor:
        """The adapter's share of the weight, in training and when it is merged."""
        delta: Tensor = super().get_delta_weight(adapter)  # type: ignore[misc]
        kept: Tensor = self.get_base_layer().weight != 0
        return delta * kept

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base's output, and that of each active adapter.

        Raises:
            InputError: For batches of several adapters.
        """
        if kwargs.get("adapter_names") is not None:
            raise InputError("adapters that keep zeros take no batches of several adapters")
        if self.disable_adapters or self.merged:
            result: Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]
            return result
        result = self.base_layer(x, *args, **kwargs)
        for adapter in self.active_adapters:
            if adapter in self.lora_A:
                delta = self.get_delta_weight(adapter)
                dropped = self.lora_dropout[adapter](x.to(delta.dtype))
                result = result + self._product(dropped, delta).to(result.dtype)
        return result

    def _product(self: Any, x: Tensor, delta: Tensor) -> Tensor:
        base = self.get_base_layer()
        if isinstance(base, nn.modules.conv._ConvNd):
            product: Tensor = base._conv_forward(x, delta, None)
            return product
        return F.linear(x, delta.T if self.fan_in_fan_out else delta)


def keep_zeros(model: PeftModel) -> PeftModel:
    """Let the LoRA adapters of a model leave the zeros of its weights alone.

    Call it after ``get_peft_model`` or ``from_pretrained``, before training; checkpoints of the
    adapter are as before.

    Args:
        model: With LoRA adapters over linear layers or convolutions; its base may be folded,
            converted (with its sparsity set or its masks frozen), or of any origin.

    Returns:
        ``model``, whose adapted layers with zeros have another class.

    Raises:
        InputError: If there is no adapted layer with zeros, or one that cannot be handled.
    """
    found = [(name, layer) for name, layer in _adapted(model) if not isinstance(layer, KeepsZeros)]
    sparse = [(name, layer) for name, layer in found if _zeros(layer)]
    if not sparse and not any(isinstance(layer, KeepsZeros) for _, layer in _adapted(model)):
        raise InputError(
            f"{type(model).__name__} has no LoRA adapter over a weight with zeros: fold a sparse "
            "model before get_peft_model, or set_sparsity() of a converted one"
        )
    for name, layer in sparse:
        _require_plain(name, layer)
    for _, layer in sparse:
        own = type(layer)
        layer.__class__ = type(own.__name__, (KeepsZeros, own), {"__module__": own.__module__})
    return model


def merge(model: PeftModel) -> nn.Module:
    """Fold the base, merge the active adapters into it, and give back the plain sparse model.

    Args:
        model: From :func:`keep_zeros`; not touched.

    Returns:
        A model of the base's own class, with its keys.

    Raises:
        InputError: If an adapter fills zeros of the base.
    """
    target: Any = copied(model)
    if is_converted(target):
        fold(target, inplace=True)
    before = {name: _zeros(layer) for name, layer in _adapted(target)}
    fills = [
        name
        for name, layer in _adapted(target)
        if before[name] and not isinstance(layer, KeepsZeros)
    ]
    if fills:
        raise InputError(
            f"merged adapters would fill the zeros of {few(fills)}: call keep_zeros(model) before "
            "training; for dense weights st3fx.fold(model).merge_and_unload()"
        )
    merged: nn.Module = target.merge_and_unload(safe_merge=True)
    with torch.no_grad():
        for name, count in before.items():
            weight: Any = merged.get_submodule(name.removeprefix("base_model.model.")).weight
            weight.add_(0.0)  # no negative zeros
            assert int((weight == 0).sum()) >= count, name
    return merged


def _adapted(model: nn.Module) -> list[tuple[str, Any]]:
    return [(name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLayer)]


def _zeros(layer: Any) -> int:
    """How many weights of an adapted layer's base are zero."""
    weight = getattr(layer.get_base_layer(), "weight", None)
    return int((weight.detach() == 0).sum()) if isinstance(weight, Tensor) else 0


def _require_plain(name: str, layer: Any) -> None:
    """Refuse what is no plain LoRA of a matrix or a convolution.

    Raises:
        InputError: With the reason.
    """
    kind = type(layer.get_base_layer()).__name__
    convolution = isinstance(layer.get_base_layer(), nn.modules.conv._ConvNd)
    if not (convolution or hasattr(layer, "fan_in_fan_out")) or isinstance(
        layer.get_base_layer(), nn.Embedding
    ):
        raise InputError(f"{name}: adapters of a {kind} cannot keep its zeros: leave it out")
    if layer.lora_variant:
        variant = type(next(iter(layer.lora_variant.values()))).__name__
        raise InputError(f"{name}: {variant} computes more than B·A: only plain LoRA keeps zeros")
    if any(layer.lora_bias.values()):
        raise InputError(f"{name}: lora_bias=True is more than B·A: only plain LoRA keeps zeros")

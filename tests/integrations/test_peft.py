"""LoRA over a sparse base: what is merged computes what was trained, and keeps its zeros."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import st3fx
from st3fx.errors import InputError, StateError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of libraries that it looks for
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers.pytorch_utils import Conv1D

    from st3fx.integrations.peft import keep_zeros, merge

pytestmark = pytest.mark.slow
X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(5))


class Net(nn.Module):
    """A convolution, and matrices stored in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.across, self.fc = Conv1D(32, 16), nn.Linear(32, 4)
        nn.init.normal_(self.across.weight, std=0.3)

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.across(self.conv(x).mean((2, 3))).relu())


def base(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model, sparsifier = st3fx.convert(Net(), X, st3fx.ST3(0.7), total_steps=10)
    sparsifier.set_sparsity(0.7)
    if kind == "frozen":
        sparsifier.freeze()
    return st3fx.fold(model) if kind == "folded" else model


def adapted(model: nn.Module, **kwargs: Any) -> Any:
    settings = {"r": 4, "target_modules": ["conv", "across", "fc"], "lora_dropout": 0.1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fan_in_fan_out is set where it must be
        return get_peft_model(model, LoraConfig(**(settings | kwargs)))


def train(model: Any) -> None:
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(weights, 0.5)
    model.train()
    for _ in range(5):
        optimizer.zero_grad()
        (model(X) - 1).square().mean().backward()
        optimizer.step()
    model.eval()


def masks(model: nn.Module) -> dict[str, Tensor]:
    return {n: p == 0 for n, p in model.state_dict().items() if n.endswith("weight")}


def count(found: dict[str, Tensor]) -> int:
    return sum(int(mask.sum()) for mask in found.values())


@pytest.mark.parametrize("kind", ["folded", "held", "frozen"])
def test_what_is_merged_is_what_was_trained(kind: str, tmp_path: Path) -> None:
    sparse = base(kind)
    plain = sparse if kind == "folded" else st3fx.fold(sparse)
    zeros, before = masks(plain), plain(X)
    model = keep_zeros(adapted(copy.deepcopy(sparse)))
    assert torch.allclose(model(X), before, atol=1e-6)
    train(model)
    trained = model(X)
    assert (trained - before).abs().max() > 0.05
    with model.disable_adapter():
        assert torch.allclose(model(X), before, atol=1e-6)
    merged = merge(model)
    assert type(merged) is Net
    assert merged.state_dict().keys() == plain.state_dict().keys()
    assert torch.allclose(merged(X), trained, atol=1e-5)
    for name, mask in masks(merged).items():
        assert torch.equal(mask, zeros[name]), name
        assert mask.any()
    assert torch.equal(model(X), trained)  # it is as it was
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = keep_zeros(PeftModel.from_pretrained(copy.deepcopy(sparse), tmp_path))
    assert torch.equal(again.eval()(X), trained)


def test_adapters_that_fill_zeros_are_named() -> None:
    """Outputs stay right without :func:`keep_zeros`, zeros do not."""
    model = adapted(base("held"))
    train(model)
    trained = model(X)
    with pytest.raises(
        InputError, match=r"would fill the zeros of base_model.model.conv, .*across"
    ):
        merge(model)
    with pytest.raises(StateError, match="to merge, fold first"):
        copy.deepcopy(model).merge_and_unload()
    folded: Any = st3fx.fold(model)
    dense = folded.merge_and_unload()
    assert torch.allclose(dense(X), trained, atol=1e-5)
    assert count(masks(dense)) < 0.5 * count(masks(st3fx.fold(base("held"))))
    keep_zeros(model)  # now the adapters are others: they lose what stood on zeros
    assert not torch.allclose(model(X), trained, atol=1e-3)
    merge(model)


def test_mistakes_are_named() -> None:
    with pytest.raises(InputError, match="has no LoRA adapter over a weight with zeros: fold a"):
        keep_zeros(adapted(Net()))
    model = adapted(base("folded"), use_dora=True, target_modules=["fc"])
    with pytest.raises(InputError, match=r"fc: Dora\w* computes more than B·A"):
        keep_zeros(model)
    model = adapted(base("folded"), lora_bias=True, target_modules=["fc"])
    with pytest.raises(InputError, match="fc: lora_bias=True is more than B·A"):
        keep_zeros(model)

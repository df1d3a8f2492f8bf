"""Half precision, wrapped models and models that are prepared for quantisation."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import st3fx
from st3fx.errors import HalfPrecisionWarning, InputError
from tests.nets import Net, image
from tests.parity import check


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_model_converts_and_is_pruned_at_once(dtype: torch.dtype) -> None:
    checked = check(Net().to(dtype), image().to(dtype), sparsity=0.5)
    assert {w.dtype for w in checked.sparsifier.effective_weights().values()} == {dtype}
    assert checked.sparsifier.sparsity == pytest.approx(0.5, abs=0.02)
    assert checked.model.get_submodule("stem").st3fx_weight_threshold.dtype == torch.float32


def test_training_half_precision_weights_is_warned_of_once() -> None:
    _, sparsifier = st3fx.convert(Net().bfloat16(), image().bfloat16(), total_steps=10)
    with pytest.warns(HalfPrecisionWarning, match=r"weights of torch.bfloat16 .* torch.autocast"):
        sparsifier.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparsifier.step()


def test_single_precision_under_autocast_is_not_warned_of() -> None:
    model, sparsifier = st3fx.convert(Net(), image(), total_steps=10)
    with torch.autocast("cpu", torch.bfloat16):
        model(image()).float().sum().backward()
    sparsifier.step()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_a_wrapped_model_is_refused_with_what_to_do(wrap: Any) -> None:
    with pytest.raises(InputError, match="wraps a model: convert the model in it, then wrap"):
        st3fx.convert(wrap(Net()), image())


def test_a_converted_model_can_be_wrapped_for_data_parallelism() -> None:
    model, sparsifier = st3fx.convert(Net(), image())
    sparsifier.set_sparsity(0.5)
    wrapped = nn.DataParallel(model).eval()
    assert torch.equal(wrapped(image()), model.eval()(image()))
    assert type(st3fx.fold(wrapped)) is Net


class Stubs(nn.Module):
    """A model between the stubs of eager quantisation."""

    def __init__(self) -> None:
        super().__init__()
        self.quant = torch.ao.quantization.QuantStub()
        self.net = Net()
        self.dequant = torch.ao.quantization.DeQuantStub()

    def forward(self, x: torch.Tensor) -> Any:
        return self.dequant(self.net(self.quant(x)))


def test_quantisation_stubs_stay() -> None:
    checked = check(Stubs(), image())
    assert list(checked.islands) == [""]
    assert isinstance(checked.folded.quant, torch.ao.quantization.QuantStub)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, of its storage
def test_a_quantised_model_is_refused() -> None:
    model = nn.Sequential(torch.ao.nn.quantized.dynamic.Linear(8, 4))
    with pytest.raises(st3fx.St3fxError, match="no parameter that feeds a convolution"):
        st3fx.convert(model, torch.randn(2, 8))

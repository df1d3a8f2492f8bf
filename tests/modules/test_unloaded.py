"""Models on the meta device: converted by shapes, completed when the values come."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

import st3fx
from st3fx.errors import InputError, StateError
from tests.nets import Mixed, Net, image, sequence
from tests.parity import require_plain


class Opaque(nn.Module):
    """Attention and a recurrent layer, which keep their own forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(6, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        y, _ = self.rnn(x)
        return self.attention(y, y, y)[0]


KINDS = pytest.mark.parametrize(("kind", "inputs"), [(Net, image), (Opaque, sequence)])
METHODS = pytest.mark.parametrize("method", [st3fx.ST3(0.5), st3fx.DST(1e-3)])


class Large(nn.Module):
    """Branches on nothing, and has a buffer with values."""

    def __init__(self) -> None:
        super().__init__()
        with torch.device("meta"):
            self.fc = nn.Linear(6, 8)
        self.register_buffer("scale", torch.full((8,), 2.0))

    def forward(self, x: Tensor) -> Any:
        return self.fc(x) * self.scale


def on_meta(kind: type[nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return kind()


def loaded(model: nn.Module, weights: dict[str, Tensor], how: str) -> nn.Module:
    if how == "assign":
        model.load_state_dict(weights, assign=True)
    else:
        model.to_empty(device="cpu")
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.fill_(7) if "st3fx" in name and buffer.numel() else None
        model.load_state_dict(weights)
    return model


@KINDS
@METHODS
@pytest.mark.parametrize("how", ["assign", "to_empty"])
def test_values_may_come_later(kind: Any, inputs: Any, method: Any, how: str) -> None:
    torch.manual_seed(0)
    original = kind()
    wanted, _ = st3fx.convert(original, inputs(), method, verify=False)
    model, sparsifier = st3fx.convert(on_meta(kind), inputs(), method)
    assert not sparsifier.plan.verified
    assert [site.name for site in sparsifier.plan.sites] == [
        site.name
        for site in wanted.st3fx_plan.sites  # type: ignore[union-attr]
    ]
    loaded(model, original.state_dict(), how)
    assert list(model.state_dict()) == list(wanted.state_dict())
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert torch.equal(model.eval()(inputs()), original.eval()(inputs()))
    require_plain(st3fx.fold(model))


def test_a_checkpoint_of_a_converted_model_keeps_its_thresholds() -> None:
    trained, sparsifier = st3fx.convert(Net(), image(), st3fx.ST3(0.5))
    sparsifier.set_sparsity(0.5)
    model, other = st3fx.convert(on_meta(Net), image(), st3fx.ST3(0.5))
    model.load_state_dict(trained.state_dict(), assign=True)
    assert other.thresholds == sparsifier.thresholds
    assert torch.equal(model.eval()(image()), trained.eval()(image()))


def test_a_model_that_was_initialised_in_place_is_completed_when_it_runs() -> None:
    original = Net()
    model, sparsifier = st3fx.convert(on_meta(Net), image())
    model.to_empty(device="cpu")
    with torch.no_grad():
        for name, tensor in original.state_dict().items():
            tensors = {**dict(model.named_parameters(remove_duplicate=False)),
                       **dict(model.named_buffers())}  # fmt: skip
            tensors[name].copy_(tensor)
    assert torch.equal(model.eval()(image()), original.eval()(image()))
    assert (sparsifier.steps, sparsifier.sparsity) == (0, 0.0)


def test_without_values_no_sparsity_can_be_set() -> None:
    model, sparsifier = st3fx.convert(on_meta(Net), image(), total_steps=10)
    said = "parameters have no values, for example stem.weight"
    with pytest.raises(StateError, match=said):
        sparsifier.set_sparsity(0.5)
    with pytest.raises(StateError, match=said):
        sparsifier.step()
    loaded(model, Net().state_dict(), "assign")
    sparsifier.set_sparsity(0.5)
    assert sparsifier.sparsity == pytest.approx(0.5, abs=0.01)


def test_buffers_with_values_keep_them() -> None:
    original = Large()
    model, _ = st3fx.convert(original, torch.randn(2, 6))
    assert torch.equal(model.get_buffer("scale"), original.get_buffer("scale"))


def test_a_forward_that_needs_values_is_refused() -> None:
    with pytest.raises(InputError, match="Mixed is on the meta device, and its forward branches"):
        st3fx.convert(on_meta(Mixed), sequence())


def test_a_model_without_values_can_be_copied_and_folded() -> None:
    model, _ = st3fx.convert(on_meta(Net), image())
    folded = st3fx.fold(copy.deepcopy(model))
    require_plain(folded)
    assert all(parameter.is_meta for parameter in folded.parameters())
    assert not folded._forward_pre_hooks
    assert not folded._load_state_dict_post_hooks


class Asks(nn.Module):
    """Branches on values, unless its input is a fake tensor, as transformers' masks do."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 8, batch_first=True)
        self.raw = nn.Parameter(torch.randn(5, 8))

    def forward(self, x: Tensor) -> Any:
        if not is_fake(x) and bool((x > 1e9).all()):
            return x
        return self.rnn(x)[0] @ self.raw.t()


def test_libraries_are_told_that_tensors_are_fake() -> None:
    original = Asks()
    wanted, _ = st3fx.convert(original, sequence())
    model, sparsifier = st3fx.convert(on_meta(Asks), sequence())
    layouts = {site.name: site.layout for site in wanted.st3fx_plan.sites}  # type: ignore[union-attr]
    assert {site.name: site.layout for site in sparsifier.plan.sites} == layouts
    loaded(model, original.state_dict(), "assign")
    assert torch.equal(model.eval()(sequence()), original.eval()(sequence()))


class Decoder(nn.Module):
    """Positions and a causal mask made of sizes, on the device of the tokens' embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.fc = nn.Linear(6, 6)

    def forward(self, tokens: Tensor) -> Any:
        x = self.embed(tokens)
        positions = torch.arange(x.shape[1], device=x.device)
        if not is_fake(x) and positions.diff().ne(1).any():
            raise ValueError("packed")
        causal = positions[:, None] >= positions
        return self.fc(x) if x.shape[1] == 1 else causal.to(x.dtype) @ self.fc(x)


def test_a_model_without_values_is_the_island_that_it_is_with_them() -> None:
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])
    original = Decoder()
    _, wanted = st3fx.convert(original, tokens)
    model, sparsifier = st3fx.convert(on_meta(Decoder), tokens)
    (expected,) = wanted.plan.islands
    (island,) = sparsifier.plan.islands
    assert (island.name, island.nodes, island.guards) == ("", expected.nodes, expected.guards)
    assert any("any() is False" in guard for guard in island.guards)
    model.to_empty(device="cpu")
    model.load_state_dict(original.state_dict())
    (variant,) = model.__dict__["st3fx_forward"].variants
    for call, applies in ((tokens, True), (tokens.repeat(2, 2), True), (tokens[:, :1], False)):
        assert (variant.tensors((call,), {}) is not None) is applies
        for mode in (True, False):
            assert torch.equal(model.train(mode)(call), original.train(mode)(call))

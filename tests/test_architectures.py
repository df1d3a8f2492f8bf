"""Modules of torch.nn that fx cannot look into, and models that read weights from outside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import st3fx
from tests.parity import check, require_same

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(3))
MHA = ["in_proj_weight", "out_proj.weight"]
ENCODER = [
    "self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight",
]  # fmt: skip


def prefixed(prefix: str, names: list[str]) -> list[str]:
    return [prefix + name for name in names]


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("verify", [False, True])
def test_multihead_attention(weights: bool, verify: bool) -> None:
    model = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
    kwargs = {"need_weights": weights}
    checked = check(model, (X, X, X), example_kwargs=kwargs, verify=verify)
    assert checked.sites == MHA
    assert checked.islands == {"": ("train", "eval")}


def test_multihead_attention_with_weights_of_its_own_for_each() -> None:
    model = nn.MultiheadAttention(8, 2, kdim=6, vdim=4)
    checked = check(model, (X, torch.randn(3, 5, 6), torch.randn(3, 5, 4)))
    assert set(checked.sites) == {
        "q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight",
    }  # fmt: skip


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_a_transformer_encoder_layer(batch_first: bool, norm_first: bool) -> None:
    """Its eval mode without gradients is another kernel, which reads the weights directly."""
    layer = nn.TransformerEncoderLayer(
        8, 2, 16, dropout=0.1, batch_first=batch_first, norm_first=norm_first
    )
    checked = check(layer, X)
    assert checked.sites == ENCODER
    assert checked.islands == {"": ("train", "eval")}


def test_a_graph_of_one_kernel_is_not_for_calls_that_choose_another() -> None:
    original = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    model = st3fx.convert(original, (X, X, X))[0].eval()
    variants = model.__dict__["st3fx_forward"].variants

    def graphs() -> int:
        return sum(variant.tensors((X, X, X), {}) is not None for variant in variants)

    assert graphs() == 0  # gradients are wanted
    with torch.no_grad():
        assert graphs() == 1
        with torch.autocast("cpu", torch.bfloat16):
            require_same(model(X, X, X), original(X, X, X), "under autocast")


@pytest.mark.slow
@pytest.mark.parametrize("verify", [False, True])
def test_a_transformer_encoder_with_a_mask(verify: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    checked = check(model, X, example_kwargs={"mask": mask, "is_causal": True}, verify=verify)
    assert checked.sites == prefixed("layers.0.", ENCODER) + prefixed("layers.1.", ENCODER)
    assert checked.islands == {"": ("train", "eval")}


@pytest.mark.slow
def test_a_whole_transformer() -> None:
    model = nn.Transformer(8, 2, 1, 1, 16, dropout=0.1, batch_first=True)
    checked = check(model, (X, torch.randn(2, 3, 8)))
    assert len(checked.sites) == 4 + 6
    assert checked.plan.skipped == ()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2, "dropout": 0.2}])
def test_recurrent_modules(kind: Any, options: dict[str, Any]) -> None:
    model = kind(8, 6, batch_first=True, **options)
    checked = check(model, X)
    expected = [n for n, p in model.named_parameters() if p.dim() == 2]
    assert sorted(checked.sites) == sorted(expected)
    assert {site.layout.channel_dims for site in checked.plan.sites} == {(0,)}


# Which kernel runs it is torch's own affair.
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_a_recurrent_module_with_a_projection() -> None:
    model = nn.LSTM(8, 6, proj_size=3, batch_first=True)
    checked = check(model, X)
    assert sorted(checked.sites) == ["weight_hh_l0", "weight_hr_l0", "weight_ih_l0"]


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_recurrent_cells(kind: Any) -> None:
    class Unrolled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell: nn.Module = kind(8, 6)
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Any:
            state = self.cell(x[:, 0])
            state = self.cell(x[:, 1], state)
            return self.head(state[0] if kind is nn.LSTMCell else state)

    checked = check(Unrolled(), X)
    assert set(checked.sites) == {"cell.weight_ih", "cell.weight_hh", "head.weight"}


class AsksForTheType(nn.Module):
    """As DenseNet does; what stands for a tensor in a trace is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor | list[Tensor]) -> Any:
        if isinstance(x, Tensor):
            return self.fc(x)
        return self.fc(x[0]) * 2


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_a_question_for_a_type_gets_the_right_answer(verify: bool, inside: bool) -> None:
    model = AsksForTheType()
    whole = nn.Sequential(nn.Linear(8, 8), model) if inside else model
    assert len(check(whole, X, verify=verify).sites) == 1 + inside


class Tagger(nn.Module):
    """Embedding, LSTM, head: the usual shape of a small language model."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.lstm = nn.LSTM(8, 6, batch_first=True)
        self.head = nn.Linear(6, 11)

    def forward(self, tokens: Tensor) -> Any:
        output, (hidden, _) = self.lstm(self.embedding(tokens))
        return self.head(output), hidden


@pytest.mark.parametrize("verify", [False, True])
def test_an_lstm_inside_a_model(verify: bool) -> None:
    checked = check(Tagger(), torch.randint(0, 11, (2, 5)), verify=verify)
    assert checked.sites == ["lstm.weight_ih_l0", "lstm.weight_hh_l0", "head.weight"]


def test_bilinear() -> None:
    checked = check(nn.Bilinear(8, 6, 4), (X[:, 0], torch.randn(2, 6)))
    assert checked.sites == ["weight"]
    assert checked.plan.sites[0].op == "bilinear"


class ReadFromOutside(nn.Module):
    """Like Swin's attention: the layers are never called, their weights are read."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.proj = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Any:
        qkv = F.linear(x, self.qkv.weight, self.qkv.bias)
        q, k, v = qkv.chunk(3, -1)
        y = F.scaled_dot_product_attention(q, k, v)
        return F.linear(y, self.proj.weight, self.proj.bias)


class Untraceable(ReadFromOutside):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x) if x.sum() < 1e9 else x


@pytest.mark.parametrize("model", [ReadFromOutside, Untraceable])
def test_weights_that_outside_code_reads(model: type[nn.Module]) -> None:
    checked = check(nn.Sequential(model(), nn.Linear(8, 3)), X)
    assert checked.sites == ["0.qkv.weight", "0.proj.weight", "1.weight"]
    assert [site.holders for site in checked.plan.sites] == [("0",), ("0",), ("1",)]


class CallsAndReads(nn.Module):
    """A layer that is called, and whose weight its parent multiplies with as well."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Any:
        return F.linear(self.fc(x), self.fc.weight)


class CallsAndReadsUntraceable(CallsAndReads):
    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return y if y.sum() < 1e9 else -y


@pytest.mark.parametrize("model", [CallsAndReads, CallsAndReadsUntraceable])
@pytest.mark.parametrize("verify", [False, True])
def test_a_weight_is_pruned_once_when_called_and_read(model: type[nn.Module], verify: bool) -> None:
    checked = check(model(), X, verify=verify)
    assert checked.sites == ["fc.weight"]


@pytest.mark.slow
def test_resnet_and_friends_of_torchvision() -> None:
    from torchvision import models

    model = models.resnet18(num_classes=7)
    checked = check(model, torch.randn(2, 3, 32, 32), sparsity=0.8)
    assert list(checked.islands) == [""]
    assert len(checked.sites) == 21
    assert checked.sparsifier.sparsity >= 0.8 - 1e-4


def test_models_within_models() -> None:
    """Dropout, stochastic depth and auxiliary heads all switch with the mode."""
    from torchvision.ops import StochasticDepth

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(5)
            self.fc = nn.Linear(8, 8)
            self.depth = StochasticDepth(0.4, "row")

        def forward(self, x: Tensor) -> Any:
            return x + self.depth(self.fc(self.norm(x)))

    model = nn.Sequential(Residual(), nn.Dropout(0.2), Residual(), nn.Linear(8, 3))
    checked = check(model, X)
    assert checked.sites == ["0.fc.weight", "2.fc.weight", "3.weight"]
    assert list(checked.islands) == [""]

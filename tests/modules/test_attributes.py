"""Attributes of converted modules: effective weights to read, latent ones to write."""

from __future__ import annotations

import copy
import functools
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.checkpoint import checkpoint

import st3fx
from st3fx.errors import StateError, TraceWarning
from tests.parity import require_plain

X = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))


class Towers(nn.Module):
    """Raw parameters that several public methods multiply with, and a part with one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 16)
        self.out = nn.Parameter(torch.randn(16, 4) * 0.3)
        self.head = Head()
        self.recompute = False

    def encode(self, x: Tensor) -> Any:
        return self._features(x) @ self.out

    def _features(self, x: Tensor) -> Any:
        return self.body(x).relu()

    def steps(self, x: Tensor) -> Any:
        """A generator, as a sampler has it."""
        for scale in (1.0, 2.0):
            yield scale * (self._features(x) @ self.out)

    def late(self) -> Any:
        return lambda x: F.linear(x, self.out.t())

    def forward(self, x: Tensor) -> Any:
        y = self._features(x)
        if self.recompute:
            y = checkpoint(lambda z: (z @ self.out).tanh() @ self.out.t(), y, use_reentrant=False)
        return self.head(y @ self.out)


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 4) * 0.5)

    def project(self, x: Tensor) -> Any:
        return F.linear(x, self.w)

    def forward(self, x: Tensor) -> Any:
        return self.project(x).softmax(-1)


class Branching(Towers):
    """The same without any graph at the root."""

    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return y if y.sum() > -1e9 else -y


KINDS = pytest.mark.parametrize("kind", [Towers, Branching])


def sparse(kind: type[nn.Module] = Towers, sparsity: float = 0.6) -> tuple[Any, Any, Any]:
    """A converted model, its sparsifier, and a dense model with the effective weights."""
    model = kind()
    converted, sparsifier = st3fx.convert(model, X, total_steps=10, verify=False)
    sparsifier.set_sparsity(sparsity)
    oracle = copy.deepcopy(model)
    oracle.load_state_dict(sparsifier.effective_weights(), strict=False)
    return converted, sparsifier, oracle


METHODS: dict[str, Any] = {
    "a method": lambda m: m.encode(X),
    "of a part": lambda m: m.head.project(m.encode(X)),
    "a generator": lambda m: torch.stack(list(m.steps(X))),
    "a closure": lambda m: m.late()(m._features(X)),
    "partial": lambda m: functools.partial(m.encode)(X),
    "unbound": lambda m: type(m).encode(m, X),
    "the attribute": lambda m: m._features(X) @ m.out,
}


@KINDS
@pytest.mark.parametrize("call", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize(
    "copied", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_whatever_is_called_is_sparse(kind: Any, call: Any, copied: Any) -> None:
    model, _, oracle = sparse(kind)
    for training in (True, False):
        assert torch.equal(call(copied(model).train(training)), call(oracle.train(training)))


@KINDS
def test_a_training_by_methods_alone_ends_as_its_folded_model(kind: Any) -> None:
    model, sparsifier = st3fx.convert(kind(), X, total_steps=12)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(12):
        optimizer.zero_grad()
        model.encode(X).square().mean().backward()  # type: ignore[operator]
        optimizer.step()
        sparsifier.step()
    folded: Any = st3fx.fold(model)
    assert torch.equal(folded.encode(X), model.encode(X))  # type: ignore[operator]


@KINDS
def test_recomputed_activations_have_the_gradients_of_effective_weights(kind: Any) -> None:
    model, _, oracle = sparse(kind)
    model.recompute = oracle.recompute = True
    model(X).square().sum().backward()
    oracle(X).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, oracle.get_parameter(name).grad), name


def test_threads_share_a_model_without_a_graph() -> None:
    model, _, oracle = sparse(Branching)
    expected = oracle(X)
    with ThreadPoolExecutor(8) as pool:
        assert all(torch.equal(y, expected) for y in pool.map(lambda _: model(X), range(100)))
    assert all(type(p) is nn.Parameter for p in model.parameters())


def test_recurrent_layers_read_their_list() -> None:
    model, sparsifier = st3fx.convert(nn.LSTM(8, 6, batch_first=True), X[None])
    sparsifier.set_sparsity(0.5)
    oracle = nn.LSTM(8, 6, batch_first=True)
    oracle.load_state_dict(st3fx.fold(model).state_dict())
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)  # no graph runs
    try:
        assert torch.equal(model(X[None])[0], oracle(X[None])[0])
    finally:
        handle.remove()


def test_what_sees_the_latent_weight() -> None:
    model, _, oracle = sparse()
    latent = dict(model.named_parameters())["body.weight"]
    assert model.get_parameter("body.weight") is latent
    assert nn.ModuleDict({"m": model}).get_parameter("m.body.weight") is latent
    assert torch.equal(model.body.weight, oracle.body.weight)
    assert not torch.equal(model.body.weight, latent)
    assert torch.equal(model.state_dict()["body.weight"], latent)
    flat = torch.nn.utils.parameters_to_vector(model.parameters())
    assert torch.equal(flat, torch.cat([p.flatten() for p in model.parameters()]))
    double = {name: p * 2 for name, p in model.named_parameters()}
    again = torch.func.functional_call(model, double, (X,))
    assert not torch.equal(again, model(X))


WRITES: dict[str, Any] = {
    "mul_": lambda w: w.mul_(2),
    "*=": lambda w: w.__imul__(2),
    "fill_": lambda w: w.fill_(0.5),
    "copy_": lambda w: w.copy_(torch.ones(16, 8)),
    "w[i] =": lambda w: w.__setitem__((0, 1), 7.0),
    "w[mask] =": lambda w: w.__setitem__(torch.ones(16, 8, dtype=torch.bool), 1.0),
    "normal_": lambda w: nn.init.constant_(w, 0.25),
    "trunc_normal_": lambda w: nn.init.trunc_normal_(w, std=0.5),
    "clamp_": lambda w: w.clamp_(-0.01, 0.01),
    "data": lambda w: w.data.mul_(3),
    "detach": lambda w: w.detach().neg_(),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_writes_reach_the_latent_weight(write: Any) -> None:
    model, _, _ = sparse()
    latent = model.get_parameter("body.weight")
    expected = latent.detach().clone()
    with torch.no_grad():
        torch.manual_seed(3)
        write(expected)
        torch.manual_seed(3)
        write(model.body.weight)
    assert torch.equal(latent, expected)
    model.body.weight.data *= 2
    assert torch.equal(latent, expected * 2)


def test_a_write_with_gradients_is_torchs_error() -> None:
    model, _, _ = sparse()
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
        model.body.weight.mul_(2)


def test_flags_gradients_and_hooks_are_the_latent_weights() -> None:
    model, _, _ = sparse()
    seen: list[Tensor] = []
    model.body.weight.register_hook(seen.append)
    model(X).sum().backward()
    assert model.body.weight.grad is model.get_parameter("body.weight").grad
    assert len(seen) == 1
    model.body.weight.grad = None
    assert model.get_parameter("body.weight").grad is None
    assert not model.body.weight.requires_grad_(False).requires_grad
    assert not model.get_parameter("body.weight").requires_grad
    model.body.weight.requires_grad = True
    assert model.get_parameter("body.weight").requires_grad


REFUSED: dict[str, Any] = {
    "a view": lambda m: m.body.weight.view(-1).fill_(0.0),
    "a row": lambda m: m.body.weight[0].mul_(0.0),
    "T": lambda m: m.body.weight.T.add_(1),
    "rows": lambda m: m.body.weight.chunk(2)[0].zero_(),
    "data of a view": lambda m: setattr(m.body.weight[0], "data", torch.zeros(8)),
    "data": lambda m: setattr(m.body.weight, "data", m.body.weight.data * 0.9),
    "an adapter that is merged": lambda m: m.body.weight.data.__iadd__(torch.ones(16, 8)),
    "add_": lambda m: m.body.weight.sub_(torch.ones(16, 8)),
    "a mark of quantization": lambda m: torch.ao.quantization.propagate_qconfig_(
        m, {"": torch.ao.quantization.default_qconfig}
    ),
    "a plain tensor": lambda m: object.__setattr__(m.body, "weight", torch.zeros(16, 8)),
    "prune": lambda m: prune.l1_unstructured(m.body, "weight", 0.5),
    "spectral_norm": lambda m: parametrizations.spectral_norm(m.body),
}


@pytest.mark.parametrize("write", REFUSED.values(), ids=REFUSED)
def test_what_would_be_lost_is_refused(write: Any) -> None:
    model, _, oracle = sparse()
    with torch.no_grad(), pytest.raises(StateError, match="weight"):
        write(model)
    assert torch.equal(model.encode(X), oracle.encode(X))


def test_without_a_threshold_what_is_added_reaches_the_latent_weight() -> None:
    model, _ = st3fx.convert(Towers(), X)
    latent: Any = model.get_parameter("body.weight")
    expected = latent.detach() + 1
    model.body.weight.data += 1  # type: ignore[union-attr, operator]
    assert torch.equal(latent, expected)


OWN: dict[str, Any] = {
    "detach": lambda w: w.detach().requires_grad_(),
    "data": lambda w: w.data.requires_grad_(),
    "a flag": lambda w: flagged(w.detach()),
    "a parameter": lambda w: nn.Parameter(w.data),
    "a parameter of a read": nn.Parameter,
    "a copied parameter": lambda w: copy.deepcopy(nn.Parameter(w)),
    "a pickled parameter": lambda w: pickle.loads(pickle.dumps(nn.Parameter(w))),
}


def flagged(tensor: Tensor) -> Tensor:
    tensor.requires_grad = True
    return tensor


@pytest.mark.parametrize("make", OWN.values(), ids=OWN)
def test_a_leaf_made_of_a_weight_is_a_tensor_of_its_own(make: Any) -> None:
    model, _, oracle = sparse()
    latent = model.get_parameter("body.weight")
    before = latent.detach().clone()
    leaf = make(model.body.weight)
    assert leaf.is_leaf
    assert leaf.requires_grad
    assert torch.equal(leaf, oracle.body.weight)
    (leaf * 2).sum().backward()
    assert torch.equal(leaf.grad, torch.full((16, 8), 2.0))
    assert latent.grad is None
    torch.optim.SGD([leaf], lr=1.0).step()
    assert torch.equal(leaf, oracle.body.weight - 2)
    assert torch.equal(latent, before)
    assert torch.equal(model.encode(X), oracle.encode(X))


@pytest.mark.parametrize("write", [nn.Parameter, lambda w, _: w.requires_grad_(False)])
def test_a_frozen_copy_freezes_no_latent_weight(write: Any) -> None:
    model, _, _ = sparse()
    copied = write(model.body.weight.data, False)
    assert not copied.requires_grad
    assert model.get_parameter("body.weight").requires_grad
    fresh = nn.Linear(8, 16)
    fresh.weight = nn.Parameter(model.body.weight.detach())
    with torch.no_grad():
        fresh.weight.add_(1)
    assert isinstance(fresh.weight, nn.Parameter)
    assert [name for name, _ in fresh.named_parameters()] == ["weight", "bias"]
    assert torch.equal(fresh.weight, model.body.weight + 1)


class Listed(nn.Module):
    """Weights in a list and in a dict, which the forward slices and copies."""

    def __init__(self) -> None:
        super().__init__()
        self.ws = nn.ParameterList([torch.randn(8, 8) * 0.3 for _ in range(3)])
        self.by_name = nn.ParameterDict({key: torch.randn(8, 8) * 0.3 for key in "ab"})

    def forward(self, x: Tensor) -> Tensor:
        for weight in (*self.ws[1:], *self.by_name.copy().values()):
            x = (x @ weight).relu()
        return x


def test_slices_and_copies_of_containers_hold_effective_weights() -> None:
    model, sparsifier = st3fx.convert(Listed(), X)
    assert len(sparsifier.plan.sites) == 4
    sparsifier.set_sparsity(0.6)
    folded = st3fx.fold(model)
    with torch.no_grad():
        assert torch.equal(model(X), folded(X))
    for net in (model, folded):
        net(X).sum().backward()
    for (name, ours), theirs in zip(model.named_parameters(), folded.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None) == (name == "ws.0")
        assert ours.grad is None or torch.equal(ours.grad, theirs.grad)  # type: ignore[arg-type]


def test_recomputed_with_the_weight_as_an_argument() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(8, 8) * 0.3)

        def forward(self, x: Tensor) -> Any:
            return checkpoint(lambda x, w: (x @ w).tanh(), x, self.w, use_reentrant=True)

    x = X.clone().requires_grad_()
    model, sparsifier = st3fx.convert(Net(), (x,))
    sparsifier.set_sparsity(0.6)
    folded = st3fx.fold(model)
    for net in (model, folded):
        net(x).sum().backward()
    assert torch.equal(model.w.grad, folded.w.grad)  # type: ignore[arg-type]


def test_an_array_is_read_only() -> None:
    model, _, _ = sparse()
    for array in (model.body.weight.detach().numpy(), model.body.weight.detach()[0].numpy()):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_data_is_set_while_no_threshold_is_active() -> None:
    model, _ = st3fx.convert(Towers(), X)
    model.body.weight.data = model.body.weight.data * 0.5  # type: ignore[union-attr, operator]
    assert torch.equal(model.get_parameter("body.weight"), model.body.weight)  # type: ignore[union-attr, arg-type]


def test_a_write_by_another_way_is_noticed_at_the_next_forward() -> None:
    model, sparsifier, _ = sparse()
    model(X)
    sparsifier.step()
    weight = model.body.weight
    with torch.no_grad():
        torch.mul(weight, 2.0, out=weight)
    with pytest.raises(StateError, match="16x8 was written to"):
        model(X)
    model(X)


def test_an_error_inside_never_gives_the_dense_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python asks ``__getattr__`` where a property raises an ``AttributeError``."""
    model, _, _ = sparse()
    del model.body.__dict__["st3fx_weight_mask"]
    with pytest.raises(StateError, match="effective weight weight of a Linear cannot be computed"):
        model.body.weight  # noqa: B018


def test_a_layer_of_a_converted_class_can_be_made() -> None:
    model, _, _ = sparse()
    layer = type(model.body)(3, 2)
    assert torch.equal(
        layer(torch.ones(1, 3)), F.linear(torch.ones(1, 3), layer.weight, layer.bias)
    )
    assert isinstance(model.body, nn.Linear)
    assert type(model.body).__name__ == "Linear"
    assert not hasattr(model.body, "nothing")
    with pytest.raises(AttributeError, match="nothing"):
        model.body.nothing  # noqa: B018


class Fusing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.bn(self.conv(x)).relu())

    def fuse(self) -> Any:
        self.conv, self.bn = fuse_conv_bn_eval(self.conv, self.bn), nn.Identity()  # type: ignore[assignment]
        return self


def fusing() -> tuple[Any, Any, Tensor]:
    x = torch.randn(4, 3, 8, 8)
    model = Fusing()
    for _ in range(3):
        model(x)
    converted, sparsifier = st3fx.convert(model, x, total_steps=10)
    sparsifier.set_sparsity(0.7)
    return converted.eval(), sparsifier, x


def test_tools_that_merge_get_effective_weights() -> None:
    model, _, x = fusing()
    expected = model(x)
    fused = copy.deepcopy(model).fuse()
    torch.testing.assert_close(fused(x), expected)
    assert (fused.conv.weight == 0).float().mean() > 0.5
    torch.testing.assert_close(st3fx.fold(fused)(x), expected)


def test_a_tracer_of_torch_fx_gets_the_weights_of_the_moment_and_says_so() -> None:
    model, _, oracle = sparse()
    with pytest.warns(TraceWarning, match=r"torch.fx traces a converted model"):
        traced = fx.symbolic_trace(model)
    assert torch.equal(traced(X), oracle(X))


class Graph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.w = nn.Parameter(torch.randn(8, 3))

    def forward(self, x: Tensor) -> Any:
        return self.fc(x).relu() @ self.w


GRAPHS: dict[str, Any] = {
    "symbolic_trace": lambda: fx.symbolic_trace(Graph()),
    "torch.export": lambda: torch.export.export(Graph(), (X,)).module(),
}


@pytest.mark.parametrize("make", GRAPHS.values(), ids=GRAPHS)
def test_graph_modules_are_converted_copied_and_folded(make: Any) -> None:
    original = make()
    model, sparsifier = st3fx.convert(original, X, total_steps=10)
    assert torch.equal(model(X), original(X))
    sparsifier.set_sparsity(0.5)
    expected = model(X)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(X), expected)
    st3fx.Sparsifier(twin).set_sparsity(0.8)
    assert torch.equal(model(X), expected)
    folded = st3fx.fold(model)
    require_plain(folded)
    assert torch.equal(folded(X), expected)
    assert torch.equal(st3fx.fold(model, inplace=True)(X), expected)


def test_a_graph_module_is_pickled_and_recompiled() -> None:
    model, sparsifier = st3fx.convert(fx.symbolic_trace(Graph()), X)
    sparsifier.set_sparsity(0.5)
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(X), model(X))
    model.recompile()  # type: ignore[operator]
    assert torch.equal(again(X), model(X))


@pytest.mark.parametrize("freeze", [False, True])
def test_a_functional_call_with_the_state_dict(freeze: bool) -> None:
    """It puts packed masks where plain ones are."""
    model, sparsifier = st3fx.convert(nn.Linear(8, 5), torch.randn(3, 8), verify=False)
    sparsifier.set_sparsity(0.5)
    if freeze:
        sparsifier.freeze()
    x = torch.randn(3, 8)
    expected = model(x)
    assert torch.equal(torch.func.functional_call(model, model.state_dict(), (x,)), expected)
    assert torch.equal(model(x), expected)

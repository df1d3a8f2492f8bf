"""Kept effective weights: computed once a step, and never a stale one."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import st3fx
from st3fx.methods import DST, GMP, STR, Feather
from st3fx.sparsifier.run import run_of
from st3fx.sparsity import cache, formula
from st3fx.sparsity.formula import Job

X = torch.randn(5, 12, generator=torch.Generator().manual_seed(4))
METHODS: dict[str, Any] = {
    "st3": st3fx.ST3(0.6),
    "dst": DST(1e-3),
    "str": STR(-150.0),
    "feather": Feather(0.6),
    "gmp": GMP(0.6),
}
methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


class Twice(nn.Module):
    """A convolution, a layer that is used twice, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.fc = nn.Linear(16, 16, bias=False)
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x.unflatten(1, (3, 2, 2))).flatten(1).tanh()
        return self.head(self.fc(self.fc(y).tanh()))


SITES = ["conv.weight", "fc.weight", "head.weight"]


def kept_by(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p in cache._ENTRIES}


def warm(method: Any = None, sparsity: float = 0.5) -> tuple[nn.Module, st3fx.Sparsifier]:
    """A sparse model whose effective weights are kept."""
    model, sparsifier = st3fx.convert(
        Twice(), X, method if method is not None else st3fx.ST3(0.6), total_steps=100, verify=False
    )
    model(X)
    if sparsifier.target is None:
        prune(model)
        sparsifier.step()
    else:
        sparsifier.set_sparsity(sparsity)
    model(X)
    assert kept_by(model) == set(SITES)
    return model, sparsifier


@torch.no_grad()
def prune(model: nn.Module) -> None:
    """Learned thresholds that prune some weights of each site."""
    for name, parameter in model.named_parameters():
        if name.endswith("_threshold"):
            parameter.fill_(-2.5 if parameter.shape == (1,) else 0.08)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the effective weights that are computed, in order."""
    shapes: list[tuple[int, ...]] = []
    original = formula.evaluate

    def evaluate(jobs: Sequence[Job]) -> None:
        shapes.extend(tuple(job.out.shape) for job in jobs)
        original(jobs)

    monkeypatch.setattr(formula, "evaluate", evaluate)
    monkeypatch.setattr(cache, "evaluate", evaluate)
    return shapes


def oracle(model: nn.Module, sparsifier: st3fx.Sparsifier) -> nn.Module:
    """A plain model with the effective weights, as they are at this moment."""
    weight = model.get_parameter("conv.weight")
    plain = Twice().to(weight.dtype)
    if weight.is_contiguous(memory_format=torch.channels_last):
        plain.to(memory_format=torch.channels_last)
    state = model.state_dict()
    plain.load_state_dict({key: value for key, value in state.items() if "st3fx" not in key})
    plain.load_state_dict(sparsifier.effective_weights(), strict=False)
    return plain


def require_right(model: nn.Module, sparsifier: st3fx.Sparsifier) -> None:
    """Outputs with and without gradients, and gradients of the input."""
    plain = oracle(model, sparsifier)
    x = X.to(next(model.parameters()).dtype)
    expected, actual = plain(x), model(x)
    assert torch.equal(expected, actual)
    with torch.no_grad():
        assert torch.equal(model(x), expected)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for module, leaf in zip((plain, model), inputs, strict=True):
        module(leaf).square().sum().backward()
    assert inputs[0].grad is not None
    assert inputs[1].grad is not None
    assert torch.equal(inputs[0].grad, inputs[1].grad)


@methods
def test_a_training_computes_each_site_once_a_step(
    method: Any, computed: list[tuple[int, ...]]
) -> None:
    model, sparsifier = warm(method)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(4):
        computed.clear()
        for _ in range(3):  # gradient accumulation
            (model(X).square().mean() + sparsifier.penalty()).backward()
        assert computed == []
        optimizer.step()
        optimizer.zero_grad()
        sparsifier.step()
        assert sorted(computed) == [(2, 16), (4, 3, 3, 3), (16, 16)]
        computed.clear()
        with torch.no_grad():
            model(X)
        assert computed == []
    require_right(model, sparsifier)


def in_place(model: Any) -> None:
    with torch.no_grad():
        model.fc.weight.mul_(1.5)


def latent(model: Any, name: str = "fc.weight") -> Any:
    """The parameter itself."""
    return model.get_parameter(name)


def numpy_view(model: Any) -> None:
    latent(model).detach().numpy()[3, 4] += 1.0


def one_bit(model: Any) -> None:
    """The smallest change of one weight that is left over."""
    weight = latent(model, "head.weight").data
    flat = weight.view(-1)
    largest = int(flat.abs().argmax())
    flat[largest] = torch.nextafter(flat[largest], torch.tensor(0.0))


def exchanged(model: Any) -> None:
    weight = latent(model).data
    weight[:, [0, 1]] = weight[:, [1, 0]].clone()


def new_data(model: Any) -> None:
    latent(model).data = latent(model).data.clone() * 0.7


def loaded(model: Any, assign: bool = False) -> None:
    own = {k: v.clone() for k, v in model.state_dict().items()}
    own["fc.weight"] = torch.randn(16, 16)
    own["conv.weight"] = torch.randn(4, 3, 3, 3)
    model.load_state_dict(own, assign=assign)


def swapped(model: Any) -> None:
    """As averages of weights are put in place and taken out again."""
    with torch.no_grad():
        for name in SITES:
            parameter = model.get_parameter(name)
            parameter.copy_(torch.randn(parameter.shape) * parameter.std())


def new_parameter(model: Any) -> None:
    model.fc._parameters["weight"] = nn.Parameter(torch.randn(16, 16))  # as torch's own tools do


CHANGES: dict[str, Callable[[Any], Any]] = {
    "in place": in_place,
    "data times 1.1": lambda m: m.fc.weight.data.mul_(1.1),
    "data times 2": lambda m: m.fc.weight.data.mul_(2.0),
    "data times a half": lambda m: m.conv.weight.data.mul_(0.5),
    "data with another sign": lambda m: m.fc.weight.data.neg_(),
    "a row with another sign": lambda m: latent(m).data[::2].neg_(),
    "data transposed": lambda m: latent(m).data.copy_(latent(m).data.T.clone()),
    "data to zero": lambda m: m.fc.weight.data.zero_(),
    "one bit": one_bit,
    "columns exchanged": exchanged,
    "new data": new_data,
    "numpy": numpy_view,
    "loaded": loaded,
    "loaded and assigned": lambda m: loaded(m, assign=True),
    "averages swapped in": swapped,
    "another parameter": new_parameter,
    "half": lambda m: m.bfloat16(),
    "double": lambda m: m.double(),
    "channels last": lambda m: m.to(memory_format=torch.channels_last),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::st3fx.errors.HalfPrecisionWarning")  # of "half"
@methods
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_change_of_a_weight_is_noticed(method: Any, change: Callable[[Any], Any]) -> None:
    model, sparsifier = warm(method)
    change(model)
    require_right(model, sparsifier)
    sparsifier.step()
    require_right(model, sparsifier)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["data times 2", "data with another sign", "one bit"])
def test_changes_are_noticed_in_other_precisions(dtype: torch.dtype, name: str) -> None:
    model, sparsifier = st3fx.convert(Twice().to(dtype), X.to(dtype), verify=False)
    sparsifier.set_sparsity(0.5)
    for _ in range(2):
        model(X.to(dtype))
        sparsifier.set_sparsity(0.5)
    CHANGES[name](model)
    require_right(model, sparsifier)


THRESHOLDS: dict[str, Callable[[Tensor], Any]] = {
    "in place": lambda t: t.detach().mul_(0.5),
    "data": lambda t: t.data.mul_(0.5),
    "numpy": lambda t: t.detach().numpy().__imul__(0.5),
    "new data": lambda t: setattr(t, "data", t.data * 0.5),
}


@methods
@pytest.mark.parametrize("change", THRESHOLDS.values(), ids=THRESHOLDS)
def test_every_change_of_a_threshold_is_noticed(
    method: Any, change: Callable[[Tensor], Any]
) -> None:
    model, sparsifier = warm(method)
    before = model(X).detach()
    threshold: Any = model.fc.st3fx_weight_threshold  # type: ignore[union-attr]
    change(threshold)
    require_right(model, sparsifier)
    assert not torch.equal(model(X), before)


@methods
def test_a_frozen_mask_is_noticed_and_so_is_its_end(method: Any) -> None:
    model, sparsifier = warm(method)
    free = copy.deepcopy(model.state_dict())
    sparsifier.freeze()
    zeros = model.fc.weight.detach() * 0 + 5.0  # type: ignore[operator, union-attr]
    with torch.no_grad():
        model.fc.weight.copy_(zeros)  # type: ignore[union-attr, operator]
    require_right(model, sparsifier)
    assert sparsifier.sparsity > 0.1
    model.load_state_dict(free)
    assert not sparsifier.frozen
    require_right(model, sparsifier)


def test_an_optimizer_step_alone_is_noticed() -> None:
    model, sparsifier = warm()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for _ in range(3):
        model(X).square().sum().backward()
        optimizer.step()
        require_right(model, sparsifier)


def test_a_copy_is_independent() -> None:
    model, sparsifier = warm()
    other = copy.deepcopy(model)
    assert kept_by(other) == set()
    before = model(X).detach()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    st3fx.Sparsifier(other).set_sparsity(0.9)
    assert torch.equal(model(X), before)
    require_right(other, st3fx.Sparsifier(other))
    require_right(model, sparsifier)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_graph_that_outlives_a_step_gets_an_error_as_the_dense_one(sparse: bool) -> None:
    model: nn.Module = Twice()
    sparsifier = None
    if sparse:
        model, sparsifier = warm()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loss = model(X).square().sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    if sparsifier is not None:
        sparsifier.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_graph_that_outlives_a_change_without_a_step_keeps_its_weights() -> None:
    """A forward between the two computes the weights anew, elsewhere."""
    model, _ = warm()
    x = X.clone().requires_grad_()
    output = model(x).square().sum()
    (expected,) = torch.autograd.grad(output, x, retain_graph=True)
    model.fc.weight.data.mul_(3)  # type: ignore[union-attr, operator]
    model(X)
    (actual,) = torch.autograd.grad(output, x)
    assert torch.equal(expected, actual)


@methods
def test_fused_optimizers_where_no_digest_tells_of_them(
    method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: they raise no versions, whoever steps them, between two steps too."""
    monkeypatch.setattr(cache, "digests", lambda tensors: [() for _ in tensors])
    model, sparsifier = warm(method)
    sparsifier.step()
    if sparsifier.target is not None:
        sparsifier.freeze()
    first = torch.optim.SGD(list(model.parameters())[:1], 0.01, fused=True)
    other = torch.optim.SGD(list(model.parameters())[1:], 0.01, fused=True)
    for _ in range(3):
        model(X).square().mean().backward()
        first.step()
        sparsifier.step()
        other.step()
        assert torch.equal(model(X), oracle(model, sparsifier)(X))


@pytest.mark.slow
def test_entries_die_with_their_model() -> None:
    gc.collect()
    model, sparsifier = warm()
    before = len(cache._ENTRIES)
    del model, sparsifier
    gc.collect()
    assert len(cache._ENTRIES) == before - 3


def test_fold_in_place_forgets() -> None:
    model, _ = warm()
    st3fx.fold(model)
    assert kept_by(model) == set(SITES)
    st3fx.fold(model, inplace=True)
    assert kept_by(model) == set()


def test_what_is_not_used_any_more_is_dropped() -> None:
    model, sparsifier = warm()
    sparsifier.step()
    assert kept_by(model) == set(SITES)
    sparsifier.step()
    assert kept_by(model) == set()


@pytest.mark.slow
def test_a_compiled_model_follows() -> None:
    model, sparsifier = st3fx.convert(Twice(), X, verify=False)
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    for sparsity in (0.3, 0.6, 0.9):
        sparsifier.set_sparsity(sparsity)
        compiled(X).sum().backward()
        with torch.no_grad():
            assert torch.equal(compiled(X), oracle(model, sparsifier)(X))
            model.fc.weight.data.neg_()  # type: ignore[union-attr, operator]
            assert torch.equal(compiled(X), oracle(model, sparsifier)(X))


@methods
def test_code_that_writes_into_an_effective_weight_spoils_none(method: Any) -> None:
    """Compiled code may: to it the result of an operator is free memory after its last use."""
    model, sparsifier = warm(method)
    for held in sparsifier.run.bound():
        with torch.no_grad():
            held.effective().fill_(7.0)
    require_right(model, sparsifier)


def test_in_inference_mode() -> None:
    model, sparsifier = warm()
    with torch.inference_mode():
        assert torch.equal(model(X), oracle(model, sparsifier)(X))
        model.fc.weight.data.neg_()  # type: ignore[union-attr, operator]
        assert torch.equal(model(X), oracle(model, sparsifier)(X))
        sparsifier.set_sparsity(0.7)
        assert torch.equal(model(X), oracle(model, sparsifier)(X))
    require_right(model, sparsifier)  # training goes on with what was computed there
    with torch.inference_mode():
        sparsifier.freeze()
    require_right(model, sparsifier)
    state = sparsifier.state_dict()
    with torch.inference_mode():
        sparsifier.load_state_dict(state)
    require_right(model, sparsifier)


def test_what_is_first_kept_in_inference_mode_can_be_trained_with() -> None:
    model, sparsifier = st3fx.convert(Twice(), X, verify=False)
    model(X)
    with torch.inference_mode():
        sparsifier.set_sparsity(0.5)
    assert kept_by(model) == set(SITES)
    require_right(model, sparsifier)


def test_weights_made_in_inference_mode() -> None:
    model, sparsifier = warm()
    with torch.inference_mode():
        state = Twice().state_dict()
    model.requires_grad_(False).load_state_dict(state, strict=False, assign=True)
    for _ in range(2):
        sparsifier.set_sparsity(0.5)
        with torch.no_grad():
            assert torch.equal(model(X), oracle(model, sparsifier)(X))
    assert kept_by(model) == set()


# Several models at once run one after the other.
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_functional_call_and_vmap() -> None:
    model, sparsifier = warm()
    with torch.no_grad():
        others = [
            {name: p * factor for name, p in model.named_parameters()} for factor in (0.5, 1.0, 3.0)
        ]
    stacked = {name: torch.stack([other[name] for other in others]) for name in others[0]}

    def call(parameters: dict[str, Tensor]) -> Any:
        return torch.func.functional_call(model, parameters, (X,))

    together = torch.vmap(call)(stacked)
    for index, other in enumerate(others):
        alone = copy.deepcopy(model)
        run_of(alone).take_over()  # else it would have thresholds of its own weights
        alone.load_state_dict(other, strict=False)
        expected = alone(X)
        assert torch.equal(call(other), expected)
        torch.testing.assert_close(together[index], expected)
    require_right(model, sparsifier)


def test_two_models_that_share_a_weight() -> None:
    first = Twice()
    second = copy.deepcopy(first)
    second.fc.weight = first.fc.weight
    one, driver = st3fx.convert(first, X, st3fx.ST3(0.5), verify=False, inplace=True)
    other, its_driver = st3fx.convert(second, X, GMP(0.9), verify=False, inplace=True)
    for _ in range(3):
        driver.set_sparsity(0.5)
        its_driver.set_sparsity(0.9)
        loss = one(X).square().sum() + other(X).square().sum()
        loss.backward()
        require_right(one, driver)
        require_right(other, its_driver)
        with torch.no_grad():
            first.fc.weight.mul_(1.1)


def test_threads() -> None:
    model, sparsifier = warm()
    plain = oracle(model, sparsifier)
    expected = plain(X)
    expected.square().sum().backward()
    latent(model).data.add_(0)
    sparsifier.set_sparsity(0.5)

    def work(_: int) -> bool:
        x = X.clone().requires_grad_()
        output = model(x)
        output.square().sum().backward()
        with torch.no_grad():
            return torch.equal(output, expected) and torch.equal(model(X), expected)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(40)))


def test_autocast_finds_them_too(computed: list[tuple[int, ...]]) -> None:
    model, _ = warm()
    computed.clear()
    with torch.autocast("cpu", torch.bfloat16):
        model(X).float().sum().backward()
    assert computed == []
    assert kept_by(model) == set(SITES)

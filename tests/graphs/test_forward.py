"""Compiled graphs, variants with guards, and the forward that chooses between them."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import st3fx
from st3fx.graphs.calls import CallSpec
from st3fx.graphs.forward import SparseForward, sparse_forwards
from st3fx.graphs.graph import CompiledGraph, Guard, Variant
from st3fx.modules.converted import enter, leave
from st3fx.modules.hooks import has_hooks
from tests.nets import Mixed, Net, image, sequence
from tests.parity import require_same

X = torch.randn(2, 3)


class Affine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
        self.scale = 2.0

    def forward(self, x: Tensor) -> Any:
        return self.inner(x) * self.scale


def graph_of(model: nn.Module) -> fx.Graph:
    return fx.Tracer().trace(model)


def test_a_compiled_graph_is_a_function_of_the_module() -> None:
    first, second = Affine(), Affine()
    run = CompiledGraph(graph_of(first))
    assert torch.equal(run(first, X), first(X))
    assert torch.equal(run(second, X), second(X))
    second.inner[0] = nn.Linear(3, 3)  # looked up at each call
    assert torch.equal(run(second, X), second(X))


def test_a_compiled_graph_survives_copy_and_pickle() -> None:
    model = Affine()
    run = CompiledGraph(graph_of(model))
    assert copy.deepcopy(run) is run
    other = pickle.loads(pickle.dumps(run))
    assert torch.equal(other(model, X), model(X))
    assert [n.target for n in other.graph.nodes] == [n.target for n in run.graph.nodes]


def test_a_pickled_graph_holds_no_weights() -> None:
    wide = nn.Sequential(nn.Linear(3, 5000))
    assert len(pickle.dumps(CompiledGraph(graph_of(wide)))) < 10_000


def variant_of(model: Affine, *guards: Guard) -> Variant:
    spec = CallSpec(model, (X,), {})
    return Variant("both", spec, graph_of(model), guards, [model, model.inner])


def test_a_variant_applies_while_its_guards_hold() -> None:
    model = Affine()
    variant = variant_of(model, Guard(model, "scale", 2.0))
    assert variant.tensors((X,), {}) == [X]
    model.scale = 3.0
    assert variant.tensors((X,), {}) is None
    model.scale = 2.0
    assert variant.tensors((X,), {}) is not None
    del model.scale
    assert variant.tensors((X,), {}) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "inner", nn.Sequential(nn.Linear(3, 3), nn.Tanh())),
        lambda m: m.inner.append(nn.ReLU()),
        lambda m: m.inner.__setitem__(1, nn.ReLU()),
        lambda m: m.inner.register_forward_hook(lambda *_: None),
        lambda m: m.inner.register_forward_pre_hook(lambda *_: None),
        lambda m: m.inner.register_full_backward_hook(lambda *_: None),
        lambda m: m.inner.register_full_backward_pre_hook(lambda *_: None),
    ],
)
def test_a_variant_stops_when_its_modules_are_rebuilt_or_hooked(change: Any) -> None:
    model = Affine()
    variant = variant_of(model)
    change(model)
    assert variant.tensors((X,), {}) is None


def test_a_hook_on_the_root_itself_runs_around_the_graph() -> None:
    model = Affine()
    variant = variant_of(model)
    model.register_forward_hook(lambda *_: None)
    assert has_hooks(model)
    assert variant.tensors((X,), {}) is not None


def test_an_unused_graph_does_not_keep_parameters_alive() -> None:
    model = Affine()
    assert not any(isinstance(v, Tensor) for v in vars(variant_of(model)).values())


def test_install_and_uninstall() -> None:
    model = Affine()
    forward = SparseForward("", model, [])
    enter(model, (), True)
    forward.install()
    assert sparse_forwards(model) == [forward]
    assert inspect.signature(model.forward) == inspect.signature(Affine().forward)
    assert torch.equal(model(X), Affine.forward(model, X))
    forward.uninstall()
    leave(model)
    assert type(model) is Affine
    assert "forward" not in model.__dict__


def test_a_forward_that_the_user_had_replaced_is_kept() -> None:
    model = Affine()
    own = lambda x: x * 7  # noqa: E731
    model.__dict__["forward"] = own
    forward = SparseForward("", model, [])
    enter(model, (), True)
    forward.install()
    assert torch.equal(model(X), X * 7)
    forward.uninstall()
    assert model.__dict__["forward"] is own


def test_an_instance_forward_is_converted_and_folded() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    inner = model[0]
    inner.__dict__["forward"] = lambda x: nn.functional.linear(x, inner.weight) * 2  # type: ignore[arg-type]
    converted, sparsifier = st3fx.convert(model, X, inplace=True)
    sparsifier.set_sparsity(0.5)
    expected = converted(X)
    folded = st3fx.fold(converted, inplace=True)
    require_same(expected, folded(X), "fold")


def test_parameters_stay_what_they_are_after_an_error() -> None:
    converted, sparsifier = st3fx.convert(Mixed(), sequence())
    sparsifier.set_sparsity(0.5)
    parameters = dict(converted.named_parameters())
    with pytest.raises(RuntimeError):
        converted(torch.randn(2, 5, 7))
    assert all(converted.get_parameter(name) is p for name, p in parameters.items())


def test_outer_forwards_come_first() -> None:
    converted, _ = st3fx.convert(Net(), image())
    names = [forward.name for forward in sparse_forwards(converted)]
    assert names == [""]


def test_the_signature_is_the_models() -> None:
    converted, _ = st3fx.convert(Net(), image())
    assert inspect.signature(converted.forward) == inspect.signature(Net().forward)


def test_threads_may_share_a_model_of_one_island() -> None:
    from concurrent.futures import ThreadPoolExecutor

    converted, sparsifier = st3fx.convert(Net(), image())
    sparsifier.set_sparsity(0.5)
    converted.eval()
    expected = converted(image())
    with ThreadPoolExecutor(4) as pool:
        for output in pool.map(converted, [image()] * 16):
            assert torch.equal(output, expected)


@pytest.mark.slow
def test_classes_do_not_share_a_compilers_limit() -> None:
    for _ in range(torch._dynamo.config.recompile_limit + 2):
        kind = type("Own", (nn.Sequential,), {"forward": lambda self, x: self[0](x)})
        model, sparsifier = st3fx.convert(kind(nn.Linear(3, 2)), X, verify=False)
        sparsifier.set_sparsity(0.5)
        compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
        assert torch.equal(compiled(X), st3fx.fold(model)(X))

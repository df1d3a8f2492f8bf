"""What holds at every stage: copies, files, dtypes, wrappers, compilers."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import st3fx
from tests.nets import MODELS, Net, image
from tests.parity import check, require_plain, require_same, require_zeros, run, step

models = pytest.mark.parametrize(("kind", "inputs"), MODELS.values(), ids=MODELS)


def sparse(kind: type[nn.Module], x: Tensor, sparsity: float = 0.6) -> tuple[nn.Module, Any]:
    model, sparsifier = st3fx.convert(kind(), x, total_steps=10)
    sparsifier.set_sparsity(sparsity)
    return model, sparsifier


@models
@pytest.mark.parametrize("verify", [False, True])
def test_the_contract(kind: type[nn.Module], inputs: Any, verify: bool) -> None:
    checked = check(kind(), inputs(), verify=verify, sparsity=0.8)
    assert checked.plan.verified is verify
    assert isinstance(checked.model, kind)
    assert type(checked.folded) is kind
    larger = inputs(7)
    require_same(checked.model.eval()(larger), checked.folded.eval()(larger), "another batch")


@models
def test_state_dict_holds_every_original_key(kind: type[nn.Module], inputs: Any) -> None:
    original = kind()
    model, _ = st3fx.convert(original, inputs())
    keys = list(model.state_dict())
    assert [key for key in keys if "st3fx" not in key] == list(original.state_dict())
    for key, value in original.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)


def saved(model: nn.Module) -> Any:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES: dict[str, Any] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved,
}


def targets(model: Any) -> list[list[str]]:
    return [[str(node.target) for node in g.graph.nodes] for g in model.st3fx_islands]


@models
@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_copies_are_whole_and_apart(kind: type[nn.Module], inputs: Any, make: Any) -> None:
    x = inputs()
    model, sparsifier = sparse(kind, x)
    other = make(model)
    assert type(other) is type(model)
    assert targets(other) == targets(model)
    require_same(step(model, (x,), {}, 0), step(other, (x,), {}, 0), "copy")
    before = run(model, (x,), {}, training=False, seed=0)
    st3fx.Sparsifier(other).set_sparsity(0.95)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    require_same(before, run(model, (x,), {}, training=False, seed=0), "the original of a copy")
    changed = run(other, (x,), {}, training=False, seed=0)
    assert not torch.equal(changed, before)
    require_same(changed, run(st3fx.fold(other), (x,), {}, training=False, seed=0), "folded copy")
    assert sparsifier.sparsity < 0.7


@models
def test_a_state_dict_moves_to_another_conversion(kind: type[nn.Module], inputs: Any) -> None:
    x = inputs()
    model, sparsifier = sparse(kind, x)
    other, its_sparsifier = st3fx.convert(kind(), x)
    other.load_state_dict(model.state_dict(), strict=True)
    assert its_sparsifier.thresholds == sparsifier.thresholds
    require_same(model.eval()(x), other.eval()(x), "output")


@models
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(kind: type[nn.Module], inputs: Any, dtype: torch.dtype) -> None:
    x = inputs().to(dtype)
    model, sparsifier = sparse(kind, inputs())
    oracle = kind()
    oracle.load_state_dict({k: v for k, v in model.state_dict().items() if "st3fx" not in k})
    model, oracle = model.to(dtype), oracle.to(dtype)
    oracle.load_state_dict(sparsifier.effective_weights(), strict=False)
    assert {weight.dtype for weight in sparsifier.effective_weights().values()} == {dtype}
    require_same(step(oracle, (x,), {}, 0), step(model, (x,), {}, 0), "training")
    folded = st3fx.fold(model)
    require_same(run(model, (x,), {}, training=False, seed=0),
                 run(folded, (x,), {}, training=False, seed=0), "fold")  # fmt: skip
    require_zeros(folded)


@models
def test_functional_call_replaces_latent_weights(kind: type[nn.Module], inputs: Any) -> None:
    x = inputs()
    model, _ = sparse(kind, x)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5).add_(0.01)
    parameters = {name: p.detach().clone() for name, p in other.named_parameters()}
    expected = run(other, (x,), {}, training=False, seed=0)
    torch.manual_seed(0)
    actual = torch.func.functional_call(model.eval(), parameters, (x,))
    require_same(expected.detach(), actual.detach(), "functional_call")


@models
def test_gradients_of_torch_func(kind: type[nn.Module], inputs: Any) -> None:
    x = inputs()
    model, _ = sparse(kind, x)
    model.eval()
    parameters = {name: p.detach().clone() for name, p in model.named_parameters()}

    def loss(values: dict[str, Tensor]) -> Any:
        return torch.func.functional_call(model, values, (x,)).square().sum()

    gradients = torch.func.grad(loss)(parameters)
    model(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        require_same(parameter.grad, gradients[name], f"functional gradient of {name}")


@pytest.mark.slow
@pytest.mark.parametrize("fullgraph", [True, False])
def test_compiled(fullgraph: bool) -> None:
    x = image()
    model, sparsifier = sparse(Net, x)
    model.eval()
    compiled: Any = torch.compile(model, fullgraph=fullgraph, backend="aot_eager")
    for sparsity in (0.6, 0.9):
        sparsifier.set_sparsity(sparsity)
        require_same(model(x), compiled(x), "compiled")
    require_same(model(x), st3fx.fold(compiled).eval()(x), "folded from the compiled")


@pytest.mark.slow
def test_fold_needs_no_st3fx_to_run(tmp_path: Path) -> None:
    x = image()
    model, _ = sparse(Net, x)
    folded = st3fx.fold(model)
    assert b"st3fx" not in pickle.dumps(folded)
    torch.save({"state": folded.state_dict(), "x": x, "y": folded.eval()(x)}, tmp_path / "f.pt")
    torch.save(folded, tmp_path / "model.pt")
    script = f"""
        import sys, torch
        torch.set_num_threads(1)
        from tests.nets import Net
        saved = torch.load({str(tmp_path / "f.pt")!r})
        net = Net()
        net.load_state_dict(saved["state"], strict=True)
        assert torch.equal(net.eval()(saved["x"]), saved["y"])
        whole = torch.load({str(tmp_path / "model.pt")!r}, weights_only=False)
        assert torch.equal(whole.eval()(saved["x"]), saved["y"])
        assert not any(name.startswith("st3fx") for name in sys.modules)
    """
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_fold_can_work_in_place() -> None:
    model, sparsifier = sparse(Net, image())
    weights = sparsifier.effective_weights()
    folded = st3fx.fold(model, inplace=True)
    assert folded is model
    require_plain(model)
    for name, weight in weights.items():
        assert torch.equal(model.get_parameter(name), weight)


def test_fold_after_a_training_step_leaves_the_model_in_training() -> None:
    x = image()
    model, sparsifier = sparse(Net, x)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (model(x).square().sum() + sparsifier.penalty()).backward()
        optimizer.step()
        sparsifier.step()
    folded = st3fx.fold(model)
    require_same(run(model, (x,), {}, training=False, seed=0),
                 run(folded, (x,), {}, training=False, seed=0), "fold")  # fmt: skip
    before = sparsifier.steps
    model.train()(x).sum().backward()
    sparsifier.step()
    assert sparsifier.steps == before + 1

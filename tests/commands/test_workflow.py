from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

import st3fx
from st3fx import methods
from st3fx.commands import convert
from st3fx.commands.convert import Converted, convert_spec, load_bundle, save_bundle
from st3fx.errors import BundleError, MethodError, SpecError
from st3fx.files.bundle import read_bundle, write_bundle
from st3fx.files.manifest import Recipe
from st3fx.loading.trust import Permit
from st3fx.plan.sites import IslandInfo
from tests.models import TINY, write

METHOD = methods.to_dict(methods.create("st3", sparsity=0.5))


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """For a model file of its own."""
    return Recipe(str(write(tmp_path, "model.py", TINY)), METHOD, total_steps=10)


def _equal(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(
        a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a
    )


@pytest.mark.parametrize("half", [False, True])
def test_a_trained_model_comes_back(recipe: Recipe, tmp_path: Path, half: bool) -> None:
    converted = convert_spec(recipe)
    sparsifier = st3fx.Sparsifier(converted.model)
    x = torch.randn(2, 3, 8, 8)
    optimizer = torch.optim.SGD(converted.model.parameters(), 0.1)
    for _ in range(6):
        converted.model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        sparsifier.step()
    if half:
        converted.model.bfloat16()
        x = x.bfloat16()
    save_bundle(converted.model, converted.recipe, tmp_path / "b")
    again = load_bundle(tmp_path / "b")
    assert _equal(again, converted.model)
    assert torch.equal(again.eval()(x), converted.model.eval()(x))
    if not half:
        assert st3fx.Sparsifier(again).sparsity == sparsifier.sparsity > 0
    # What was loaded can be saved again.
    save_bundle(again, read_bundle(tmp_path / "b").manifest.recipe, tmp_path / "c")
    assert _equal(load_bundle(tmp_path / "c"), again)


def test_graphs_that_verification_dropped_stay_dropped(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted, verified = convert_spec(recipe), []
    plan = dataclasses.replace(converted.plan, islands=(IslandInfo("conv", ("both",), 3),))
    for name, islands in (("same", converted.plan), ("dropped", plan)):
        write_bundle(
            tmp_path / name,
            recipe=converted.recipe,
            plan=islands,
            state_dict=converted.model.state_dict(),
            graph_text="",
        )

    def record(recipe: Recipe, *, verify: bool = True, permit: Permit) -> Converted:
        verified.append(verify)
        return convert_spec(recipe, verify=verify, permit=permit)

    monkeypatch.setattr(convert, "convert_spec", record)
    load_bundle(tmp_path / "same")
    assert verified == [False]
    load_bundle(tmp_path / "dropped")
    assert verified == [False, False, True]


def test_a_model_that_has_changed_elsewhere(recipe: Recipe, tmp_path: Path) -> None:
    """The model's file is the same, but one that it imports is not."""
    text = """
        import pathlib
        import torch
        from torch import nn
        def width(): return int((pathlib.Path(__file__).parent / "width").read_text())
        def build_model(): return nn.Linear(4, width())
        def example_inputs(): return torch.randn(3, 4)
    """
    path = write(tmp_path / "p", "model.py", text)
    write(tmp_path / "p", "width", "5")
    converted = convert_spec(dataclasses.replace(recipe, spec=str(path)))
    save_bundle(converted.model, converted.recipe, tmp_path / "b")
    write(tmp_path / "p", "width", "6")
    with pytest.raises(BundleError, match="was changed since the bundle was written: it has other"):
        load_bundle(tmp_path / "b")


def test_state_that_does_not_fit(recipe: Recipe, tmp_path: Path) -> None:
    converted = convert_spec(recipe)
    state = dict(converted.model.state_dict())
    del state["norm.weight"]
    write_bundle(
        tmp_path / "b",
        recipe=converted.recipe,
        plan=converted.plan,
        state_dict=state,
        graph_text="",
    )
    with pytest.raises(BundleError, match="was changed since the bundle was written: Runtime"):
        load_bundle(tmp_path / "b")


def test_refuses(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"Linear is not converted: call st3fx\.convert first"):
        save_bundle(nn.Linear(2, 3), recipe, tmp_path / "b")
    with pytest.raises(MethodError, match="no method 'nope'"):
        convert_spec(dataclasses.replace(recipe, method={"name": "nope"}))
    with pytest.raises(SpecError, match="no example inputs for torchvision:alexnet: give --input"):
        convert_spec(Recipe("torchvision:alexnet", METHOD))
    assert not (tmp_path / "b").exists()

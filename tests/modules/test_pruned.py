"""Masks of torch.nn.utils.prune: found, and multiplied into the weights once and for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import prune

from st3fx.commands.analyze import analyze
from st3fx.commands.fold import fold_spec
from st3fx.commands.models import Request
from st3fx.modules.unwrap import is_masked, make_permanent, masked

MODEL = """
import torch
from torch import nn
from torch.nn.utils import prune

def net():
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    prune.l1_unstructured(model[0], "weight", 0.75)
    return model

def example_inputs():
    return torch.randn(1, 8)
"""


def test_masks_are_found_and_made_permanent() -> None:
    model: Any = nn.Sequential(nn.Linear(8, 4), nn.Sequential(nn.Conv1d(1, 2, 3)))
    assert not is_masked(model)
    prune.l1_unstructured(model[0], "weight", 0.5)
    prune.random_unstructured(model[0], "weight", 0.5)  # a container of both
    prune.random_unstructured(model[0], "bias", 1)
    prune.ln_structured(model[1][0], "weight", 0.5, n=1, dim=0)
    assert [name for _, name in masked(model)] == ["weight", "bias", "weight"]
    x = torch.randn(3, 8)
    expected, zeros = model[0](x), int((model[0].weight == 0).sum())
    given: Any = make_permanent(model)
    assert id(given) == id(model)
    assert not is_masked(given)
    assert {name for name, _ in model.named_parameters()} == {
        "0.bias", "0.weight", "1.0.bias", "1.0.weight"
    }  # fmt: skip
    weight = model[0].weight
    assert torch.equal(model[0](x), expected)
    assert int((weight == 0).sum()) == zeros
    # No zero is a negative one.
    assert not torch.signbit(weight[weight == 0]).any()


def test_a_spec_with_masks_has_its_zeros(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MODEL)
    request = Request(f"{tmp_path / 'net.py'}:net")
    report = analyze(request)
    assert (report.weights, report.weight_nonzeros, report.parameters) == (40, 16, 46)
    result = fold_spec(request, tmp_path / "folded.safetensors")
    assert (result.elements, result.zeros) == (40, 24)
    state = load_file(tmp_path / "folded.safetensors")
    assert {"0.weight", "2.weight"} <= set(state)
    assert int((state["0.weight"] == 0).sum()) == 24

"""Every number of the reference implementation of ST-3, through the public path."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import st3fx

FILE = Path(__file__).parent / "data" / "st3_reference.npz"
LAYERS = (0, 1, 3)
METHODS = {"l1": st3fx.ST3(), "l1std": st3fx.ST3(normalize="sigma")}


@cache
def reference() -> dict[str, Any]:
    with np.load(FILE) as file:
        return {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}


CASES = [
    (seed, method, ratio)
    for seed in (0, 1)
    for method in METHODS
    for ratio in ("0.0", "0.5", "0.8", "0.9", "0.95", "0.99")
]


def network(seed: int) -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.Conv2d(8, 16, 1, bias=False),
        nn.Flatten(),
        nn.Linear(1024, 10, bias=False),
    )
    weights = {f"{layer}.weight": reference()[f"s{seed}/w{layer}"] for layer in LAYERS}
    model.load_state_dict(weights)
    return model


def test_no_case_of_the_file_is_left_out() -> None:
    kinds = ["y", *(f"{kind}{layer}" for kind in ("th", "eff", "g") for layer in LAYERS)]
    known = {f"s{s}/{method}/{ratio}/{kind}" for s, method, ratio in CASES for kind in kinds}
    known |= {f"s{s}/{name}" for s in (0, 1) for name in ("x", "w0", "w1", "w3")}
    assert known == set(reference())


@pytest.mark.parametrize(("seed", "method", "ratio"), CASES)
def test_it_computes_what_the_reference_computes(seed: int, method: str, ratio: str) -> None:
    def expected(name: str) -> Tensor:
        value: Tensor = reference()[f"s{seed}/{method}/{ratio}/{name}"]
        return value

    x = reference()[f"s{seed}/x"]
    model, sparsifier = st3fx.convert(network(seed), x, METHODS[method])
    sparsifier.set_sparsity(float(ratio))
    output = model(x)
    (output.square().sum() / 2).backward()
    torch.testing.assert_close(output, expected("y"), rtol=1e-5, atol=1e-5)
    effective = sparsifier.effective_weights()
    for layer in LAYERS:
        name = f"{layer}.weight"
        threshold = sparsifier.thresholds[name]
        if ratio == "0.0":
            assert threshold < 0
            assert expected(f"th{layer}").item() < 0
        else:
            assert threshold == pytest.approx(expected(f"th{layer}").item(), rel=1e-6, abs=0)
        torch.testing.assert_close(effective[name], expected(f"eff{layer}"), rtol=0, atol=1e-6)
        gradient = model.get_parameter(name).grad
        assert gradient is not None
        torch.testing.assert_close(gradient, expected(f"g{layer}"), rtol=1e-5, atol=1e-5)
    folded = st3fx.fold(model)
    for layer in LAYERS:
        weight = folded.get_parameter(f"{layer}.weight").detach()
        torch.testing.assert_close(weight, expected(f"eff{layer}"), rtol=0, atol=1e-6)

"""Weights of 2 of 4 lie as torch's semi-structured kernels read them: tried without a GPU.

The kernels themselves (``torch.sparse.to_sparse_semi_structured``) need one; the packing into half
of the values and two bits for each, which they multiply from, does not.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.sparse import _semi_structured_conversions as conversions

import st3fx


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(64, 32, 3)
        self.point = nn.Conv2d(32, 128, 1)
        self.fc = nn.Linear(128, 64)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc(self.point(self.conv(x)).mean((2, 3)))
        return result


def matrices(net: Any) -> dict[str, Tensor]:
    """What a kernel multiplies with: of a convolution, taps of all input channels side by side."""
    return {
        "conv": net.conv.weight.detach().permute(0, 2, 3, 1).flatten(1).half(),
        "point": net.point.weight.detach().flatten(1).half(),
        "fc": net.fc.weight.detach().half(),
    }


def packed_and_back(matrix: Tensor) -> Tensor:
    packed, places = conversions.sparse_semi_structured_from_dense_cutlass(matrix)
    assert packed.shape == (len(matrix), matrix.shape[1] // 2)
    result: Tensor = conversions.sparse_semi_structured_to_dense_cutlass(packed, places)
    return result


def test_a_folded_model_loses_nothing_when_it_is_packed() -> None:
    method = st3fx.ST3(granularity=st3fx.NM(2, 4))
    model, sparsifier = st3fx.convert(Net(), torch.randn(1, 64, 5, 5), method, total_steps=4)
    sparsifier.set_sparsity(0.5)
    for name, matrix in matrices(st3fx.fold(model)).items():
        left = matrix.unflatten(1, (-1, 4)).count_nonzero(2)
        assert int(left.max()) == 2, name
        assert torch.equal(packed_and_back(matrix), matrix), name


@pytest.mark.parametrize("granularity", ["unstructured", "block:4"])
def test_weights_that_are_pruned_otherwise_do(granularity: str) -> None:
    method = st3fx.methods.create("st3", sparsity=0.5, granularity=granularity)
    model, sparsifier = st3fx.convert(Net(), torch.randn(1, 64, 5, 5), method, total_steps=4)
    sparsifier.set_sparsity(0.5)
    for name, matrix in matrices(st3fx.fold(model)).items():
        assert not torch.equal(packed_and_back(matrix), matrix), name

"""``y += x`` in a graph writes to the tensor that the model writes to, and to no number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import st3fx
from tests.parity import check

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """Writes to a tensor that it goes on using under another name."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Any:
        y = z = self.fc(x)
        z += x
        z *= 2
        z -= 1
        z /= 3
        return self.out(y)


class Counts(Residual):
    """Changes a size that it goes on using."""

    def forward(self, x: Tensor) -> Any:
        rows = more = x.shape[0]
        more += 2
        more *= 3
        return self.out(self.fc(x)).sum() + torch.ones(rows).sum() / torch.ones(more).sum()


@pytest.mark.parametrize("kind", [Residual, Counts])
def test_it_is_one_graph_that_gives_the_same(kind: type[nn.Module]) -> None:
    checked = check(kind(), X, verify=True)
    assert list(checked.islands) == [""]


def test_no_second_tensor_is_made() -> None:
    model: Any = st3fx.convert(Residual(), X)[0]
    (island,) = model.st3fx_islands
    names = {getattr(node.target, "__name__", "") for node in island.graph.nodes}
    assert names >= {"iadd", "imul", "isub", "itruediv"}

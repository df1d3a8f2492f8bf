"""Values in words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx

from st3fx.passes.trace.words import expression


def words(compute: Any) -> str:
    graph = fx.Tracer().trace(compute)
    (output,) = (node for node in graph.nodes if node.op == "output")
    return expression(output.args[0])


@pytest.mark.parametrize(
    ("compute", "expected"),
    [
        (lambda x: x.shape[0] > 4, "x.shape[0] > 4"),
        (lambda x: x.size(1) % 2, "x.size(1) % 2"),
        (lambda x: (x.shape[0] + 1) * 2, "(x.shape[0] + 1) * 2"),
        (lambda x: x.shape[:-1], "x.shape[:-1]"),
        (lambda x: x.shape[1::2], "x.shape[1::2]"),
        (lambda x: (x + 1).shape, "(x + 1).shape"),
        (lambda x: x.dtype == torch.float16, "x.dtype == torch.float16"),
        (lambda x: torch.relu(x).dim(), "relu.dim()"),
        (lambda x: x.view(2, -1).transpose(0, 1)[:, -1], "x.view(2, -1).transpose(0, 1)[:, -1]"),
        (lambda x: (x + 1).sum() == (x - 1).sum(), "(x + 1).sum() == (x - 1).sum()"),
        (lambda x: x.shape[0] - (x.shape[1] - 1), "x.shape[0] - (x.shape[1] - 1)"),
        (lambda x: ((x.shape[0] + 1) % 2) == 0, "(x.shape[0] + 1) % 2 == 0"),
        (lambda x: (x.shape[0] + 1) - 1, "x.shape[0] + 1 - 1"),
        (lambda x: (x.shape[0] ** 2) ** 3, "(x.shape[0] ** 2) ** 3"),
        (lambda x: (x + 1 > 0) == (x > 0), "(x + 1 > 0) == (x > 0)"),
        (lambda x: (-x).dim() > 1, "(-x).dim() > 1"),
        (lambda x: x.shape[1:] == (4,), "x.shape[1:] == (4,)"),
        (lambda x: x.to(torch.bool).all(dim=1), "x.to(torch.bool).all(dim=1)"),
    ],
)
def test_expressions(compute: Any, expected: str) -> None:
    assert words(compute) == expected


def test_a_long_chain_is_called_by_a_name() -> None:
    assert len(words(lambda x: (((((((x + 1) * 2) + 1) * 2) + 1) * 2) + 1) * 2)) < 60

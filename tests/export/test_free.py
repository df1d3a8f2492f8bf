"""Sizes beside the batch that are free in an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import st3fx
from st3fx.errors import ExportError


class Text(nn.Module):
    """An attention block over tokens with a padding mask, as a language model has one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, 20)

    def forward(self, tokens: Tensor, mask: Tensor) -> Any:
        x = self.embed(tokens)
        scores = self.query(x) @ self.key(x).transpose(1, 2)
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        seen = causal & mask.bool()[:, None, :]
        return self.head(scores.masked_fill(~seen, -1e9).softmax(-1) @ self.value(x))


class Positions(nn.Module):
    """Learned positions for one length alone."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.randn(6, 8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        return self.head(x + self.place)


TOKENS = torch.randint(0, 20, (2, 6), generator=torch.Generator().manual_seed(1))
CALL = (TOKENS, torch.ones(2, 6, dtype=torch.int64))
FREE = {"tokens": {1: "sequence"}, "mask": {1: "sequence"}}


@pytest.mark.slow
def test_a_sequence_of_any_length(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, sparsifier = st3fx.convert(Text(), CALL)
    sparsifier.set_sparsity(0.5)
    folded = st3fx.fold(model)
    result = st3fx.export_onnx(folded, CALL, tmp_path / "text.onnx", free=FREE)
    assert [port.shape for port in result.inputs] == [("batch", "sequence")] * 2
    assert [row.inputs for row in result.parity][-2:] == ["sequence 5", "sequence 9"]
    session = onnxruntime.InferenceSession(tmp_path / "text.onnx")
    for batch, length in ((1, 2), (3, 17)):
        tokens = torch.randint(0, 20, (batch, length))
        mask = torch.ones_like(tokens)
        mask[0, -1] = 0
        (given,) = session.run(None, {"tokens": tokens.numpy(), "mask": mask.numpy()})
        wanted = folded.eval()(tokens, mask).detach().numpy()
        assert np.abs(given - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.slow
def test_it_is_fixed_unless_it_is_asked_for(tmp_path: Path) -> None:
    result = st3fx.export_onnx(Text(), CALL, tmp_path / "text.onnx")
    assert [port.shape for port in result.inputs] == [("batch", 6)] * 2


@pytest.mark.parametrize(
    ("free", "message"),
    [
        ({"token": {1: "sequence"}}, "token:1=sequence: the inputs are tokens, mask"),
        ({"tokens": {0: "sequence"}}, r"give a dimension from 1 to 1 of \(2, 6\)"),
        ({"tokens": {2: "sequence"}}, "give a dimension from 1 to 1"),
        ({"tokens": {-1: "sequence"}}, "give a dimension from 1 to 1"),
        ({"tokens": {0: "batch", 1: "batch"}}, "another dimension of tokens is batch already"),
        ({"tokens": {1: "batch"}, "mask": {0: "batch"}}, "batch is 6 elsewhere in the example"),
        ({"tokens": {1: "a b"}}, "give a name of letters"),
    ],
)
def test_mistakes(free: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        st3fx.export_onnx(Text(), CALL, tmp_path / "text.onnx", free=free)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_model_of_one_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError):
        st3fx.export_onnx(
            Positions(), torch.randn(2, 6, 8), tmp_path / "x.onnx", free={"x": {1: "sequence"}}
        )
    assert not list(tmp_path.iterdir())


def test_sizes_of_one_name_are_equal(tmp_path: Path) -> None:
    call = (TOKENS, torch.ones(2, 5, dtype=torch.int64))
    with pytest.raises(ExportError, match="sequence is 6 elsewhere in the example"):
        st3fx.export_onnx(Text(), CALL[:1] + call[1:], tmp_path / "x.onnx", free=FREE)

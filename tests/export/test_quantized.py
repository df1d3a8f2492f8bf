"""A quantized file is written with our kernels only where they gain and agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from st3fx import runtime
from st3fx.errors import ExportError
from st3fx.export import quantized
from st3fx.export.quantized import write_lowered
from st3fx.passes.onnx.quant_kernels import lower
from st3fx.runtime.costs import QuantCosts
from st3fx.runtime.inference import HINT
from tests.passes.onnx.quant_kernels.nets import Net


def net() -> Net:
    return Net("N", 64, 28, 28)


def written(folder: Path, *, gains: bool = True) -> tuple[Path, dict[str, np.ndarray]]:
    """A file of two layers with many zeros, or of one that is too small to gain."""
    made = net() if gains else Net("N", 4, 4, 4)
    width, kernel = (64, 3) if gains else (4, 1)
    inner = made.q(made.op("Relu", made.conv(made.q("x"), width, width, kernel)), 0.03, 0)
    model = made.model(made.q(made.conv(inner, width, width, kernel), 0.03, 110))
    path = folder / "net.int8.onnx"
    onnx.save(model, path)
    return path, made.feeds()


@pytest.fixture(autouse=True)
def dear_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of two in five blocks gain."""
    costs = QuantCosts(dense=2e-11)
    monkeypatch.setattr(lower, "quant_costs", lambda: costs)


def test_a_file_with_our_operators(tmp_path: Path) -> None:
    given, feeds = written(tmp_path)
    result = write_lowered(given, tmp_path / "out.onnx", [feeds])
    assert result.path == tmp_path / "out.onnx"
    assert result.kernels.ours == len(result.kernels.rows) == 2
    assert result.size == result.path.stat().st_size < 0.8 * result.given_size
    assert result.difference is not None
    assert result.difference < 0.01
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.int8.onnx", "out.onnx"]
    assert runtime.session(result.path, 1).run(None, feeds)[0].shape == (2, 64, 28, 28)


def test_a_session_without_the_library_says_what_is_missing(tmp_path: Path) -> None:
    given, _ = written(tmp_path)
    result = write_lowered(given, tmp_path / "out.onnx")
    with pytest.raises(Exception, match="register_custom_ops_library") as caught:
        ort.InferenceSession(str(result.path), providers=["CPUExecutionProvider"])
    assert HINT.partition(",")[0] in str(caught.value)


def test_nothing_is_written_where_no_layer_gains(tmp_path: Path) -> None:
    given, feeds = written(tmp_path, gains=False)
    result = write_lowered(given, tmp_path / "out.onnx", [feeds])
    assert result.path is None
    assert [row.is_ours for row in result.kernels.rows] == [False, False]
    assert not (tmp_path / "out.onnx").exists()


def test_a_file_that_differs_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, feeds = written(tmp_path)
    monkeypatch.setattr(quantized, "_difference", lambda *_: 1.0)
    monkeypatch.setattr(quantized, "_FACTOR", 0.5)
    (tmp_path / "out.onnx").write_text("as it was")
    with pytest.raises(ExportError, match="differs by 1 of its largest magnitude"):
        write_lowered(given, tmp_path / "out.onnx", [feeds])
    assert (tmp_path / "out.onnx").read_text() == "as it was"
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_no_quantized_file(tmp_path: Path) -> None:
    given, _ = written(tmp_path)
    result = write_lowered(given, tmp_path / "out.onnx")
    assert result.path is not None
    (tmp_path / "text.onnx").write_text("text")
    for path, reason in (
        (tmp_path / "none.onnx", "no file"),
        (tmp_path / "text.onnx", "not an ONNX file"),
        (result.path, "has sparse kernels already"),
    ):
        with pytest.raises(ExportError, match=reason):
            write_lowered(path, tmp_path / "other.onnx")


_NAN, _INF = np.float32("nan"), np.float32("inf")


@pytest.mark.parametrize(
    ("ours", "exact", "expected"),
    [
        ([1.0, 2.0], [1.0, 4.0], 0.5),
        ([_NAN, 4.0], [1.0, 4.0], np.inf),
        ([1.0, 4.0], [_NAN, 4.0], np.inf),
        ([_NAN, 2.0], [_NAN, 4.0], 0.5),  # what is NaN in both hides nothing of the others
        ([-_INF, 2.0], [-_INF, 4.0], 0.5),
        ([_INF, 4.0], [-_INF, 4.0], np.inf),
        ([[1.0]], [1.0], np.inf),
        ([3], [7], 0.0),  # a label: one step of rounding exchanges two
    ],
)
def test_the_difference_of_outputs(ours: list[float], exact: list[float], expected: float) -> None:
    kind = np.int64 if exact == [7] else np.float32
    found = quantized._difference([np.array(ours, kind)], [np.array(exact, kind)])
    assert found == expected

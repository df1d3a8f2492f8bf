"""Export with sparse kernels: both files, checked; a miss or a missing library leaves nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import st3fx
from st3fx import native, runtime
from st3fx.cli import main
from st3fx.errors import ExportError
from st3fx.export.export_result import ExportResult
from st3fx.runtime.layout import SparseWeights, compress
from tests.passes.onnx.graphs import SPARSE_WINS

SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.inner = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.inner(x))
        return self.head(x.mean((2, 3)))

def build_model():
    torch.manual_seed(0)
    return Net()

def example_inputs():
    return torch.randn(2, 3, 20, 20)
"""


class Net(nn.Module):
    """A residual block; ``flat`` builds the size of its images in."""

    def __init__(self, *, flat: bool = False) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.flat = flat
        self.head = nn.Linear(16 * 400 if flat else 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.inner(x))
        result: Tensor = self.head(x.flatten(1) if self.flat else x.mean((2, 3)))
        return result


@torch.no_grad()
def net(*, flat: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = Net(flat=flat)
    for weight in (model.inner.weight, model.head.weight):
        weight.mul_(torch.rand(weight.shape) < 0.1)
    return model.eval()


@pytest.fixture(autouse=True)
def sparse_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small layers gain nothing: here they are to be sparse all the same."""
    monkeypatch.setattr("st3fx.export.sparse.load_calibration", lambda: SPARSE_WINS)


def export(path: Path, model: nn.Module | None = None, **options: Any) -> ExportResult:
    images = torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(1))
    return st3fx.export_onnx(model or net(), images, path, sparse_kernels=True, **options)


@pytest.mark.slow
def test_both_files_compute_the_same_at_any_size(tmp_path: Path) -> None:
    result = export(tmp_path / "model.onnx", batch_sizes=(1, 3, 5))
    sparse = result.sparse
    assert sparse is not None
    assert result.files == (tmp_path / "model.onnx", tmp_path / "model.plain.onnx")
    assert sorted(tmp_path.iterdir()) == list(result.files)
    assert sparse.path == result.path == tmp_path / "model.onnx"
    assert result.plain == tmp_path / "model.plain.onnx"
    assert domains(result.path) == {"", "st3fx"}
    assert domains(result.plain) == {""}
    assert (sparse.kernels.sparse, len(sparse.kernels.rows)) == (3, 3)
    assert sparse.open_inputs == ("x",)
    assert sparse.tolerance == 1e-5
    labels = [(row.inputs, row.batch) for row in sparse.parity]
    assert labels == [
        ("given", 2), ("random", 1), ("random", 3), ("random", 5), ("given, 23x23", 2)
    ]  # fmt: skip
    assert all(0 <= row.relative <= 1e-5 for row in sparse.parity)
    assert [size.name for size in result.sizes][1:] == ["model.plain.onnx", "model.onnx"]
    session = runtime.session(sparse.path, threads=1)
    model = net()
    for shape in ((1, 3, 20, 20), (4, 3, 31, 17)):
        x = torch.randn(shape)
        (given,) = session.run(None, {"x": x.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(given, model(x).numpy(), atol=1e-5)


@pytest.mark.slow
def test_a_session_without_the_library_says_how_to_get_it(tmp_path: Path) -> None:
    result = export(tmp_path / "model.onnx", verify=False)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    words = r"options\.register_custom_ops_library\(st3fx\.runtime\.library\(\)\)"
    with pytest.raises(Exception, match=words):
        ort.InferenceSession(result.path, options)
    options.register_custom_ops_library(runtime.library())
    ort.InferenceSession(result.path, options)


def domains(path: Path) -> set[str]:
    return {node.domain for node in onnx.load(path).graph.node}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "plain"),
    [
        ("sparse.onnx", "sparse.plain.onnx"),
        ("model.sparse.onnx", "model.onnx"),
        ("a.b.onnx", "a.b.plain.onnx"),
        ("model", "model.plain.onnx"),
        (".sparse.onnx", ".onnx"),
    ],
)
def test_the_name_that_was_asked_for_has_what_was_asked_for(
    tmp_path: Path, asked: str, plain: str
) -> None:
    result = export(tmp_path / asked, verify=False)
    assert (result.path, result.plain) == (tmp_path / asked, tmp_path / plain)
    assert domains(tmp_path / asked) == {"", "st3fx"}
    assert domains(tmp_path / plain) == {""}
    # A plain export to that name replaces it.
    st3fx.export_onnx(net(), torch.randn(2, 3, 20, 20), tmp_path / asked, verify=False)
    assert domains(tmp_path / asked) == {""}


@pytest.mark.slow
def test_the_result_as_json(tmp_path: Path) -> None:
    data = json.loads(json.dumps(export(tmp_path / "model.onnx").to_dict()))
    assert data["sparse"]["path"] == data["path"] == str(tmp_path / "model.onnx")
    assert data["plain"] == str(tmp_path / "model.plain.onnx")
    assert data["sparse"]["kernels"]["rows"][1]["name"] == "inner.weight"
    assert data["inputs"][0]["shape"] == ["batch", 3, 20, 20]  # of the plain file


@pytest.mark.slow
def test_a_size_that_is_built_in_stays(tmp_path: Path) -> None:
    result = export(tmp_path / "model.onnx", net(flat=True))
    assert result.sparse is not None
    assert result.sparse.open_inputs == ()
    assert result.sparse.kernels.sparse == 3
    shape = onnx.load(result.sparse.path).graph.input[0].type.tensor_type.shape
    assert [dim.dim_value for dim in shape.dim][1:] == [3, 20, 20]


@pytest.mark.slow
def test_not_compared_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the library is not needed either."""
    monkeypatch.setattr(native, "library_path", lambda: tmp_path / "none.so")
    native.load.cache_clear()
    result = export(tmp_path / "model.onnx", verify=False)
    native.load.cache_clear()
    assert result.sparse is not None
    assert (result.sparse.parity, result.sparse.open_inputs) == ((), ())


def test_without_the_library_the_plain_file_is_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "library_path", lambda: tmp_path / "none.so")
    native.load.cache_clear()
    with pytest.raises(
        ExportError, match="Without --sparse-kernels the plain ONNX file is written"
    ):
        export(tmp_path / "model.onnx")
    native.load.cache_clear()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_miss_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = compress

    def wrong(rows: Any) -> SparseWeights:
        packed = right(rows)
        packed.values[::7] *= 1.001
        return packed

    monkeypatch.setattr("st3fx.passes.onnx.sparse_kernels.emit.compress", wrong)
    with pytest.raises(ExportError, match="ONNX Runtime and PyTorch differ in output"):
        export(tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_dead_channels_go_by_default(tmp_path: Path) -> None:
    model = net()
    with torch.no_grad():
        model.inner.weight[3] = 0  # type: ignore[operator, union-attr]
    assert export(tmp_path / "a.onnx", model).channels is not None
    assert export(tmp_path / "b.onnx", model, eliminate_dead_channels=False).channels is None


@pytest.mark.slow
def test_half_precision_has_no_sparse_kernels(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(20, 5)).half()
    result = st3fx.export_onnx(
        model, torch.randn(2, 20).half(), tmp_path / "model.onnx", sparse_kernels=True
    )
    assert result.sparse is not None
    assert result.sparse.kernels.sparse == 0
    assert result.sparse.tolerance == 1e-2
    # Nothing of ours is in it: any session opens it.
    ort.InferenceSession(str(result.sparse.path), providers=["CPUExecutionProvider"])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(SOURCE)
    return tmp_path


@pytest.mark.slow
def test_from_the_command_line(folder: Path) -> None:
    command = ["export", "net.py", "--sparsity", "0.8", "--sparse-kernels"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert "3 of 3 layers get sparse kernels" in done.stdout
    assert "height and width of x are free in it" in done.stdout
    assert "constants: test" in done.stdout
    assert "net.onnx is the same model in ONNX's own operators alone" in done.stdout
    assert (domains(Path("net.sparse.onnx")), domains(Path("net.onnx"))) == ({"", "st3fx"}, {""})
    (row,) = (line for line in done.stdout.splitlines() if line.lstrip().startswith("inner "))
    assert row.split()[1:3] == ["Conv", "16x16x3x3"]
    assert row.split()[-1] == "sparse"
    assert Path("net.sparse.onnx").stat().st_size < Path("net.onnx").stat().st_size
    # Both are counted alike, with no size given.
    counted = [
        json.loads(CliRunner().invoke(main, ["analyze", name, "--json"]).stdout)
        for name in ("net.onnx", "net.sparse.onnx")
    ]
    for key in ("inputs", "dense_macs", "sparse_macs", "weight_nonzeros", "weights"):
        assert counted[0][key] == counted[1][key], key
    again = CliRunner().invoke(main, [*command, "--force", "-o", "other.onnx"])
    assert again.exit_code == 0
    assert domains(Path("other.onnx")) == {"", "st3fx"}
    Path("other.onnx").unlink()
    refused = CliRunner().invoke(main, [*command, "-o", "other.onnx"])
    assert refused.exit_code == 2
    assert "other.plain.onnx exists" in refused.stderr


@pytest.mark.slow
def test_a_benchmark_has_the_row(folder: Path) -> None:
    command = ["bench", "net.py", "--sparsity", "0.8", "--iterations", "3", "-w", "0", "--json"]
    data = json.loads(CliRunner().invoke(main, command).stdout)
    assert [row["name"] for row in data["rows"]] == ["dense", "folded", "sparse kernels"]
    assert [row["skips_zeros"] for row in data["rows"]] == [False, False, True]
    assert any("that the multiplications left allow" in sentence for sentence in data["verdict"])
    data = json.loads(CliRunner().invoke(main, [*command, "--no-sparse-kernels"]).stdout)
    assert [row["name"] for row in data["rows"]] == ["dense", "folded"]
    assert "--no-sparse-kernels" in data["command"]
    # A file with sparse operators: its dense counterpart is of ONNX's own.
    CliRunner().invoke(main, ["export", "net.py", "--sparsity", "0.8", "--sparse-kernels"])
    files = ["net.sparse.onnx", "--iterations", "3", "-w", "0", "--json"]
    data = json.loads(CliRunner().invoke(main, ["bench", *files]).stdout)
    assert [(row["name"], row["skips_zeros"]) for row in data["rows"]] == [
        ("dense", False), ("net.sparse.onnx", True)
    ]  # fmt: skip


@pytest.mark.slow
def test_a_benchmark_says_why_there_is_no_row(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "library_path", lambda: folder / "none.so")
    native.load.cache_clear()
    command = ["bench", "net.py", "--sparsity", "0.8", "--iterations", "3", "-w", "0", "--json"]
    data = json.loads(CliRunner().invoke(main, command).stdout)
    native.load.cache_clear()
    assert [row["name"] for row in data["rows"]] == ["dense", "folded"]
    assert (
        "No sparse kernels, which skip zeros, for net: st3fx was installed" in data["verdict"][-1]
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [("bench", "missing argument"), ("bench net.py --calibrate", "takes no MODEL")],
)
def test_calibration_and_models_exclude_each_other(folder: Path, args: str, message: str) -> None:
    done = CliRunner().invoke(main, args.split())
    assert (done.exit_code, message in done.stderr) == (2, True)

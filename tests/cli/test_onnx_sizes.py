"""Inputs of ONNX files whose sizes the file does not say: given to ``analyze`` and ``bench``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from st3fx.cli import main


def write(path: str, sizes: list[Any], *, scale: bool = True) -> None:
    """``x @ w · scale``, of a scale without dimensions, or ``x @ w``."""
    ports = {"x": sizes} | ({"scale": []} if scale else {})
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    if scale:
        nodes.append(helper.make_node("Mul", ["y", "scale"], ["z"]))
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in ports.items()],
        [helper.make_tensor_value_info("z" if scale else "y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.eye(3, 5, dtype=np.float32), "w")],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def analyze(*args: str) -> dict[str, Any]:
    done = CliRunner().invoke(main, ["analyze", *args, "--json"])
    assert done.exit_code == 0, done.output
    data: dict[str, Any] = json.loads(done.stdout)
    return data


def bench(*args: str) -> dict[str, Any]:
    quick = ("--iterations", "3", "-w", "0", "-ncores", "1", "--json")
    done = CliRunner().invoke(main, ["bench", *args, *quick])
    assert done.exit_code == 0, done.output
    data: dict[str, Any] = json.loads(done.stdout)
    return data


UNKNOWN = [[-1, -1, 3], ["batch", "rows", 3], [None, None, 3], ["n", -1, 3]]


@pytest.mark.parametrize("sizes", UNKNOWN, ids=str)
def test_sizes_that_are_not_known_are_given(sizes: list[Any]) -> None:
    write("m.onnx", sizes)
    refused = CliRunner().invoke(main, ["analyze", "m.onnx"])
    assert refused.exit_code == 2
    assert "give its sizes by --input" in refused.stderr.splitlines()[-1]
    data = analyze("m.onnx", "-i", "2x7x3", "-i", "scalar")
    assert data["inputs"] == [[2, 7, 3], []]
    assert (data["dense_macs"], data["sparse_macs"]) == (2 * 7 * 15, 2 * 7 * 3)
    # The number of inputs is said where it is not theirs.
    refused = CliRunner().invoke(main, ["analyze", "m.onnx", "-i", "2x7x3"])
    assert refused.exit_code == 2
    assert "scale" in refused.stderr.splitlines()[-1]


@pytest.mark.parametrize("sizes", UNKNOWN[:2], ids=str)
def test_they_are_given_to_a_benchmark(sizes: list[Any]) -> None:
    write("m.onnx", sizes)
    refused = CliRunner().invoke(main, ["bench", "m.onnx", "-ncores", "1"])
    assert refused.exit_code == 2
    assert "as 1xNx3 with a number for each N" in refused.stderr.splitlines()[-1]
    data = bench("m.onnx", "-i", "2x7x3", "-i", "scalar")
    assert [row["batch"] for row in data["rows"]] == [2, 2]
    assert "-i 2x7x3 -i scalar" in data["command"]


def test_an_input_without_dimensions_needs_no_size() -> None:
    write("m.onnx", ["n", 3])
    assert analyze("m.onnx")["inputs"] == [[1, 3], []]
    assert analyze("m.onnx", "--batch", "4")["inputs"] == [[4, 3], []]
    assert [row["batch"] for row in bench("m.onnx", "-b", "4")["rows"]] == [4, 4]
    write("alone.onnx", [-1, 3], scale=False)
    assert analyze("alone.onnx", "--batch", "5")["dense_macs"] == 5 * 15

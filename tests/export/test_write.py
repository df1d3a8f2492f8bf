"""Files: one or two, sparse or not, and the checks that read them again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

from st3fx.errors import ExportError
from st3fx.export.write import ONE_FILE, write_model
from st3fx.export.zeros import check_zeros, initializers


def _linear(share: float = 0.9) -> nn.Linear:
    linear = nn.Linear(100, 50)
    with torch.no_grad():
        linear.weight[torch.rand(50, 100) < share] = 0
        linear.weight[0, 0], linear.weight[0, 1] = -0.0, 1e-42
    return linear


def _graph(linear: nn.Linear) -> ir.Model:
    text = """<ir_version: 10, opset_import: ["" : 18]>
        g (float[N, 100] x) => (float[N, 50] y) { y = Gemm <transB = 1> (x, weight, bias) }"""
    proto = onnx.parser.parse_model(text)
    for name, parameter in linear.named_parameters():
        array = onnx.numpy_helper.from_array(parameter.detach().numpy(), name)
        proto.graph.initializer.append(array)
    return ir.from_proto(proto)


def _check_run(path: Path, linear: nn.Linear) -> None:
    x = torch.randn(4, 100)
    session = onnxruntime.InferenceSession(path)
    wanted = linear(x).detach().numpy()
    np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], wanted, atol=1e-5)


def test_one_file(tmp_path: Path) -> None:
    linear, path = _linear(), tmp_path / "m.onnx"
    assert write_model(_graph(linear), path) == 0
    assert list(tmp_path.iterdir()) == [path]
    assert ONE_FILE == 1_500_000_000
    _check_run(path, linear)


@pytest.mark.parametrize("sparse", [False, True])
def test_large_weights_are_beside_the_file(tmp_path: Path, sparse: bool) -> None:
    linear, path = _linear(), tmp_path / "m.onnx"
    assert write_model(_graph(linear), path, sparse=sparse, limit=3_000) == sparse
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"] or sparse
    assert sparse or path.stat().st_size < 1_000
    onnx.checker.check_model(str(path))
    _check_run(path, linear)
    check_zeros(path, linear, ["weight", "bias"], set())


def test_sparse_initializers_hold_every_bit(tmp_path: Path) -> None:
    linear, path = _linear(), tmp_path / "m.onnx"
    assert write_model(_graph(linear), path, sparse=True) == 1
    proto = onnx.load(path)
    (tensor,) = proto.graph.sparse_initializer
    assert [item.name for item in proto.graph.initializer] == ["bias"]
    # The negative zero is a value; what is left out has no bit set.
    held = int(linear.weight.count_nonzero()) + 1
    assert list(tensor.indices.dims) == list(tensor.values.dims) == [held]
    stored = initializers(proto)["weight"]
    assert stored.tobytes() == linear.weight.detach().numpy().tobytes()
    onnx.checker.check_model(str(path))
    _check_run(path, linear)


def test_dense_weights_are_not_stored_as_sparse(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    assert write_model(_graph(_linear(share=0.6)), path, sparse=True) == 0
    assert not onnx.load(path).graph.sparse_initializer


def test_zeros_are_counted_in_the_file(tmp_path: Path) -> None:
    linear, path = _linear(), tmp_path / "m.onnx"
    write_model(_graph(linear), path)
    zeros = check_zeros(path, linear, ["weight", "bias"], set())
    assert (zeros.tensors, zeros.elements) == (2, 5_000)
    assert zeros.zeros == int((linear.weight == 0).sum())
    with torch.no_grad():
        linear.weight[3] = 0.0
    with pytest.raises(ExportError, match=r"weight \(50, 100\) has 4,\d+ zeros, but 4,\d+ in the"):
        check_zeros(path, linear, ["weight", "bias"], set())


def test_a_lost_weight_is_noticed(tmp_path: Path) -> None:
    linear, path = _linear(), tmp_path / "m.onnx"
    graph = _graph(linear)
    weight = graph.graph.initializers["weight"]
    weight.name = "val_3"
    write_model(graph, path)
    # The optimiser stores equal tensors once, under one of their names: the values decide.
    assert check_zeros(path, linear, ["weight"], set()).tensors == 1
    assert weight.const_value is not None
    weight.const_value = ir.tensor(weight.const_value.numpy().T.copy(), name="val_3")
    write_model(graph, path)
    with pytest.raises(ExportError, match=r"weight \(50, 100\) is not in the ONNX file as it was"):
        check_zeros(path, linear, ["weight"], set())


def test_biases_that_are_zero_or_folded_may_differ(tmp_path: Path) -> None:
    linear, path = _linear(), tmp_path / "m.onnx"
    write_model(_graph(linear), path)
    with torch.no_grad():
        linear.bias.zero_()
    with pytest.raises(ExportError, match=r"bias \(50,\) has 50 zeros, but 0 in the ONNX file"):
        check_zeros(path, linear, ["bias"], set())
    assert check_zeros(path, linear, ["bias"], {"bias"}).tensors == 0


def test_a_weight_without_values_is_named(tmp_path: Path) -> None:
    linear, path = nn.Linear(100, 50), tmp_path / "m.onnx"
    nn.init.zeros_(linear.weight)
    write_model(_graph(linear), path)
    assert check_zeros(path, linear, ["weight", "bias"], set()).empty == ("weight",)

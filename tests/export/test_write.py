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
from st3fx.export.write import ONE_FILE, weights_beside, write_model
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


def test_sparse_initializers_hold_every_value(tmp_path: Path) -> None:
    linear, path = _linear(), tmp_path / "m.onnx"
    assert write_model(_graph(linear), path, sparse=True) == 1
    proto = onnx.load(path)
    (tensor,) = proto.graph.sparse_initializer
    assert [item.name for item in proto.graph.initializer] == ["bias"]
    held = int(linear.weight.count_nonzero())
    assert list(tensor.indices.dims) == list(tensor.values.dims) == [held]
    stored = initializers(proto)["weight"]
    assert np.array_equal(stored, linear.weight.detach().numpy())
    assert not np.signbit(stored[stored == 0]).any()
    onnx.checker.check_model(str(path))
    _check_run(path, linear)


def test_masked_weights_are_stored_as_sparse(tmp_path: Path) -> None:
    """A product with a mask leaves -0.0 where a weight was negative."""
    linear, path = nn.Linear(100, 50), tmp_path / "m.onnx"
    with torch.no_grad():
        linear.weight.mul_(torch.rand(50, 100) < 0.1)
    assert linear.weight[linear.weight == 0].signbit().any()
    assert write_model(_graph(linear), path, sparse=True) == 1
    _check_run(path, linear)


def test_types_of_a_file_with_sparse_initializers_can_be_inferred(tmp_path: Path) -> None:
    linear, path = _linear(), tmp_path / "m.onnx"
    graph = _graph(linear)
    graph.graph.initializers["weight"].shape = ir.Shape([50, 100])
    graph.graph.initializers["weight"].dtype = ir.DataType.FLOAT
    assert "weight" in {value.name for value in ir.to_proto(graph).graph.value_info}
    write_model(graph, path, sparse=True)
    inferred = onnx.shape_inference.infer_shapes(onnx.load(path))
    assert not {value.name for value in inferred.graph.value_info} & {"weight"}


def test_shapes_between_nodes_are_left_out_where_nothing_reads_them(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 18, "st3fx" : 1]>
        g (float[N, 4] x, bool c) => (float[N, 4] y) <float[N, 4] a, float[N, 4] b, float[N, 4] d,
            float[N, 4] e, float[3, 4] f, float[N, 4] k> {
            a = Relu(x)
            b = Relu(a)
            d = st3fx.ImageAdd(b, b)
            e = Relu(d)
            f = If(c) <then_branch = g1 () => (float[3, 4] p) <float[3, 4] h, float[N, 4] i> {
                    h = Relu(e) i = Relu(e) p = Add(h, i) },
                else_branch = g2 () => (float[3, 4] q) { q = Relu(e) }>
            k = If(c) <then_branch = g3 () => (float[N, 4] r) { r = Relu(f) },
                else_branch = g4 () => (float[N, 4] s) { s = Relu(f) }>
            y = Relu(k)
        }"""
    path = tmp_path / "m.onnx"
    write_model(ir.from_proto(onnx.parser.parse_model(text)), path)
    graph = onnx.load(path).graph
    # What our operator reads and gives, and fixed sizes of what a count cannot follow.
    assert sorted(value.name for value in graph.value_info) == ["b", "d", "f"]
    branch = graph.node[4].attribute[0].g
    assert [value.name for value in branch.value_info] == ["h"]


def test_a_file_is_written_again_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever of its name lies in the working directory, and however large it was."""
    linear, path = _linear(), tmp_path / "m.onnx"
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        write_model(_graph(linear), path, limit=3_000)
        assert (tmp_path / "m.onnx.data").stat().st_size == 20_000
        _check_run(path, linear)
    assert weights_beside(path) == (tmp_path / "m.onnx.data",)
    write_model(_graph(linear), path)
    assert list(tmp_path.iterdir()) == [path]


def test_weights_beside_a_file_are_those_that_it_names(tmp_path: Path) -> None:
    path, data = tmp_path / "m.onnx", tmp_path / "m.onnx.data"
    data.write_bytes(b"somebody's")
    assert weights_beside(path) == ()
    path.write_bytes(b"no ONNX")
    assert weights_beside(path) == ()
    write_model(_graph(_linear()), tmp_path / "n.onnx")
    (tmp_path / "n.onnx").replace(path)
    assert weights_beside(path) == ()


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

"""What a file with sparse operators says in a session that does not know them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import inliner
from onnx_ir.passes import common

import st3fx
from st3fx import runtime
from st3fx.export.write import write_model
from tests.passes.onnx.graphs import Array, graph, lowered, weight

BODY = """
    a = Conv<pads=[1,1,1,1]>(x, u)
    r = Relu(a)
    b = Conv<pads=[1,1,1,1]>(r, v)
    s = Add(b, r)
    c = Concat<axis=1>(r, s)
    d = Concat<axis=1>(r, s, c)
    p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(d)
    y = Conv(p, w)
"""
"""Concatenations of two and of three tensors: the body of an operator has as many as the larger."""


def write(path: Path) -> Array:
    plain = graph("float[N,4,16,16] x => float[N,3,8,8] y", BODY, u=weight(8, 4, 3, 3),
                  v=weight(8, 8, 3, 3, seed=1), w=weight(3, 32, 1, 1, seed=2))  # fmt: skip
    sparse, _ = lowered(plain)
    write_model(sparse, path)
    return np.random.default_rng(0).standard_normal((2, 4, 16, 16), dtype=np.float32)


def silent() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return options


def test_a_session_without_the_library_says_how_to_get_it(tmp_path: Path) -> None:
    path = tmp_path / "sparse.onnx"
    write(path)
    with pytest.raises(Exception, match="Runtime") as caught:
        ort.InferenceSession(path, silent())
    for words in (
        "options.register_custom_ops_library(st3fx.runtime.library())",
        "st3fx.runtime.session(path)",
    ):
        assert words in str(caught.value)
    assert onnx.load(path).doc_string == runtime.HINT


def by_onnx(model: onnx.ModelProto) -> onnx.ModelProto:
    return inliner.inline_local_functions(model)


def by_onnx_ir(model: onnx.ModelProto) -> onnx.ModelProto:
    inlined = ir.from_proto(model)
    common.InlinePass()(inlined)
    return ir.to_proto(inlined)


@pytest.mark.parametrize("inline", [by_onnx, by_onnx_ir])
def test_a_tool_may_put_the_bodies_in_place(
    tmp_path: Path, inline: Callable[[onnx.ModelProto], onnx.ModelProto]
) -> None:
    path, inlined = tmp_path / "sparse.onnx", tmp_path / "inlined.onnx"
    x = write(path)
    model = inline(onnx.load(path))
    assert not model.functions
    assert {node.domain for node in model.graph.node if node.domain} == {runtime.HINT}
    onnx.save(model, inlined)
    given, wanted = (runtime.session(file).run(None, {"x": x})[0] for file in (inlined, path))
    assert np.array_equal(given, wanted)
    # Neither of them counts a body, and both count the graph.
    counts = [st3fx.count_flops(file, [(1, 4, 16, 16)]) for file in (inlined, path)]
    assert counts[0].sparse_macs == counts[1].sparse_macs > 0
    assert not counts[0].unknown
    assert counts[0].sparse_macs < counts[0].dense_macs


def test_a_plain_file_has_no_hint(tmp_path: Path) -> None:
    path = tmp_path / "plain.onnx"
    write_model(graph("float[N,3] x => float[N,3] y", "y = Relu(x)"), path)
    model = onnx.load(path)
    assert (list(model.functions), model.doc_string) == ([], "")

"""All passes say truly whether they changed a graph, what of it, and why not the rest."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from st3fx.passes.onnx.fold_batch_norm import FoldBatchNorm
from st3fx.passes.onnx.graph_pass import GraphPass
from st3fx.passes.onnx.lower_opset import LowerOpset
from st3fx.passes.onnx.pipeline import ForgetNotes, PositiveZeros
from st3fx.passes.onnx.plain_operators import PlainOperators
from st3fx.passes.onnx.sparse_kernels.free_sizes import FreeSizes
from st3fx.passes.onnx.sparse_kernels.lower import SparseKernels
from tests.passes.onnx.graphs import SPARSE_WINS, Array, graph, lowered, weight

IMAGES = "float[N,3,16,16] x => float[N,8,16,16] y"
CONV = "y = Conv<pads=[1,1,1,1]>(x, w)"
NORM = f"{CONV.replace('y =', 'c =')}\ny = BatchNormalization(c, g, g, g, g)"
CONSTANTS: dict[str, Array] = {"w": weight(8, 3, 3, 3) + 0.0, "g": np.ones(8, np.float32)}


def negative() -> ir.Model:
    return graph(IMAGES, CONV, w=np.where(CONSTANTS["w"] == 0, np.float32(-0.0), CONSTANTS["w"]))


def noted() -> ir.Model:
    model = graph(IMAGES, CONV, **CONSTANTS)
    model.graph[0].metadata_props["pkg.torch.onnx.stack_trace"] = "File /home/me/model.py"
    model.graph[0].name = "the_conv"
    return model


def plain() -> ir.Model:
    return graph(IMAGES, CONV, **CONSTANTS)


def zero_scale() -> ir.Model:
    return graph(IMAGES, NORM, w=CONSTANTS["w"], g=np.zeros(8, np.float32))


@pytest.mark.parametrize(
    ("run", "model", "changed", "kept"),
    [
        (FoldBatchNorm(), graph(IMAGES, NORM, **CONSTANTS), ["g"], {}),
        (FoldBatchNorm(), zero_scale(), [], {"g": "w would have other zeros"}),
        (PositiveZeros(["w"]), negative(), ["w"], {}),
        (ForgetNotes(), noted(), ["the_conv"], {}),
        (SparseKernels(SPARSE_WINS), plain(), ["w"], {}),
        (FreeSizes(), plain(), ["x"], {}),
    ],
)
def test_what_was_changed(
    run: GraphPass, model: ir.Model, changed: list[str], kept: dict[str, str]
) -> None:
    before = ir.to_proto(model)
    result = run(model)
    assert result.model is model
    assert result.modified
    assert ir.to_proto(model) != before
    assert (run.changed, run.kept) == (changed, kept)


@pytest.mark.parametrize(
    ("run", "kept"),
    [
        (FoldBatchNorm(), {}),
        (PositiveZeros(["w"]), {}),
        (ForgetNotes(), {}),
        (LowerOpset(20), {}),
        (PlainOperators(), {}),
        (SparseKernels(SPARSE_WINS), {"w": "its padding depends on the size (auto_pad)"}),
    ],
)
def test_what_has_nothing_to_change_changes_nothing(run: GraphPass, kept: dict[str, str]) -> None:
    body = CONV.replace("pads=[1,1,1,1]", 'auto_pad="SAME_UPPER"')
    model = graph(IMAGES, body, **CONSTANTS)
    before = ir.to_proto(model)
    assert not run(model).modified
    assert ir.to_proto(model) == before
    assert (run.changed, run.kept) == ([], kept)


def test_sparse_operators_are_changed_back() -> None:
    sparse, _ = lowered(plain())
    names = [str(node.name) for node in sparse.graph]
    run = PlainOperators()
    assert run(sparse).modified
    assert run.changed == names
    assert not PlainOperators()(sparse).modified

"""Small ONNX graphs as text, with weights; and what they compute."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import numpy_helper

from st3fx import runtime
from st3fx.passes.onnx.sparse_kernels.kernel_report import KernelReport
from st3fx.passes.onnx.sparse_kernels.lower import SparseKernels
from st3fx.runtime.calibration import Calibration
from st3fx.runtime.costs import Costs

Array = npt.NDArray[Any]

SPARSE_WINS = Calibration(
    Costs(dense_pointwise=1, dense_window=1, dense_store=1, dense_linear=1, dense_linear_weight=1),
    "test",
)
"""Every layer that has a sparse kernel gets it."""


def weight(*shape: int, density: float = 0.3, seed: int = 0) -> Array:
    """A random weight, most of it zero."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal(shape, dtype=np.float32)
    return values * (generator.random(shape) < density)


def graph(signature: str, body: str, **constants: Array) -> ir.Model:
    """A graph with shapes between its nodes.

    Args:
        signature: ``float[N,3,8,8] x => float[N,4] y``: inputs and outputs.
        body: Nodes, one a line, in ONNX's text form.
        **constants: Initializers; those that no node reads are left out.
    """
    inputs, _, outputs = signature.partition("=>")
    lines = "\n".join(line.strip() for line in body.strip().splitlines())
    text = (
        f'<ir_version: 10, opset_import: ["" : 20]>\n'
        f"test ({inputs.strip()}) => ({outputs.strip()}) {{\n{lines}\n}}"
    )
    model = onnx.parser.parse_model(text)
    read = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in constants.items() if name in read
    )
    return ir.from_proto(onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True))


def lowered(
    model: ir.Model, calibration: Calibration = SPARSE_WINS
) -> tuple[ir.Model, KernelReport]:
    """A lowered copy, which ``onnx.checker`` accepts, and what was chosen."""
    copy = ir.from_proto(ir.to_proto(model))
    report = SparseKernels(calibration).applied_to(copy).report
    onnx.checker.check_model(ir.to_proto(copy), full_check=True)
    return copy, report


def ops(model: ir.Model) -> collections.Counter[str]:
    """How many of each operator; ours as ``st3fx.SparseConv``."""
    return collections.Counter(
        f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in model.graph
    )


def node(model: ir.Model, op: str) -> ir.Node:
    """The only node of that operator."""
    (found,) = (node for node in model.graph if node.op_type == op)
    return found


def run(model: ir.Model, *inputs: Array) -> list[Array]:
    """What ONNX Runtime computes, by our operators where the graph has them."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.register_custom_ops_library(runtime.library())
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [port.name for port in session.get_inputs()]
    result: list[Array] = session.run(None, dict(zip(names, inputs, strict=True)))
    return result


def assert_same(left: ir.Model, right: ir.Model, *inputs: Array) -> None:
    """Two graphs compute the same, and something."""
    for wanted, given in zip(run(left, *inputs), run(right, *inputs), strict=True):
        assert np.ptp(wanted) > 0
        np.testing.assert_allclose(given, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())

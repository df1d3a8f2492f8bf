"""Small quantized graphs, written node by node."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]


class Net:
    """A graph that grows; its input is ``x``."""

    def __init__(self, *shape: int | str, seed: int = 0, opset: int = 20) -> None:
        self.generator = np.random.default_rng(seed)
        self.shape, self._opset = shape, opset
        self._nodes: list[onnx.NodeProto] = []
        self._held: dict[str, Array] = {}

    def op(self, op: str, *inputs: str, **about: Any) -> str:
        """A node with one output, whose name it gives."""
        return self.ops(1, op, *inputs, **about)[0]

    def ops(self, outputs: int, op: str, *inputs: str, **about: Any) -> list[str]:
        """A node with some outputs; its domain is among the attributes."""
        names = [f"{op.lower()}_{len(self._nodes)}_{i}" for i in range(outputs)]
        self._nodes.append(helper.make_node(op, list(inputs), names, **about))
        return names

    def hold(self, array: Any, name: str = "held") -> str:
        """An initializer."""
        full = f"{name}_{len(self._held)}"
        self._held[full] = np.asarray(array)
        return full

    def floats(self, *shape: int, scale: float = 1.0) -> str:
        """Normal numbers."""
        values = scale * self.generator.standard_normal(shape)
        return self.hold(values.astype(np.float32))

    def bytes(
        self, value: str, scale: float = 0.03, zero: int = 120, kind: Any = np.uint8,
        domain: str = "",
    ) -> tuple[str, tuple[str, str]]:  # fmt: skip
        """The quantized tensor, and names of scale and zero point."""
        about = self.hold(np.float32(scale)), self.hold(np.array(zero, kind))
        return self.op("QuantizeLinear", value, *about, domain=domain), about

    def q(
        self, value: str, scale: float = 0.03, zero: int = 120, kind: Any = np.uint8,
        domain: str = "",
    ) -> str:  # fmt: skip
        """A value through bytes and back."""
        whole, about = self.bytes(value, scale, zero, kind, domain)
        return self.op("DequantizeLinear", whole, *about, domain=domain)

    def weight(
        self, *shape: int, axis: int = 0, share: float = 0.4, per_channel: bool = True
    ) -> str:
        """Pruned int8 weights behind a ``DequantizeLinear``."""
        whole = self.integers(*shape, axis=axis)
        size = shape[axis] if per_channel else None
        scale = np.asarray(self.generator.uniform(1e-3, 3e-3, size), np.float32)
        zero = np.zeros(scale.shape, np.int8)
        about = {"axis": axis} if per_channel else {}
        return self.op(
            "DequantizeLinear",
            self.hold(whole, "weight"),
            self.hold(scale),
            self.hold(zero),
            **about,
        )

    def integers(self, *shape: int, axis: int = 0, limit: int = 127) -> Array:
        """int8 weights up to a limit; of blocks of four input channels two in five are kept."""
        moved = (shape[axis], *(s for i, s in enumerate(shape) if i != axis))
        rows, channels, *kernel = moved
        kept = self.generator.random((rows, -(-channels // 4), *kernel)) < 0.4
        mask = np.repeat(kept, 4, axis=1)[:, :channels]
        whole = (self.generator.integers(-limit, limit + 1, moved) * mask).astype(np.int8)
        return np.ascontiguousarray(np.moveaxis(whole, 0, axis))

    def conv(self, value: str, rows: int, channels: int, kernel: int = 1, **about: Any) -> str:
        """A convolution with bias that keeps the size."""
        weight = self.weight(rows, channels // about.get("group", 1), kernel, kernel)
        pads = {"pads": [kernel // 2] * 4, **about}
        return self.op("Conv", value, weight, self.floats(rows), **pads)

    def model(self, *outputs: str) -> onnx.ModelProto:
        """The graph."""
        graph = helper.make_graph(
            self._nodes, "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_empty_tensor_value_info(name) for name in outputs],
            [numpy_helper.from_array(array, name) for name, array in self._held.items()],
        )  # fmt: skip
        used = {node.domain for node in self._nodes} - {""}
        opsets = [helper.make_opsetid("", self._opset), *(helper.make_opsetid(d, 1) for d in used)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        for value, name in zip(inferred.graph.output, outputs, strict=True):
            if not value.type.tensor_type.elem_type:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
            assert value.name == name
        return inferred

    def feeds(self, batch: int = 2) -> dict[str, Array]:
        """Random input."""
        sizes = [size if isinstance(size, int) else batch for size in self.shape]
        return {"x": self.generator.standard_normal(sizes).astype(np.float32)}

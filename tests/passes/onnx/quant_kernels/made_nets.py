"""Random quantized graphs: every tensor is computed while it is made, so that scales fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper

from tests.passes.onnx.quant_kernels.nets import Net

Array = NDArray[Any]

_DEPTH, _WIDEST = 9, 70
_LARGEST = 60_000
"""Numbers of a tensor, at most."""


class UnfitError(Exception):
    """ONNX Runtime refuses a node."""


class MadeNet(Net):
    """A graph of a seed: ``model`` and ``feeds`` as :class:`Net` has them.

    Attributes:
        kinds: What it is made of.
    """

    def __init__(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        channels = int(generator.integers(1, 33))
        sizes = generator.integers(1, (41, 9)[seed % 3 > 0], 2).tolist()
        batch = int(generator.choice([1, 3]))
        free = seed % 4 == 1
        super().__init__("n" if free else batch, channels, *sizes, seed=seed, opset=20)
        self.generator, self.kinds = generator, list[str]()
        self._values: dict[str, Array] = {}
        self._signed = bool(seed % 2)
        x = generator.standard_normal((batch, channels, *sizes)).astype(np.float32)
        self._x = self._values["x"] = x
        self._outputs: list[str] = []
        self._images = [self.quantize("x")]
        for _ in range(int(generator.integers(1, _DEPTH))):
            self._grow()
        if generator.random() < 0.5:
            self._head()
        self._outputs = list(dict.fromkeys([*self._outputs, self._images[-1]]))

    def made(self) -> tuple[onnx.ModelProto, dict[str, Array]]:
        """The graph and its input."""
        return self.model(*self._outputs), {"x": self._x}

    def ops(self, outputs: int, op: str, *inputs: str, **about: Any) -> list[str]:
        """Nodes as :class:`Net` makes them, computed at once."""
        names = super().ops(outputs, op, *inputs, **about)
        everything = {**self._held, **self._values}
        known = {name: everything[name] for name in inputs if name}
        graph = helper.make_graph(
            [self._nodes[-1]], "one",
            [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
             for n, a in known.items()],
            [helper.make_empty_tensor_value_info(name) for name in names],
        )  # fmt: skip
        opsets = [helper.make_opsetid("", self._opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        try:
            session = ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            found = session.run(None, known)
        except Exception as error:
            self._nodes.pop()
            raise UnfitError from error
        self._values.update(zip(names, found, strict=True))
        return names

    def value(self, name: str) -> Array:
        """What a tensor is."""
        return self._values[name]

    def quantize(self, name: str) -> str:
        """A tensor through bytes of a scale that fits, or is far off."""
        g, value = self.generator, self.value(name)
        spread = max(float(np.abs(value).max(initial=0)), 1e-3)
        scale = spread / 127 * float(np.exp(g.normal(-0.2, 0.4)))
        if g.random() < 0.05:
            scale *= float(g.choice([1e-3, 50, 1e9]))
        zero = int(g.choice([0, 255, 128, int(g.integers(0, 256))], p=[0.15, 0.05, 0.4, 0.4]))
        signed = self._signed and g.random() < 0.8
        kind = np.int8 if signed else np.uint8
        whole, about = self.bytes(name, scale, zero - 128 * signed, kind)
        if g.random() < 0.04:
            self._outputs.append(whole)
        return self.op("DequantizeLinear", whole, *about)

    def any_image(self) -> str:
        """Mostly a late one."""
        late = self.generator.random() < 0.7
        return self._images[-1] if late else str(self.generator.choice(self._images))

    def hold_floats(self, *shape: int) -> str:
        return self.floats(*shape, scale=float(np.exp(self.generator.normal(-0.5, 0.5))))

    def _grow(self) -> None:
        kind = str(self.generator.choice(list(_KINDS), p=_SHARES))
        name = self.any_image()
        try:
            found = _KINDS[kind](self, name)
        except UnfitError:
            return
        for value in found:
            array = self.value(value)
            if array.size == 0 or array.size > _LARGEST or array.ndim != 4:
                continue
            if array.shape[1] > _WIDEST or not np.isfinite(array).all():
                continue
            is_float = self.generator.random() < 0.04
            if is_float:
                self._outputs.append(value)
            self._images.append(self.quantize(value))
            self.kinds.append(kind)
            if self.generator.random() < 0.08:
                self._outputs.append(self._images[-1])

    def whole_weight(self, shape: tuple[int, ...], axis: int = 0) -> str:
        """int8 weights, some of them extreme; one row may be zeros."""
        g = self.generator
        whole = self.integers(*shape, axis=axis)
        if g.random() < 0.5:
            flat = whole.reshape(-1)
            flat[g.random(flat.size) < 0.05] = -128
        rows = np.moveaxis(whole, axis, 0)
        if g.random() < 0.3:
            rows[int(g.integers(len(rows)))] = 0
        if g.random() < 0.05:
            rows[:] = 0
        size = shape[axis] if g.random() < 0.7 else None
        scale = np.asarray(g.uniform(1e-3, 5e-3, size), np.float32)
        if size and g.random() < 0.1:
            scale[int(g.integers(size))] *= np.float32(g.choice([1e-12, 1e-5, 100, 1e6]))
        zero = np.zeros(scale.shape, np.int8)
        about = {} if size is None else {"axis": axis}
        held = (self.hold(whole, "weight"), self.hold(scale), self.hold(zero))
        return self.op("DequantizeLinear", *held, **about)

    def bias(self, value: str, weight: str, rows: int) -> list[str]:
        """None, float32 or int32 in units of the input's scale times the weight's."""
        g = self.generator
        how = g.choice(["none", "float", "int"])
        if how == "none":
            return []
        if how == "float":
            return [self.hold_floats(rows)]
        scales = [self._scale_of(name) for name in (value, weight)]
        scale = np.broadcast_to(scales[0] * scales[1], (rows,)).astype(np.float32)
        whole = g.integers(-4000, 4000, rows).astype(np.int32)
        held = [self.hold(whole), self.hold(scale), self.hold(np.zeros(rows, np.int32))]
        return [self.op("DequantizeLinear", *held, axis=0)]

    def quantize_constant(self, name: str) -> str:
        """A constant through bytes."""
        self._values[name] = self._held[name]
        return self.quantize(name)

    def _scale_of(self, name: str) -> Array:
        (node,) = (node for node in self._nodes if name in node.output)
        return self._held[node.input[1]]

    def _head(self) -> None:
        """Flattened, a product of matrices."""
        g, name = self.generator, self._images[-1]
        value = self.value(name)
        flat = self.op("Flatten", name, axis=1)
        if g.random() < 0.5:
            flat = self.quantize(flat)
        features, rows = self.value(flat).shape[1], int(g.integers(1, 40))
        if features > 3000 or value.size == 0:
            return
        if g.random() < 0.5:
            transposed = int(g.random() < 0.5)
            shape = (rows, features) if transposed else (features, rows)
            weight = self.whole_weight(shape, axis=1 - transposed)
            bias = [self.hold_floats(rows)] if g.random() < 0.5 else []
            product = self.op("Gemm", flat, weight, *bias, transB=transposed)
        else:
            weight = self.whole_weight((features, rows), axis=1)
            product = self.op("MatMul", flat, weight)
            if g.random() < 0.5:
                product = self.op("Add", product, self.hold_floats(rows))
        self.kinds.append("head")
        self._outputs.append(product)
        if g.random() < 0.3:
            self._outputs.append(self.quantize(self.op("Relu", product)))


def _window(net: MadeNet, value: Array, most: int = 4) -> dict[str, Any]:
    g = net.generator
    kernel = g.integers(1, most + 1, 2)
    return {
        "kernel_shape": kernel.tolist(),
        "strides": g.choice([1, 1, 2, 3], 2).tolist(),
        "dilations": g.choice([1, 1, 2], 2).tolist(),
        "pads": [int(g.integers(0, size)) for size in (*kernel, *kernel)],
    }


def _activation(net: MadeNet, value: str) -> str:
    g = net.generator
    kind = str(g.choice(["relu", "clip", "leaky", "hard_swish", "silu", "two_clips", "none"]))
    if kind == "relu":
        return net.op("Relu", value)
    if kind in ("clip", "two_clips"):
        for _ in range(1 + (kind == "two_clips")):
            low, high = np.sort(g.normal(0, 1, 2)).astype(np.float32)
            limits = [net.hold(low) if g.random() < 0.8 else "", net.hold(high)]
            value = net.op("Clip", value, *limits)
        return net.op("Relu", value) if g.random() < 0.3 else value
    if kind == "leaky":
        return net.op("LeakyRelu", value, alpha=0.1)
    if kind == "hard_swish":
        return net.op("HardSwish", value)
    if kind == "silu":
        return net.op("Mul", value, net.op("Sigmoid", value))
    return value


def _conv(net: MadeNet, name: str) -> list[str]:
    g, value = net.generator, net.value(name)
    channels = value.shape[1]
    groups = int(g.choice([d for d in range(1, channels + 1) if channels % d == 0]))
    groups = groups if g.random() < 0.5 else 1
    rows = groups * int(g.integers(1, max(2, 50 // groups)))
    about = _window(net, value)
    weight = net.whole_weight((rows, channels // groups, *about["kernel_shape"]))
    made = net.op("Conv", name, weight, *net.bias(name, weight, rows), group=groups, **about)
    return [_activation(net, made) if g.random() < 0.6 else made]


def _depthwise(net: MadeNet, name: str) -> list[str]:
    value, about = net.value(name), _window(net, net.value(name), 5)
    channels = value.shape[1]
    weight = net.whole_weight((channels, 1, *about["kernel_shape"]))
    bias = net.bias(name, weight, channels)
    made = net.op("Conv", name, weight, *bias, group=channels, **about)
    return [_activation(net, made) if net.generator.random() < 0.6 else made]


def _residual(net: MadeNet, name: str) -> list[str]:
    """A convolution of the same shape, quantized, and the sum with what it reads."""
    g, channels = net.generator, net.value(name).shape[1]
    depthwise = g.random() < 0.3
    kernel, groups = int(g.choice([1, 3])), channels if depthwise else 1
    weight = net.whole_weight((channels, channels // groups, kernel, kernel))
    made = net.op("Conv", name, weight, *net.bias(name, weight, channels), group=groups,
                  pads=[kernel // 2] * 4)  # fmt: skip
    made = net.quantize(_activation(net, made))
    pair = [made, name][:: int(g.choice([1, -1]))]
    return [_activation(net, net.op("Add", *pair))]


def _transposed(net: MadeNet, name: str) -> list[str]:
    channels, g = net.value(name).shape[1], net.generator
    weight = net.whole_weight((channels, int(g.integers(1, 20)), 2, 2), axis=1)
    return [net.op("ConvTranspose", name, weight, strides=[2, 2])]


def _function(net: MadeNet, name: str) -> list[str]:
    return [_activation(net, name)]


def _pair(net: MadeNet, name: str) -> list[str]:
    g, value = net.generator, net.value(name)
    channels = value.shape[1]
    shapes = [net.value(other).shape for other in net._images]
    fitting = [
        other for other, shape in zip(net._images, shapes, strict=True)
        if shape in (value.shape, (*value.shape[:2], 1, 1))
    ]  # fmt: skip
    other = str(g.choice(fitting)) if g.random() < 0.8 else ""
    if not other:
        shape = [(1, channels, 1, 1), (channels, 1, 1), (), (1,)][int(g.integers(4))]
        other = net.hold_floats(*shape)
        if g.random() < 0.3:
            other = net.quantize_constant(other)
    pair = [name, other][:: int(g.choice([1, -1]))]
    made = net.op(str(g.choice(["Add", "Mul"])), *pair)
    return [_activation(net, made) if g.random() < 0.4 else made]


def _gate(net: MadeNet, name: str) -> list[str]:
    """Squeeze and excitation."""
    channels = net.value(name).shape[1]
    small = net.quantize(net.op("GlobalAveragePool", name))
    weight = net.whole_weight((channels, channels, 1, 1))
    gate = net.op("Conv", small, weight, *net.bias(small, weight, channels))
    gate = net.quantize(net.op(str(net.generator.choice(["Sigmoid", "HardSigmoid"])), gate))
    return [net.op("Mul", name, gate)]


def _pool(net: MadeNet, name: str) -> list[str]:
    g, about = net.generator, _window(net, net.value(name))
    about["ceil_mode"] = int(g.random() < 0.4)
    if not _is_inferred(net.value(name).shape[2:], about):
        return []
    if g.random() < 0.5:
        made = net.op("MaxPool", name, **about)
    else:
        del about["dilations"]  # ONNX Runtime gives them to QLinearAveragePool, which has none
        about["count_include_pad"] = int(g.random() < 0.5)
        made = net.op("AveragePool", name, **about)
    return [_activation(net, made) if g.random() < 0.3 else made]


def _is_inferred(sizes: tuple[int, ...], about: dict[str, Any]) -> bool:
    """Whether ONNX infers what ONNX Runtime gives: with ``ceil_mode`` it counts too many."""
    for axis, size in enumerate(sizes):
        begin, end = about["pads"][axis], about["pads"][axis + 2]
        reach = about["dilations"][axis] * (about["kernel_shape"][axis] - 1) + 1
        step = about["strides"][axis]
        room = size + begin + end - reach
        late = about["ceil_mode"] and -(-room // step) * step >= size + begin
        if room < 0 or late:
            return False
    return True


def _whole(net: MadeNet, name: str) -> list[str]:
    if net.generator.random() < 0.5:
        return [net.op("GlobalAveragePool", name)]
    axes = net.hold(np.array([[2, 3], [-1, -2]][int(net.generator.integers(2))], np.int64))
    return [net.op("ReduceMean", name, axes)]


def _concat(net: MadeNet, name: str) -> list[str]:
    shape = net.value(name).shape
    fitting = [
        other for other in net._images
        if net.value(other).shape[2:] == shape[2:] and net.value(other).shape[0] == shape[0]
    ]  # fmt: skip
    others = [str(net.generator.choice(fitting)) for _ in range(int(net.generator.integers(1, 4)))]
    return [net.op("Concat", name, *others, axis=1)]


def _split(net: MadeNet, name: str) -> list[str]:
    channels = net.value(name).shape[1]
    first = int(net.generator.integers(1, channels)) if channels > 1 else 0
    if not first:
        return []
    sizes = net.hold(np.array([first, channels - first], np.int64))
    return net.ops(2, "Split", name, sizes, axis=1)


def _slice(net: MadeNet, name: str) -> list[str]:
    """Of any axis, also backwards."""
    g = net.generator
    axis = int(g.choice([0, 1, 1, 1, 2, 3]))
    size = net.value(name).shape[axis]
    begin, step = int(g.integers(0, size)), int(g.choice([1, 1, 2]))
    parts = (begin, int(g.integers(begin + 1, size + 1)), step)
    if g.random() < 0.25:
        parts = (-1, -(1 << 31), -1)
    parts_and_axis = (parts[0], parts[1], axis, parts[2])
    return [net.op("Slice", name, *(net.hold(np.array([p], np.int64)) for p in parts_and_axis))]


def _shuffle(net: MadeNet, name: str) -> list[str]:
    _, channels, height, width = net.value(name).shape
    groups = int(net.generator.choice([d for d in (1, 2, 3, 4) if channels % d == 0]))
    there = net.hold(np.array([0, groups, channels // groups, height, width], np.int64))
    back = net.hold(np.array([0, channels, height, width], np.int64))
    value = net.op("Transpose", net.op("Reshape", name, there), perm=[0, 2, 1, 3, 4])
    return [net.op("Reshape", value, back)]


def _move(net: MadeNet, name: str) -> list[str]:
    g, shape = net.generator, net.value(name).shape
    kind = str(g.choice(["gather", "transpose", "pixels", "reshape"]))
    if kind == "gather":
        axis = int(g.choice([0, 1, 1]))
        places = g.integers(0, shape[axis], shape[axis] + int(g.integers(0, 2)))
        return [net.op("Gather", name, net.hold(places), axis=axis)]
    if kind == "transpose":
        return [net.op("Transpose", name, perm=[0, 1, 3, 2])]
    if kind == "pixels":
        return [net.op("DepthToSpace", name, blocksize=2)] if shape[1] % 4 == 0 else []
    wanted = [0, shape[1], shape[3], shape[2]]
    return [net.op("Reshape", name, net.hold(np.array(wanted, np.int64)))]


def _resize(net: MadeNet, name: str) -> list[str]:
    scales = net.hold(np.array([1, 1, 2, 2], np.float32))
    return [net.op("Resize", name, "", scales, mode="nearest")]


def _pad(net: MadeNet, name: str) -> list[str]:
    pads = np.array([0, 0, *net.generator.integers(0, 3, 2), 0, 0, 1, 0], np.int64)
    return [net.op("Pad", name, net.hold(pads))]


def _norm(net: MadeNet, name: str) -> list[str]:
    channels = net.value(name).shape[1]
    parts = [net.hold_floats(channels) for _ in range(3)]
    variance = net.hold(np.asarray(net.generator.uniform(0.1, 2, channels), np.float32))
    return [_activation(net, net.op("BatchNormalization", name, *parts, variance))]


_KINDS: dict[str, Callable[[MadeNet, str], list[str]]] = {
    "conv": _conv, "depthwise": _depthwise, "residual": _residual, "transposed": _transposed,
    "function": _function, "pair": _pair, "gate": _gate, "pool": _pool, "whole": _whole,
    "concat": _concat, "split": _split, "slice": _slice, "shuffle": _shuffle, "move": _move,
    "resize": _resize, "pad": _pad, "norm": _norm,
}  # fmt: skip
_WEIGHTS = np.array([5, 2, 3, 0.5, 1.5, 2, 1, 2, 0.7, 1, 0.7, 0.7, 0.7, 0.6, 0.4, 0.4, 0.7])
_SHARES = _WEIGHTS / _WEIGHTS.sum()

"""A file of integers as a module that trains, and the file with what was learned.

The file of the quantizer says what is rounded where; the module is its graph (``torch_graph``),
rewritten so that gradients pass (``fake``):

1. QuantizeLinear and DequantizeLinear of an activation become one ``fake_activation``, whose scale
   is a parameter. Its zero point stays.
2. DequantizeLinear of a weight's integers becomes ``fake_weight`` of the fp32 file's weight. What
   is zero there stays zero.
3. DequantizeLinear of a bias becomes ``fake_bias`` of the fp32 file's bias.
4. Weights, biases and other parameters that are in fp32 are trained as they are; a zero of a
   weight stays zero.

So the module computes what the file does, whatever the quantizer chose. Batch norms are folded into
the weights by then: what is rounded is the folded weight, as in the file, and statistics stay.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, fx, nn

from st3fx.errors import QuantizeError
from st3fx.passes.onnx.values import Array
from st3fx.quantization import torch_ops
from st3fx.quantization.fake import (
    bias_steps,
    channel_scales,
    fake_activation,
    fake_bias,
    fake_weight,
    weight_steps,
)
from st3fx.quantization.qdq import SUFFIX, Source
from st3fx.quantization.torch_graph import TorchGraph, to_torch

_PRODUCTS = (torch_ops.conv, torch_ops.conv_transpose, torch_ops.gemm, torch.matmul)


@dataclass(frozen=True)
class _Weight:
    """A weight in integers: names of attributes, and of constants of the file."""

    latent: str
    mask: str
    floor: str
    axis: int
    integers: str
    scales: str


@dataclass(frozen=True)
class _Bias:
    """A bias in integers, likewise, with the weight and the activation that it belongs to."""

    latent: str
    factor: str
    activation: str
    weight: _Weight
    integers: str
    scales: str


@dataclass
class Trainable:
    """A file of integers that trains.

    Attributes:
        module: Takes the inputs of the file in its order; gives a dict of outputs by name.
        inputs: Their names.
        scales: Parameters that are scales of activations.
        weights: Parameters of two dimensions or more.
        others: All other parameters.
    """

    module: fx.GraphModule
    inputs: tuple[str, ...]
    scales: list[nn.Parameter] = field(default_factory=list)
    weights: list[nn.Parameter] = field(default_factory=list)
    others: list[nn.Parameter] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.weights_in_integers: list[_Weight] = []
        self.biases_in_integers: list[_Bias] = []
        self.copied: dict[str, str] = {}
        """Constant of the file -> attribute whose value it gets."""
        self.least: list[float] = []

    @torch.no_grad()
    def keep_positive(self) -> None:
        """Call after each step: a scale stays a hundredth of what it began as, or more."""
        for scale, least in zip(self.scales, self.least, strict=True):
            scale.clamp_(min=least)

    def written(self, model: onnx.ModelProto, weight_range: str) -> onnx.ModelProto:
        """A copy of the file with what was learned.

        Args:
            model: The file that this was made from.
            weight_range: As it was made with.
        """
        found = onnx.ModelProto()
        found.CopyFrom(model)
        arrays = self._arrays(weight_range)
        for item in found.graph.initializer:
            if item.name in arrays:
                old = numpy_helper.to_array(item)
                new = np.broadcast_to(arrays[item.name], old.shape).astype(old.dtype)
                item.CopyFrom(numpy_helper.from_array(new, item.name))
        return found

    @torch.no_grad()
    def _arrays(self, weight_range: str) -> Mapping[str, Array]:
        """Name of each constant that has changed -> its values."""
        arrays: dict[str, Array] = {}
        for name, attribute in self.copied.items():
            arrays[name] = self._value(attribute).numpy()
        scales = {}
        for weight in self.weights_in_integers:
            kept = self._value(weight.latent) * self._value(weight.mask)
            steps, scales[weight] = weight_steps(
                kept, self._value(weight.floor), weight.axis, weight_range
            )
            arrays[weight.integers] = steps.numpy()
            arrays[weight.scales] = scales[weight].reshape(-1).numpy()
        for bias in self.biases_in_integers:
            steps, scale = bias_steps(
                self._value(bias.latent), self._value(bias.activation),
                scales[bias.weight], self._value(bias.factor),
            )  # fmt: skip
            arrays[bias.integers], arrays[bias.scales] = steps.numpy(), scale.numpy()
        return arrays

    def _value(self, attribute: str) -> Tensor:
        value: Tensor = getattr(self.module, attribute)
        return value.detach().cpu()


def trainable(
    model: onnx.ModelProto,
    source: Source,
    parameters: Collection[str],
    weight_range: str,
    *,
    learn_scales: bool = True,
) -> Trainable:
    """Make a file of integers trainable.

    Args:
        model: The file, as the quantizer gives it.
        source: The fp32 file that it was made from.
        parameters: Names of constants that are parameters of the model.
        weight_range: As the file was made with.
        learn_scales: Whether the scales of activations are learned.

    Raises:
        QuantizeError: For an operator that torch does not compute here.
    """
    return _Rewriter(to_torch(model), source, parameters, weight_range, learn_scales).result


class _Rewriter:
    """Rewrites one graph."""

    def __init__(
        self,
        graph: TorchGraph,
        source: Source,
        parameters: Collection[str],
        weight_range: str,
        learn_scales: bool,
    ) -> None:
        self.module, self.graph = graph.module, graph.module.graph
        self.names = {attribute: name for name, attribute in graph.constants.items()}
        self.floats = {item.name: item for item in source.model.graph.initializer}
        self.weight_range, self.learn_scales = weight_range, learn_scales
        self.result = Trainable(self.module, graph.inputs)
        self.rounded: dict[fx.Node, tuple[fx.Node, str]] = {}
        """What stands for a DequantizeLinear -> the same, with the attribute of its scale."""
        self.weights: dict[fx.Node, _Weight] = {}
        self._made: dict[str, tuple[fx.Node, fx.Node, _Weight]] = {}
        self._activations()
        self._weights()
        self._biases()
        self._fp32(set(parameters))
        self.graph.eliminate_dead_code()
        self.graph.lint()
        self.module.recompile()

    def _calls(self, *functions: object) -> Iterator[fx.Node]:
        return (
            node for node in list(self.graph.nodes)
            if node.op == "call_function" and node.target in functions
        )  # fmt: skip

    def _activations(self) -> None:
        """Case 1; several DequantizeLinear may follow one QuantizeLinear."""
        made: dict[fx.Node, fx.Node] = {}
        for node in self._calls(torch_ops.dequantize_linear):
            pair, scales = _operands(node)[0], _operands(node)[1]
            if pair.op != "call_function" or pair.target is not torch_ops.quantize_linear:
                continue
            x, scale, zero = _operands(pair)
            if not torch.equal(
                self._tensor(scale).expand(self._tensor(scales).shape), self._tensor(scales)
            ):
                raise QuantizeError(
                    f"--finetune cannot train through {node.name}: it undoes a rounding with "
                    "another scale than it was done with"
                )
            if pair not in made:
                with self.graph.inserting_before(pair):
                    made[pair] = self.graph.call_function(
                        fake_activation, (x, scale, int(self._tensor(zero)))
                    )
            self._learn_scale(scale.target)
            self.result.copied[self.names[scales.target]] = scale.target
            self.rounded[made[pair]] = (made[pair], scale.target)
            node.replace_all_uses_with(made[pair])

    def _learn_scale(self, attribute: str) -> None:
        self.result.copied[self.names[attribute]] = attribute
        if self.learn_scales and attribute not in dict(self.module.named_parameters()):
            scale = self._parameter(attribute)
            self.result.scales.append(scale)
            self.result.least.append(float(scale.detach()) / 100)

    def _weights(self) -> None:
        """Case 2."""
        for node in self._calls(torch_ops.dequantize_linear):
            integers, scales = _operands(node)[0], _operands(node)[1]
            if not self._is_constant(integers, torch.int8) or self._tensor(scales).dim() != 1:
                continue
            name = self.names[integers.target]
            if name.removesuffix(SUFFIX) not in self.floats:
                continue  # no weight: it stays as it is
            if name not in self._made:
                self._made[name] = self._weight(node, name)
            rounded, scale, weight = self._made[name]
            self.weights[rounded] = weight
            self.rounded[rounded] = (scale, "")
            node.replace_all_uses_with(rounded)

    def _weight(self, node: fx.Node, name: str) -> tuple[fx.Node, fx.Node, _Weight]:
        integers, scales = _operands(node)[0], _operands(node)[1]
        axis = int(_attributes(node).get("axis", 1))
        latent = _tensor_of(self.floats[name.removesuffix(SUFFIX)])
        before, plain = self._tensor(scales), channel_scales(latent, axis, self.weight_range)
        # Where a bias needs a larger scale the quantizer has given it one.
        floor = torch.where(before > plain * 1.00001, before, 0)
        weight = _Weight(
            self._state(integers.target, "latent", latent),
            self._state(integers.target, "mask", latent != 0),
            self._state(integers.target, "floor", floor),
            axis, name, self.names[scales.target],
        )  # fmt: skip
        self.result.weights.append(self._parameter(weight.latent))
        self.result.weights_in_integers.append(weight)
        first = next(iter(self.graph.nodes))
        with self.graph.inserting_before(first):
            state = [self.graph.get_attr(x) for x in (weight.latent, weight.mask, weight.floor)]
            both = self.graph.call_function(fake_weight, (*state, axis, self.weight_range))
            rounded = self.graph.call_function(_first, (both,))
            scale = self.graph.call_function(_second, (both,))
        return rounded, scale, weight

    def _biases(self) -> None:
        """Case 3; one whose product has other operands stays as it is."""
        for product in self._calls(*_PRODUCTS):
            if len(_operands(product)) < 3 or _operands(product)[2] is None:
                continue
            x, w, node = _operands(product)[:3]
            is_dequantized = node.op == "call_function" and (
                node.target is torch_ops.dequantize_linear
            )
            known = x in self.rounded and w in self.weights
            if (
                not is_dequantized
                or not known
                or not self._is_constant(_operands(node)[0], torch.int32)
            ):
                continue
            product.update_arg(2, self._bias(product, x, w, node))

    def _bias(self, product: fx.Node, x: fx.Node, w: fx.Node, node: fx.Node) -> fx.Node:
        integers, scales = _operands(node)[0], _operands(node)[1]
        name, weight, activation = self.names[integers.target], self.weights[w], self.rounded[x][1]
        stored, steps = self._tensor(integers), self._tensor(scales)
        found = self.floats.get(name.removesuffix(SUFFIX))
        # One that two layers share has another name in each.
        latent = stored * steps if found is None else _tensor_of(found)
        of_weight = self._tensor_named(weight.scales)
        factor = steps / (self._tensor_named(self.names[activation]) * of_weight)
        factor = torch.where((factor - 1).abs() < 1e-5, 1.0, factor)
        bias = _Bias(
            self._state(integers.target, "latent", latent),
            self._state(integers.target, "factor", factor),
            activation, weight, name, self.names[scales.target],
        )  # fmt: skip
        self.result.others.append(self._parameter(bias.latent))
        self.result.biases_in_integers.append(bias)
        with self.graph.inserting_before(product):
            return self.graph.call_function(
                fake_bias,
                (
                    self.graph.get_attr(bias.latent), self.graph.get_attr(activation),
                    self.rounded[w][0], self.graph.get_attr(bias.factor),
                ),
            )  # fmt: skip

    def _fp32(self, parameters: set[str]) -> None:
        """Case 4."""
        for node in list(self.graph.nodes):
            if node.op != "get_attr" or str(node.target) not in self.names:
                continue
            value, name = self._tensor(node), self.names[str(node.target)]
            read = any(
                node in _operands(user)[1:3] for user in node.users if user.target in _PRODUCTS
            )
            # An exporter stores equal constants once, and statistics may equal a bias.
            statistic = any(
                node in _operands(user)[3:]
                for user in node.users
                if user.target is torch_ops.batch_norm
            )
            is_parameter = value.is_floating_point() and (name in parameters or read)
            is_parameter = is_parameter and not statistic
            if not is_parameter or not node.users or name in self.result.copied:
                continue
            attribute = str(node.target)
            parameter = self._parameter(attribute)
            (self.result.weights if value.dim() > 1 else self.result.others).append(parameter)
            self.result.copied[name] = attribute
            zeros = value.dim() > 1 and not bool(value.all())
            if zeros:
                mask = self._state(attribute, "mask", value != 0)
                with self.graph.inserting_after(node):
                    state = self.graph.get_attr(mask)
                with self.graph.inserting_after(state):
                    masked = self.graph.call_function(torch.mul, (node, state))
                node.replace_all_uses_with(masked, lambda user, made=masked: user is not made)

    def _tensor_named(self, constant: str) -> Tensor:
        attribute = next(a for a, name in self.names.items() if name == constant)
        value: Tensor = getattr(self.module, attribute)
        return value.detach()

    def _tensor(self, node: fx.Node) -> Tensor:
        value: Tensor = getattr(self.module, str(node.target))
        return value.detach()

    def _is_constant(self, node: fx.Node, dtype: torch.dtype) -> bool:
        return node.op == "get_attr" and self._tensor(node).dtype == dtype

    def _state(self, beside: str, suffix: str, value: Tensor) -> str:
        name = f"{beside}_{suffix}"
        self.module.register_buffer(name, value)
        return name

    def _parameter(self, attribute: str) -> nn.Parameter:
        """Make a buffer a parameter."""
        parameter = nn.Parameter(getattr(self.module, attribute).detach())
        delattr(self.module, attribute)
        self.module.register_parameter(attribute, parameter)
        return parameter


def _operands(node: fx.Node) -> tuple[Any, ...]:
    """In our graphs nodes, numbers and ``None``."""
    return node.args


def _attributes(node: fx.Node) -> Mapping[str, Any]:
    return node.kwargs


def _tensor_of(item: onnx.TensorProto) -> Tensor:
    return torch.from_numpy(numpy_helper.to_array(item).copy())


def _first(both: tuple[Tensor, Tensor]) -> Tensor:
    return both[0]


def _second(both: tuple[Tensor, Tensor]) -> Tensor:
    return both[1]

"""Random small models with zeros, and other words for the graphs that they are exported to."""

from __future__ import annotations

import random
from collections.abc import Callable

import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

EQUATIONS = ("...c,cd->...d", "...c,c->...c", "...c,cc->...c", "...c,dc->...d", "...c,cd,d->...d",
             "...c,cd,de->...e", "...c,d->...d")  # fmt: skip


class Scale(nn.Module):
    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(channels, *[1] * dims))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Twice(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x) * self.inner(x)
        return out


class Merged(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(outputs, inputs))
        self.a, self.b = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.randn(outputs, 2))
        self.register_buffer("mask", (torch.rand(outputs, inputs) > 0.5).float())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, (self.w + self.b @ self.a) * self.get_buffer("mask"))


class Einsum(nn.Module):
    def __init__(self, equation: str, channels: int) -> None:
        super().__init__()
        self.equation = equation
        terms = equation.partition("->")[0].split(",")[1:]
        self.w = nn.ParameterList(nn.Parameter(torch.randn([channels] * len(t))) for t in terms)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.einsum(self.equation, x, *self.w)
        return out


class Recurrent(nn.Module):
    def __init__(self, kind: Callable[..., nn.RNNBase], channels: int) -> None:
        super().__init__()
        self.inner = kind(channels, channels, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)[0]
        return out


def images(choose: random.Random) -> tuple[nn.Module, Tensor]:
    """Convolutions with norms, scales and padding around them."""
    dims, channels = choose.choice((1, 2, 2, 3)), choose.choice((2, 4, 6))
    x = torch.randn(2, channels, *[(12, 9, 6)[dims - 1]] * dims)
    layers: list[nn.Module] = []
    for _ in range(6):
        more, channels = _of_images(choose, dims, channels)
        layers += more
    return nn.Sequential(*layers), x


def _of_images(choose: random.Random, dims: int, channels: int) -> tuple[list[nn.Module], int]:
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    out, kernel = choose.choice((2, 4, 8)), choose.choice((1, 3))
    half = kernel // 2
    same = convolution(channels, channels, 3, padding=1)
    options: dict[str, tuple[Callable[[], list[nn.Module]], int]] = {
        "plain": (lambda: [convolution(channels, out, kernel, padding=half, groups=2)], out),
        "normed": (lambda: [convolution(channels, out, kernel, padding=half), norm(out)], out),
        "strided": (lambda: [convolution(channels, out, 3, stride=2, padding=1), nn.ReLU()], out),
        "up": (lambda: [transposed(channels, out, kernel, padding=half)], out),
        "norm": (lambda: [norm(channels, affine=choose.random() < 0.5)], channels),
        "scale": (lambda: [Scale(channels, dims)], channels),
        "pad": (lambda: [nn.ZeroPad2d(1) if dims == 2 else nn.Identity()], channels),
        "twice": (lambda: [Twice(same)], channels),
        "deep": (lambda: [convolution(channels, channels, kernel, groups=channels)], channels),
        "spectral": (lambda: [parametrizations.spectral_norm(same)], channels),
        "weight": (lambda: [parametrizations.weight_norm(same)], channels),
    }
    make, after = options[choose.choice(list(options))]
    return make(), after


def features(choose: random.Random) -> tuple[nn.Module, Tensor]:
    """Linear layers, and weights that are made of several."""
    channels, is_long = choose.choice((4, 6, 8)), choose.random() < 0.5
    x = torch.randn(2, 5, channels) if is_long else torch.randn(3, channels)
    layers: list[nn.Module] = []
    for _ in range(6):
        more, channels = _of_features(choose, channels, is_long=is_long)
        layers += more
    return nn.Sequential(*layers), x


def _of_features(
    choose: random.Random, channels: int, *, is_long: bool
) -> tuple[list[nn.Module], int]:
    out, kind = choose.choice((4, 6, 8)), choose.choice((nn.LSTM, nn.GRU, nn.RNN))
    linear = nn.Linear(channels, out, bias=choose.random() < 0.7)
    options: dict[str, tuple[Callable[[], list[nn.Module]], int]] = {
        "plain": (lambda: [linear, nn.ReLU()], out),
        "normed": (lambda: [linear, *([] if is_long else [nn.BatchNorm1d(out)])], out),
        "merged": (lambda: [Merged(channels, out)], out),
        "masked": (lambda: [prune.random_unstructured(linear, "weight", 0.5)], out),
        "spectral": (lambda: [nn.utils.spectral_norm(linear)], out),
        "weight": (lambda: [parametrizations.weight_norm(linear)], out),
        "einsum": (lambda: [Einsum(choose.choice(EQUATIONS), channels)], channels),
        "twice": (lambda: [Twice(nn.Linear(channels, channels))], channels),
        "recurrent": (lambda: [Recurrent(kind, channels)] if is_long else [], channels),
    }
    make, after = options[choose.choice(list(options))]
    return make(), after


def random_model(seed: int) -> tuple[nn.Module, Tensor]:
    """A model in eval mode with zeros of both signs, and its input."""
    choose = random.Random(seed)
    torch.manual_seed(seed)
    model, x = choose.choice((images, features))(choose)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and parameter.numel() > 8:
                gone = torch.rand_like(parameter) < choose.choice((0, 0.5, 0.8))
                parameter[gone] = 0
                parameter[gone & (torch.rand_like(parameter) < 0.5)] *= -1
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_()  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
                if module.affine and choose.random() < 0.5:
                    module.weight[0] = 0  # it stays: a channel of the weight would be lost
    return model.eval(), x


def reworded(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """The same graph with its weights in nodes, all of it in a branch or not, in any order."""
    choose = random.Random(seed)
    graph = model.graph
    nodes = [
        helper.make_node("Constant", [], [item.name], value=numpy_helper.from_array(
            numpy_helper.to_array(item)))
        for item in graph.initializer
    ]  # fmt: skip
    nodes += graph.node
    outputs = list(graph.output)
    if choose.random() < 0.5:
        names = {output.name: f"{output.name}_inner" for output in outputs}
        for node in nodes:
            for field in (node.input, node.output):
                field[:] = [names.get(name, name) for name in field]
        inner = [helper.make_empty_tensor_value_info(name) for name in names.values()]
        branch = helper.make_graph(nodes, "branch", [], inner)
        other = helper.make_graph(nodes[::-1], "other", [], inner)
        flag = numpy_helper.from_array(torch.ones(1, dtype=torch.bool).numpy(), "flag")
        chosen = helper.make_node(
            "If", ["flag"], list(names), then_branch=branch, else_branch=other
        )
        nodes = [helper.make_node("Constant", [], ["flag"], value=flag), chosen]
    choose.shuffle(nodes)
    made = helper.make_graph(nodes, "graph", list(graph.input), outputs)
    return helper.make_model(made, opset_imports=list(model.opset_import), ir_version=10)

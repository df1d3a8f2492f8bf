"""Random networks whose channels become height, width, time or batch, and what they must show."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn
from torch.export import Dim

import st3fx
from st3fx.errors import ExportError
from st3fx.passes.channels.channel_report import ChannelReport
from st3fx.passes.channels.eliminate import eliminate
from tests.passes.channels import steps
from tests.passes.channels.step_moves import MOVES
from tests.passes.channels.step_others import OTHERS
from tests.passes.channels.steps import Named, Shape

EXACT = 1e-9
"""Largest difference over the largest output, in float64; the order of additions is another."""

SINGLE = 2e-4
"""The same of an ONNX file, in float32."""

NOISE = 1e-12
"""Outputs below it are what rounding left of zero."""

LARGEST = 20_000
"""Elements of a tensor."""

INPUTS: tuple[Shape, ...] = ((4, 6, 6), (3, 8), (10,), (6, 5), (2, 4, 4, 4))
"""Of one sample."""

JOINS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "mul": torch.mul,
    "maximum": torch.maximum,
    "matmul": torch.matmul,
    "cat 1": lambda x, y: torch.cat([x, y], 1),
    "cat -1": lambda x, y: torch.cat([x, y], -1),
    "cat 0": lambda x, y: torch.cat([x, y]),
    "against": lambda x, y: x @ y.transpose(-1, -2),
}


class Program(nn.Module):
    """Steps, each of which reads what others gave."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList()
        self.reads: list[tuple[int, ...]] = []
        self.outputs: tuple[int, ...] = (0,)

    def forward(self, x: Tensor) -> Any:
        values = [x]
        for step, places in zip(self.steps, self.reads, strict=True):
            values.append(step(*(values[place] for place in places)))
        given = tuple(values[place] for place in self.outputs)
        return given if len(given) > 1 else given[0]


class _Growing:
    """A program, with its values of two batch sizes."""

    def __init__(self, draw: random.Random, shape: Shape) -> None:
        self.draw, self.program = draw, Program()
        generator = torch.Generator().manual_seed(draw.randrange(2**31))
        self.values = [
            tuple(torch.randn(batch, *shape, generator=generator).double() for batch in (4, 6))
        ]

    def shape(self, place: int) -> Shape:
        """Sizes; 0 for those that depend on the batch."""
        pair = zip(*(value.shape for value in self.values[place]), strict=True)
        return tuple(first if first == second else 0 for first, second in pair)

    def add(self, step: nn.Module | None, *places: int) -> bool:
        """Append a step, unless it cannot run or gives what nothing can be told from."""
        if step is None:
            return False
        randomized(step, self.draw)
        try:
            with torch.no_grad():
                given = [step(*(self.values[place][which] for place in places)) for which in (0, 1)]
        except (RuntimeError, ValueError, IndexError, AssertionError, NotImplementedError):
            return False
        if not all(_is_useful(value) for value in given) or given[0].dim() != given[1].dim():
            return False
        self.program.steps.append(step)
        self.program.reads.append(places)
        self.values.append(tuple(given))
        return True


def _is_useful(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and 0 < value.numel() <= LARGEST
        and 2 <= value.dim() <= 5
        and value.dtype == torch.float64
        and bool(value.isfinite().all())
        and not 0 < float(value.abs().max()) < NOISE
        and float(value.abs().max()) < 1e4
    )


def random_program(seed: int) -> tuple[Program, Tensor]:
    """A network and an example of four samples."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    growing = _Growing(draw, draw.choice(INPUTS))
    wanted, place = draw.randint(3, 12), 0
    for _ in range(20 * wanted):
        if len(growing.program.steps) == wanted:
            break
        shape = growing.shape(place)
        if draw.random() < 0.12 and place:
            name = draw.choice(list(JOINS))
            done = growing.add(Named(name, JOINS[name]), place, draw.randrange(place + 1))
        else:
            kinds = draw.choices((steps.PRODUCTS, MOVES, OTHERS), (0.4, 0.3, 0.3))[0]
            done = growing.add(draw.choice(kinds)(draw, shape), place)
        place = len(growing.program.steps) if done else place
    for _ in range(draw.randint(0, 3)):  # most axes are summed over in the end, or nothing could go
        step = draw.choice((steps.linear, steps.einsum, steps.on_the_left))
        if growing.add(step(draw, growing.shape(place)), place):
            place = len(growing.program.steps)
    program, last = growing.program, len(growing.program.steps)
    program.outputs = (last,) if draw.random() < 0.8 else (draw.randrange(last + 1), last)
    return program.double().eval(), growing.values[0][0]


@torch.no_grad()
def randomized(step: nn.Module, draw: random.Random) -> None:
    """In eval mode, with values that tell, and rows, columns and biases of zeros."""
    step.double().eval()
    share = draw.choice((0.2, 0.5, 0.8))
    for parameter in step.parameters():
        parameter.uniform_(-1, 1)
        if parameter.dim() > 1:
            parameter[torch.rand(len(parameter)) < share] = 0
            parameter[:, torch.rand(parameter.shape[1]) < share / 3] = 0
        elif draw.random() < 0.5:
            parameter[torch.rand(len(parameter)) < share] = draw.choice((0.0, 0.0, 0.3))
    for module in step.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            assert module.running_mean is not None
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2)


def captured(
    model: nn.Module, x: Tensor, *, free: bool = True
) -> tuple[torch.export.ExportedProgram, bool]:
    """A program, and whether its batch is free, as is asked for and as can be."""
    if free:
        shapes = ({0: Dim.DYNAMIC},)
        try:
            return torch.export.export(model, (x,), dynamic_shapes=shapes, strict=False), True
        except Exception:  # noqa: BLE001 (whatever it is: a size of it is built in)
            pass
    return torch.export.export(model, (x,), strict=False), False


def agree(model: nn.Module, x: Tensor, *, free: bool = True) -> ChannelReport:
    """A network without its dead channels computes the same, at the batch sizes that it takes."""
    program, free = captured(model, x, free=free)
    graph, report = eliminate(program)
    generator = torch.Generator().manual_seed(7)
    for batch in (len(x), *((6, 10) if free else ())):
        value = torch.randn(batch, *x.shape[1:], generator=generator, dtype=x.dtype)
        with torch.no_grad():
            same(model(value), graph(value), EXACT)
    return report


def same(wanted: Any, given: Any, tolerance: float) -> None:
    """Equal shapes and types, and values up to a share of the largest."""
    pairs = [(wanted, given)] if isinstance(wanted, Tensor) else zip(wanted, given, strict=True)
    for left, right in pairs:
        assert left.shape == right.shape, f"{tuple(right.shape)} instead of {tuple(left.shape)}"
        assert left.dtype == right.dtype, f"{right.dtype} instead of {left.dtype}"
        difference = float((left - right).abs().max()) / (float(left.abs().max()) or 1.0)
        assert difference <= tolerance, f"differs by {difference:.3g}"


def agree_in_a_file(model: nn.Module, x: Tensor, path: Path) -> bool:
    """What ONNX Runtime computes without dead channels; whether the model can be exported at all.

    Raises:
        ExportError: When it can be exported, but not without its dead channels.
    """
    model, x = model.float(), x.float()
    for fixed in (False, True):
        try:
            st3fx.export_onnx(model, x, path, fixed_batch=fixed)
            break
        except ExportError:
            pass
    else:
        return False
    st3fx.export_onnx(model, x, path, fixed_batch=fixed, eliminate_dead_channels=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    value = torch.randn(len(x) if fixed else 6, *x.shape[1:])
    feeds = {port.name: value.numpy() for port in session.get_inputs()}
    with torch.no_grad():
        wanted = model(value)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    same(wanted, [torch.from_numpy(array) for array in session.run(None, feeds)], SINGLE)
    return True

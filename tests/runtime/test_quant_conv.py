"""QuantConv and QuantDepthwiseConv equal the integer reference, on every instruction set."""

from __future__ import annotations

import itertools
import os
from typing import Any

import numpy as np
import pytest

from st3fx import native
from st3fx.runtime.layout import to_blocked_bytes
from tests.runtime import quant_ops

ISAS = native.available_isas()
RESIDUAL = {"sum_factor": 0.8, "residual_factor": 0.37, "offset": -11.3}


def check(
    isa: str,
    generator: np.random.Generator,
    weight_shape: tuple[int, int, int, int],
    size: tuple[int, int],
    *,
    batch: int = 1,
    groups: int = 1,
    density: float = 0.3,
    strides: tuple[int, int] = (1, 1),
    dilations: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    residual: bool = False,
    threads: int = 1,
    **more: Any,
) -> None:
    """Runs one convolution and compares; a depthwise one where groups are the rows."""
    rows, depth, *kernel = weight_shape
    channels = depth * groups
    depthwise = groups == rows > 1 and depth == 1
    dense = quant_ops.weight(generator, weight_shape, 1.0 if depthwise else density)
    # Most results lie within the bytes, some beside them.
    spread = 74 * 90 * np.sqrt(max(np.count_nonzero(dense) / rows, 1))
    constants = {
        "bias": generator.integers(-int(spread), int(spread) + 1, rows, np.int32),
        "multiplier": (generator.uniform(0.5, 1.5, rows) * 60 / spread).astype(np.float32),
    }
    attributes: dict[str, Any] = {
        "channels": channels, "kernel_shape": kernel, "strides": strides, "dilations": dilations,
        "pads": pads, "x_zero_point": int(generator.integers(0, 256)),
        "y_zero_point": int(generator.integers(0, 256)), **more,
    }  # fmt: skip
    if depthwise:
        constants["w"], order = dense, "x w bias multiplier"
    else:
        constants |= quant_ops.sparse_inputs(dense)
        attributes["group"], order = groups, "x values columns row_starts bias multiplier"
    feeds = {"x": quant_ops.images(generator, batch, channels, *size)}
    if residual:
        out = [
            (size[i] + pads[i] + pads[i + 2] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1
            for i in range(2)
        ]
        feeds["z"] = quant_ops.images(generator, batch, rows, *out)
        attributes |= RESIDUAL
    quant_ops.check(
        "QuantDepthwiseConv" if depthwise else "QuantConv", feeds, constants, attributes,
        order=order + " z" * residual, channels=rows, isa=isa, threads=threads,
    )  # fmt: skip


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kernel", [(7, 7), (3, 3), (3, 1), (1, 3), (2, 2), (1, 1)])
@pytest.mark.parametrize(("stride", "pad"), [(1, 0), (1, 1), (2, 0), (2, 1)])
def test_dense_rows_of_few_channels(
    isa: str, kernel: tuple[int, int], stride: int, pad: int
) -> None:
    # A first layer: its rows read the same blocks, and its tiles are wider than the layout's.
    generator = np.random.default_rng(0)
    for channels, residual in itertools.product((3, 8), (False, True)):
        shape = (10, channels, *kernel)
        check(isa, generator, shape, (33, 29), density=1.0, strides=(stride, stride),
              pads=(pad,) * 4, batch=2, threads=2, residual=residual)  # fmt: skip


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 7), (4, 28), (14, 14), (13, 19)])
def test_sizes(isa: str, size: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    for kernel, pads, channels in itertools.product((1, 3), (0, 1), (1, 3, 9, 16)):
        if min(size) + 2 * pads >= kernel:
            shape = (20, channels, kernel, kernel)
            check(isa, generator, shape, size, pads=(pads,) * 4, batch=2)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("residual", [False, True])
def test_ranges_of_what_comes_last(isa: str, residual: bool) -> None:
    generator = np.random.default_rng(1)
    ranges: list[dict[str, Any]] = [
        {"minimum": 100},
        {"maximum": 99},
        {"minimum": 30, "maximum": 200},
    ]
    ranges += [{"sum_minimum": 60, "sum_maximum": 190, "minimum": 20}] if residual else []
    for kernel, limits in itertools.product((1, 3), ranges):
        check(isa, generator, (6, 5, kernel, kernel), (9, 9), residual=residual, **limits)
        check(isa, generator, (6, 1, 3, 3), (9, 9), groups=6, residual=residual, **limits)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("density", [0.0, 0.02, 0.1, 0.5, 1.0])
def test_density(isa: str, density: float) -> None:
    generator = np.random.default_rng(2)
    check(isa, generator, (33, 70, 1, 1), (14, 14), density=density)
    check(isa, generator, (17, 12, 3, 3), (14, 14), density=density, pads=(1, 1, 1, 1))


@pytest.mark.parametrize("isa", ISAS)
def test_strides_and_groups(isa: str) -> None:
    generator = np.random.default_rng(3)
    for strides in ((2, 2), (1, 2), (3, 1)):
        check(isa, generator, (10, 8, 3, 3), (15, 17), strides=strides, pads=(1, 1, 1, 1))
        check(isa, generator, (10, 8, 1, 1), (15, 17), strides=strides)
        check(isa, generator, (13, 1, 3, 3), (15, 17), groups=13, strides=strides, pads=(1,) * 4)
    for groups in (2, 3):
        check(isa, generator, (4 * groups, 8, 3, 3), (9, 9), groups=groups, pads=(1, 1, 1, 1))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_and_batches(isa: str, threads: int) -> None:
    generator = np.random.default_rng(4)
    for size, kernel, batch in itertools.product(((7, 7), (30, 40)), (1, 3), (1, 3)):
        pads = (kernel // 2,) * 4
        shape = (130, 40, kernel, kernel)
        check(isa, generator, shape, size, batch=batch, threads=threads, pads=pads, residual=True)
        if kernel > 1:
            check(
                isa, generator, (37, 1, kernel, kernel), size, groups=37, batch=batch,
                threads=threads, pads=pads, residual=True,
            )  # fmt: skip


@pytest.mark.parametrize("isa", ISAS)
def test_products_of_the_largest_numbers_do_not_saturate(isa: str) -> None:
    """255 · 127 + 255 · 127 is beyond 16 bits, where some instructions add pairs."""
    blocks = quant_ops.sparse_inputs(np.full((8, 64, 1, 1), 127, np.int8))
    blocks["values"][::2] = -128
    for byte, zero in ((255, 0), (0, 255)):
        quant_ops.check(
            "QuantConv",
            {"x": to_blocked_bytes(np.full((1, 64, 5, 5), byte, np.uint8))},
            blocks | {"bias": np.zeros(8, np.int32), "multiplier": np.full(8, 1e-2, np.float32)},
            {"channels": 64, "kernel_shape": (1, 1), "x_zero_point": zero, "y_zero_point": 128},
            order="x values columns row_starts bias multiplier", channels=8, isa=isa,
        )  # fmt: skip


def random_case(seed: int) -> dict[str, Any]:
    """A configuration that a model could hold."""
    generator = np.random.default_rng(seed)

    def pick(*values: Any) -> Any:
        return values[generator.integers(len(values))]

    groups = pick(1, 1, 1, 2, 3)
    kernel = (pick(1, 1, 2, 3, 3, 5, 7), pick(1, 1, 2, 3, 3, 5, 7))
    dilations = (pick(1, 1, 2, 3), pick(1, 1, 2, 3))
    spans = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    pads = tuple(int(generator.integers(0, span + 1)) for span in spans * 2)
    least = [max(span + 1 - pads[i] - pads[i + 2], 1) for i, span in enumerate(spans)]
    depth = pick(1, 3, 8, 21, 67) if groups == 1 else pick(4, 8, 20)
    rows = groups * pick(1, 2, 5, 16, 35)
    if pick(*range(5)) == 0:
        groups, depth = rows, 1
        groups, rows = (rows, rows) if rows > 1 else (5, 5)
    return {
        "weight_shape": (rows, depth, *kernel),
        "size": tuple(low + int(generator.integers(0, 40)) for low in least),
        "batch": pick(1, 1, 2, 3),
        "groups": groups,
        "density": pick(0.02, 0.1, 0.3, 0.9),
        "strides": (pick(1, 1, 2, 3), pick(1, 1, 2, 3)),
        "dilations": dilations,
        "pads": pads,
        "residual": pick(True, False),
        "threads": pick(1, 2),
        "minimum": pick(0, 0, 40),
        "maximum": pick(255, 255, 180),
    }


CASES = int(os.environ.get("ST3FX_KERNEL_CASES", "200"))


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_random_configurations(isa: str) -> None:
    """Some hundred; ``ST3FX_KERNEL_CASES=5000`` tries more."""
    for seed in range(CASES):
        case = random_case(seed)
        try:
            check(isa, np.random.default_rng(seed), **case)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {case}") from error

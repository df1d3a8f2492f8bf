"""SparseConv against torch in float64, on every instruction set that this CPU has."""

from __future__ import annotations

import itertools
import os
from typing import Any

import numpy as np
import pytest
import torch

from st3fx import native
from tests.runtime import ops

ISAS = native.available_isas()
FAST = [isa for isa in ISAS if isa != "scalar"]


def check(
    isa: str,
    generator: np.random.Generator,
    weight_shape: tuple[int, int, int, int],
    size: tuple[int, int],
    *,
    batch: int = 1,
    groups: int = 1,
    density: float = 0.2,
    strides: tuple[int, int] = (1, 1),
    dilations: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    activation: str = "none",
    bias: bool = True,
    residual: bool = False,
    layouts: tuple[str, str] = ("blocked", "blocked"),
    threads: int = 1,
) -> None:
    """Runs one convolution and compares."""
    rows, channels = weight_shape[0], weight_shape[1] * groups
    weight = ops.sparse_weight(generator, weight_shape, density)
    offsets = generator.standard_normal(rows).astype(np.float32) if bias else None
    x = generator.standard_normal((batch, channels, *size)).astype(np.float32)
    top, left, bottom, right = pads
    padded = torch.nn.functional.pad(torch.from_numpy(x).double(), (left, right, top, bottom))
    expected = torch.nn.functional.conv2d(
        padded,
        torch.from_numpy(weight).double(),
        None if offsets is None else torch.from_numpy(offsets).double(),
        strides,
        0,
        dilations,
        groups,
    )
    node = ops.sparse_conv(
        weight,
        groups,
        offsets,
        residual,
        strides=strides,
        dilations=dilations,
        pads=pads,
        input_layout=layouts[0],
        output_layout=layouts[1],
        **ops.ACTIVATIONS[activation],
    )
    feeds = {"x": ops.place(x, layouts[0])}
    if residual:
        z = generator.standard_normal(expected.shape).astype(np.float32)
        feeds["z"] = ops.place(z, layouts[1])
        expected = expected + torch.from_numpy(z)
    result = node.run(isa, threads, **feeds)
    ops.assert_close(ops.plain(result, layouts[1], rows), expected, activation)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layouts", list(itertools.product(["nchw", "blocked"], repeat=2)))
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 7), (4, 28), (14, 14), (13, 19)])
def test_sizes_and_layouts(isa: str, layouts: tuple[str, str], size: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    for kernel, pads in (((1, 1), (0, 0, 0, 0)), ((3, 3), (1, 1, 1, 1))):
        check(isa, generator, (20, 9, *kernel), size, pads=pads, layouts=layouts, batch=2)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
@pytest.mark.parametrize("residual", [False, True])
def test_what_comes_last(isa: str, activation: str, residual: bool) -> None:
    generator = np.random.default_rng(1)
    for kernel, layouts in itertools.product((1, 3), (("nchw", "nchw"), ("blocked", "blocked"))):
        shape = (6, 5, kernel, kernel)
        check(
            isa, generator, shape, (9, 9), activation=activation, residual=residual, layouts=layouts
        )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("density", [0.0, 0.02, 0.1, 0.5, 1.0])
def test_density(isa: str, density: float) -> None:
    generator = np.random.default_rng(2)
    check(isa, generator, (33, 70, 1, 1), (14, 14), density=density)
    check(isa, generator, (17, 12, 3, 3), (14, 14), density=density, pads=(1, 1, 1, 1))


@pytest.mark.parametrize("isa", FAST)
def test_many_channels_are_worked_on_in_blocks(isa: str) -> None:
    generator = np.random.default_rng(3)
    check(isa, generator, (40, 700, 1, 1), (9, 14), density=0.3, activation="relu", residual=True)
    check(
        isa, generator, (24, 300, 3, 3), (7, 9), density=0.3, pads=(1, 1, 1, 1), activation="silu"
    )


@pytest.mark.parametrize("isa", FAST)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", [1, 3])
def test_threads_and_batches(isa: str, threads: int, batch: int) -> None:
    generator = np.random.default_rng(4)
    for size, kernel in itertools.product(((7, 7), (30, 40)), (1, 3)):
        check(
            isa, generator, (130, 40, kernel, kernel), size, batch=batch, threads=threads,
            pads=(kernel // 2,) * 4, residual=True, activation="relu",
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
    return {
        "weight_shape": (groups * pick(1, 2, 5, 16, 35), pick(1, 3, 8, 21), *kernel),
        "size": tuple(low + int(generator.integers(0, 40)) for low in least),
        "batch": pick(1, 1, 2, 3),
        "groups": groups,
        "density": pick(0.02, 0.1, 0.3, 0.9),
        "strides": (pick(1, 1, 2, 3), pick(1, 1, 2, 3)),
        "dilations": dilations,
        "pads": pads,
        "activation": pick(*ops.ACTIVATIONS),
        "bias": pick(True, False),
        "residual": pick(True, False),
        "layouts": (pick("nchw", "blocked"), pick("nchw", "blocked")),
        "threads": pick(1, 2),
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

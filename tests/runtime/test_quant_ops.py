"""Quantized operators but convolutions equal the integer reference, on every instruction set."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from st3fx import native
from tests.runtime import quant_ops

ISAS = native.available_isas()
SIZES = [(1, 1), (3, 5), (7, 7), (8, 14), (13, 19)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("x_scale", [0.0, 0.023])
def test_linear(isa: str, threads: int, x_scale: float) -> None:
    generator = np.random.default_rng(0)
    kinds: list[dict[str, Any]] = [
        {}, {"activation": "relu"}, {"activation": "clip", "minimum": -0.5, "maximum": 0.75}
    ]  # fmt: skip
    for shape, (rows, features) in itertools.product(
        [(1,), (3,), (2, 17), (2, 3, 40)], [(8, 16), (33, 70), (5, 3), (130, 257)]
    ):
        constants = quant_ops.sparse_inputs(quant_ops.weight(generator, (rows, features), 0.3))
        constants["bias"] = generator.standard_normal(rows).astype(np.float32)
        constants["weight_scale"] = generator.uniform(1e-3, 1e-2, rows).astype(np.float32)
        about = {"features": features, "x_scale": x_scale, **kinds[rows % 3]}
        about |= {"x_zero_point": 117} if x_scale else {}
        x = (3 * generator.standard_normal((*shape, features))).astype(np.float32)
        for bias in ("bias", "-"):
            used = {name: value for name, value in constants.items() if name != "bias" or bias}
            if bias == "-":
                used.pop("bias")
            quant_ops.check(
                "QuantLinear", {"x": x}, used, about, isa=isa, threads=threads,
                order=f"x values columns row_starts {bias} weight_scale",
            )  # fmt: skip


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shift", [-5.0, 0.0, 5.0])
def test_dynamic_linear_on_one_side_of_zero(isa: str, shift: float) -> None:
    generator = np.random.default_rng(1)
    constants = quant_ops.sparse_inputs(quant_ops.weight(generator, (9, 12), 0.5))
    constants["weight_scale"] = np.full(9, 0.01, np.float32)
    for spread in (0.0, 1.0):
        x = (shift + spread * generator.random((4, 12))).astype(np.float32)
        quant_ops.check("QuantLinear", {"x": x}, constants, {"features": 12}, isa=isa,
                        order="x values columns row_starts - weight_scale")  # fmt: skip


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", SIZES)
def test_sums(isa: str, size: tuple[int, int]) -> None:
    generator = np.random.default_rng(2)
    for threads, limits in ((1, {}), (2, {"minimum": 80, "maximum": 170})):
        feeds = {name: quant_ops.images(generator, 2, 11, *size) for name in ("x", "z")}
        about = {"a_factor": 0.71, "b_factor": 0.52, "offset": -17.25, **limits}
        quant_ops.check("QuantAdd", feeds, {}, about, order="x z", channels=11, isa=isa,
                        threads=threads)  # fmt: skip


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", [(7,), (2, 3, 5), (2, 8, 13, 19)])
def test_lookup(isa: str, shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(3)
    table = generator.integers(0, 256, 256, np.uint8)
    x = generator.integers(0, 256, shape, np.uint8)
    quant_ops.check("QuantLookup", {"x": x}, {"table": table}, {}, order="x table", isa=isa)


POOLS: list[dict[str, Any]] = [
    {"kernel_shape": (2, 2), "strides": (2, 2)},
    {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)},
    {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (0, 0, 0, 0), "ceil_mode": 1},
    {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1), "ceil_mode": 1},
    {"kernel_shape": (5, 5), "strides": (1, 1), "pads": (2, 2, 2, 2)},
    {"kernel_shape": (2, 3), "strides": (1, 2), "pads": (1, 0, 0, 1)},
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("about", POOLS, ids=str)
def test_pools(isa: str, about: dict[str, Any]) -> None:
    generator = np.random.default_rng(4)
    for size, channels in itertools.product([(7, 7), (8, 14), (13, 19)], [3, 8]):
        feeds = {"x": quant_ops.images(generator, 2, channels, *size)}
        quant_ops.check("QuantMaxPool", feeds, {}, {"channels": channels, **about}, order="x",
                        channels=channels, isa=isa, threads=2)  # fmt: skip
        more = {"channels": channels, "factor": 1.3, "x_zero_point": 31, "y_zero_point": 20}
        for padded in (0, 1):
            wanted = {**about, **more, "count_include_pad": padded}
            quant_ops.check("QuantAveragePool", feeds, {}, wanted, order="x", channels=channels,
                            isa=isa, threads=2)  # fmt: skip


@pytest.mark.parametrize("isa", ISAS)
def test_dilated_max_pool(isa: str) -> None:
    generator = np.random.default_rng(5)
    about = {"channels": 6, "kernel_shape": (2, 3), "dilations": (2, 3), "pads": (1, 2, 0, 1)}
    quant_ops.check("QuantMaxPool", {"x": quant_ops.images(generator, 1, 6, 12, 15)}, {}, about,
                    order="x", channels=6, isa=isa)  # fmt: skip


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", SIZES)
def test_global_average(isa: str, size: tuple[int, int]) -> None:
    generator = np.random.default_rng(6)
    about = {"channels": 13, "factor": 1.7, "x_zero_point": 100, "y_zero_point": 60}
    about |= {"minimum": 60, "maximum": 200}
    quant_ops.check("QuantGlobalAveragePool", {"x": quant_ops.images(generator, 2, 13, *size)}, {},
                    about, order="x", channels=13, isa=isa, threads=2)  # fmt: skip


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", SIZES)
def test_scale(isa: str, size: tuple[int, int]) -> None:
    generator = np.random.default_rng(7)
    about = {"channels": 10, "factor": 0.0061, "x_zero_point": 90, "s_zero_point": 3,
             "y_zero_point": 80, "minimum": 10}  # fmt: skip
    feeds = {"x": quant_ops.images(generator, 2, 10, *size)}
    feeds["s"] = quant_ops.images(generator, 2, 10, 1, 1)
    quant_ops.check("QuantScale", feeds, {}, about, order="x s", channels=10, isa=isa, threads=2)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", SIZES)
def test_channels(isa: str, size: tuple[int, int]) -> None:
    generator = np.random.default_rng(8)
    counts = (5, 8, 3)
    feeds = {
        name: quant_ops.images(generator, 2, count, *size)
        for name, count in zip("xyz", counts, strict=True)
    }
    feeds["a"] = feeds.pop("y")  # "y" is the output
    for sources in (None, list(range(4, 11)), [15, 0, 7, 7, 2], list(range(8))):
        about = {"channels": counts, **({"sources": sources} if sources else {})}
        for constants in ({}, {"tables": generator.integers(0, 256, (3, 256), np.uint8)}):
            quant_ops.check(
                "QuantChannels", feeds, constants, about, order=" ".join(["x a z", *constants]),
                isa=isa, threads=2, channels=len(sources or range(16)),
            )  # fmt: skip


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3, 4, 9])
def test_into_bytes_and_back(isa: str, size: tuple[int, int], channels: int) -> None:
    generator = np.random.default_rng(9)
    about = {"channels": channels, "scale": 0.031, "zero_point": 114}
    x = (3 * generator.standard_normal((2, channels, *size))).astype(np.float32)
    quant_ops.check("QuantizeImage", {"x": x}, {}, about, order="x", channels=channels, isa=isa,
                    threads=2)  # fmt: skip
    feeds = {"x": quant_ops.images(generator, 2, channels, *size)}
    quant_ops.check("DequantizeImage", feeds, {}, about, order="x", isa=isa, threads=2)
    plain = {"x": generator.integers(0, 256, (2, channels, *size), np.uint8)}
    quant_ops.check("QuantLayout", plain, {}, {"channels": channels, "output_layout": "blocked"},
                    order="x", channels=channels, isa=isa)  # fmt: skip
    quant_ops.check("QuantLayout", feeds, {}, {"channels": channels, "input_layout": "blocked"},
                    order="x", isa=isa)  # fmt: skip


@pytest.mark.parametrize("isa", ISAS)
def test_ties_go_to_the_even_number(isa: str) -> None:
    x = (np.arange(-8, 8).reshape(1, 1, 4, 4) * 0.5).astype(np.float32)
    quant_ops.check("QuantizeImage", {"x": x}, {}, {"channels": 1, "scale": 1.0, "zero_point": 7},
                    order="x", channels=1, isa=isa)  # fmt: skip

"""What quantized operators refuse, in a line, when a session is created or a call is made."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from tests.runtime import quant_ops
from tests.runtime.ops import Node

BYTES: dict[str, int] = dict.fromkeys("xzy", int(TensorProto.UINT8))
FACTORS = {"a_factor": 1.0, "b_factor": 1.0, "offset": 0.0}
POOL = {"channels": 64, "factor": 1.0}


@pytest.mark.parametrize(
    ("op", "about", "inputs", "message"),
    [
        ("QuantAdd", {**FACTORS, "minimum": 9, "maximum": 8}, "x z", "'minimum' is 9, more than"),
        ("QuantScale", {"channels": 4, "factor": 1.0, "minimum": 9, "maximum": 8}, "x z",
         "'minimum' is 9, more than"),
        ("QuantAveragePool", {**POOL, "kernel_shape": (1 << 20, 1 << 20)}, "x",
         "'kernel_shape' is out of range"),
        ("QuantAveragePool", {**POOL, "kernel_shape": (4096, 4096)}, "x",
         "'kernel_shape' is out of range"),
    ],
)  # fmt: skip
def test_attributes(op: str, about: dict[str, Any], inputs: str, message: str) -> None:
    with pytest.raises(Exception, match=f"{op}.*{message}"):
        Node(op, about, inputs.split(), {}, BYTES).session()


def test_more_inputs_than_numbers_of_channels() -> None:
    images = quant_ops.images(np.random.default_rng(0), 1, 4, 4, 4)
    node = Node("QuantChannels", {"channels": (4,)}, ["x", "z"], {}, BYTES)
    with pytest.raises(Exception, match="needs one number for each input"):
        node.run(None, 1, x=images, z=images)


def test_tables_for_each_input() -> None:
    tables = {"tables": np.zeros((2, 256), np.uint8)}
    node = Node("QuantChannels", {"channels": (4,)}, ["x", "tables"], tables, BYTES)
    with pytest.raises(Exception, match=r"tables of shape \[2, 256\], expected \[1, 256\]"):
        node.session()


def test_an_average_of_no_pixels() -> None:
    node = Node("QuantGlobalAveragePool", {"channels": 4, "factor": 1.0}, ["x"], {}, BYTES)
    with pytest.raises(Exception, match="without pixels"):
        node.run(None, 1, x=np.zeros((1, 4, 0, 3), np.uint8))

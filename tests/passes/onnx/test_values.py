"""What passes read off values."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from st3fx.passes.onnx.values import rows


@pytest.mark.parametrize(
    ("shape", "expected"),
    [(("batch", 197, 768), 197), (("12*batch", 64), 12), (("unk__13", 197, 768), 197),
     (("s77", "batch2", 8), 1), ((5, 4, 3), 20), ((0, 3), 1)],
)  # fmt: skip
def test_vectors_of_one_sample(shape: tuple[int | str, ...], expected: int) -> None:
    value = ir.Value(name="x", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
    assert rows(value) == expected

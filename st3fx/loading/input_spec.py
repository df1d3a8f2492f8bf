"""Example inputs from text: ``1x3x224x224``, ``2x128:int64``. Seeded, so always the same values."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from st3fx.errors import SpecError, suggest

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
    "complex64": torch.complex64,
    "float": torch.float32,
    "double": torch.float64,
    "half": torch.float16,
    "long": torch.int64,
    "int": torch.int32,
}
"""Names after the colon -> dtype: torch's own names and its short ones."""

SCALAR = "scalar"
"""The text for a tensor of no dimension."""

_LIMIT = 1 << 35
"""Scalars. Larger than any example; a slip of the finger would fill the memory before it fails."""


def parse_inputs(texts: Sequence[str], *, seed: int = 0) -> tuple[Tensor, ...]:
    """Positional arguments, one per text. Two of the same shape have different values.

    Raises:
        SpecError: As :func:`parse_input`.
    """
    generator = torch.Generator().manual_seed(seed)
    return tuple(parse_input(text, generator) for text in texts)


def parse_input(text: str, generator: torch.Generator | None = None) -> Tensor:
    """A tensor of the shape and dtype that ``text`` names.

    Args:
        text: ``SHAPE[:dtype]``, sizes joined by ``x``, or ``scalar`` for a tensor of no dimension;
            float32 without a dtype.
        generator: Source of the values; a fresh one with seed 0 if not given.

    Returns:
        Standard normal values for floats; 0 and 1 for integers (as valid as an index can be
        without knowing the model) and booleans. On the CPU.

    Raises:
        SpecError: When the text names no shape, an unknown dtype, or more than fits.
    """
    match = re.fullmatch(rf"(\d+(?:[x×]\d+)*|{SCALAR})(?::(.*))?", text.strip())
    if not match:
        raise SpecError(
            f"--input {text!r}: give sizes joined by x, e.g. 1x3x224x224 or 2x16:int64, or {SCALAR}"
        )
    shape = [] if match[1] == SCALAR else [int(size) for size in re.split("[x×]", match[1])]
    name = "float32" if match[2] is None else match[2].removeprefix("torch.")
    if name not in DTYPES:
        close = suggest(name, list(DTYPES)) or f"; there are {', '.join(list(DTYPES)[:10])}"
        raise SpecError(f"--input {text!r}: unknown dtype {name!r}{close}")
    if 0 in shape:
        raise SpecError(f"--input {text!r}: a size is 0; the model needs values to run on")
    if math.prod(shape) > _LIMIT:
        raise SpecError(f"--input {text!r}: {math.prod(shape):,} values do not fit into memory")
    return _values(shape, DTYPES[name], generator or torch.Generator().manual_seed(0))


def _values(shape: list[int], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    try:
        if dtype.is_complex:
            return torch.randn(shape, generator=generator, dtype=dtype)
        if dtype.is_floating_point:
            # Drawn in float32, so that the same numbers are rounded to every dtype.
            return torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype)
        return torch.randint(0, 2, shape, generator=generator).to(dtype)
    except (RuntimeError, MemoryError) as error:
        raise SpecError(f"--input of shape {tuple(shape)} does not fit into memory") from error

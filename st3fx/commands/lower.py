"""From a quantized ONNX file to one with our kernels: ``export FILE.onnx --sparse-kernels``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from st3fx.bench import onnx_file
from st3fx.bench.onnx_file import noted_shapes
from st3fx.commands.progress import silent
from st3fx.errors import ExportError
from st3fx.export import quantized
from st3fx.export.quantized import QuantFile
from st3fx.export.sparse import check_library
from st3fx.loading.input_spec import parse_inputs
from st3fx.passes.onnx.values import Array

_CALLS = 2
"""That are compared, with random values."""


def target_of(path: str | Path) -> str:
    """What is written of a file where no name was asked for, in the working directory."""
    return quantized.default_name(Path(path))


def lower_file(
    path: str | Path,
    output: str | Path,
    *,
    shapes: Sequence[str] = (),
    verify: bool = True,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> QuantFile:
    """Put our kernels into a quantized ONNX file, whoever wrote it, where they gain.

    Args:
        path: The file: ``QuantizeLinear`` and ``DequantizeLinear`` between its layers.
        output: The file to write; one that is there is replaced. There is none where no layer
            gains.
        shapes: ``SHAPE`` texts of its inputs in order, for the comparison; empty: as the file has
            them.
        verify: Compare with the given file in ONNX Runtime, on random values.
        seed: Of these.
        progress: Called with the name of each stage as it begins.

    Raises:
        ExportError: When the file cannot be read, is not quantized, or a check fails.
        BenchError: When a size of its inputs is not known.
    """
    source, target, report = Path(path), Path(output), progress or silent
    check_library(verify=verify)
    report("load")
    quantized.read_quantized(source)
    if not onnx_file.is_quantized(source):
        raise ExportError(
            f"{source} is not quantized: --sparse-kernels takes an ONNX file of 8-bit integers, "
            "such as st3fx quantize writes, or a bundle or SPEC for kernels in fp32"
        )
    feeds = _feeds(source, shapes, seed) if verify else []
    return quantized.write_lowered(source, target, feeds, progress=report)


def _feeds(path: Path, shapes: Sequence[str], seed: int) -> list[dict[str, Array]]:
    """Random values for some calls of a file."""
    ports = onnx_file.read_inputs(path, custom_ops=True)
    given = [tuple(value.shape) for value in parse_inputs(shapes)] or noted_shapes(path)
    sizes = onnx_file.sized(ports, onnx_file.default_batch(ports, given), given, str(path))
    names = [port.name for port in ports]
    return [
        dict(zip(names, onnx_file.values(ports, sizes, seed + call), strict=True))
        for call in range(_CALLS)
    ]

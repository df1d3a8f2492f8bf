"""What an export or a fold did: plain data that turns itself into JSON values."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st3fx.errors import few
from st3fx.passes.channels.channel_report import ChannelReport
from st3fx.passes.onnx.sparse_kernels.kernel_report import KernelReport


@dataclass(frozen=True)
class SparseFile:
    """A written ONNX file with sparse operators.

    Attributes:
        path: The file.
        kernels: What was chosen for each layer.
        open_inputs: Inputs whose height and width are free, tried with a size that the export had
            not seen.
        parity: One for each call that was compared with PyTorch; empty where that was left out.
        tolerance: Largest relative difference that passes: 1e-5, or what PyTorch and ONNX Runtime
            on the plain file round by, where that is more (``st3fx.export.rounding``).
    """

    path: Path
    kernels: KernelReport
    open_inputs: tuple[str, ...]
    parity: tuple[Parity, ...]
    tolerance: float

    def to_dict(self) -> dict[str, Any]:
        """This result as JSON values."""
        return {
            **dataclasses.asdict(self),
            "path": str(self.path),
            "kernels": self.kernels.to_dict(),
        }


@dataclass(frozen=True)
class Size:
    """Bytes of a file, or of weights in memory, as they are and after zlib at level 6.

    Of more than 256 MB the second is estimated from a part that lies all over it.
    """

    name: str
    raw: int
    compressed: int


@dataclass(frozen=True)
class Port:
    """An input or output: its name, its ONNX type, its shape with a name for free sizes."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Parity:
    """ONNX Runtime against PyTorch for one call.

    Attributes:
        inputs: ``given``, ``random``, or ``repeated``: the given samples again and again, where the
            model refuses random ones.
        batch: Samples in it.
        absolute: Largest difference of any output element.
        relative: Largest difference over the largest magnitude of the same output.
        constant: Whether no output changed from call to call.
    """

    inputs: str
    batch: int
    absolute: float
    relative: float
    constant: bool = False


@dataclass(frozen=True)
class Zeros:
    """The check that initializers have as many zeros as the folded weights.

    Attributes:
        tensors: Parameters compared; each initializer has the same count.
        elements: Scalars in them that belong to weights (two dimensions or more).
        zeros: Zeros among these.
        empty: Weights that are zeros and nothing else.
    """

    tensors: int
    elements: int
    zeros: int
    empty: tuple[str, ...] = ()

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return self.zeros / self.elements if self.elements else 0.0


@dataclass(frozen=True)
class ExportResult:
    """A written ONNX file and what was checked.

    What is not in ``sparse`` is of the plain file where there are two.

    Attributes:
        path: The file that was asked for: with sparse kernels, where these were.
        files: All that were written: the file, the one beside it with weights if it is large, and
            the plain one beside one with sparse kernels.
        opset: Of the default domain.
        inputs: In order.
        outputs: In order.
        dynamic_batch: Whether dimension 0 is free.
        baked: Arguments that are no tensors, as ``name=value``.
        batch_norms: How many were folded into the layer before them.
        batch_norms_kept: Name -> why it stays.
        zeros: The check of the zeros.
        sparse_initializers: How many are stored as sparse.
        parity: One for each call that was compared; empty where verification was left out.
        tolerance: Largest relative difference that passes.
        sizes: Weights before, files after.
        seconds: For all of it.
        channels: What was removed with dead channels; ``None`` where they were left.
        sparse: The file with sparse kernels; ``None`` where none was asked for.
        plain: The plain file beside it, of ONNX's own operators alone; ``None`` likewise.
    """

    path: Path
    files: tuple[Path, ...]
    opset: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    dynamic_batch: bool
    baked: tuple[str, ...]
    batch_norms: int
    batch_norms_kept: dict[str, str]
    zeros: Zeros
    sparse_initializers: int
    parity: tuple[Parity, ...]
    tolerance: float
    sizes: tuple[Size, ...]
    seconds: float
    channels: ChannelReport | None = None
    sparse: SparseFile | None = None
    plain: Path | None = None

    @property
    def says_little(self) -> str:
        """Why the comparison with PyTorch means little; empty if it does mean something."""
        if not any(row.constant for row in self.parity):
            return ""
        lost = f", as {few(self.zeros.empty)} lost all weights" if self.zeros.empty else ""
        return f"the outputs are the same for every input{lost}: that they agree says little"

    def to_dict(self) -> dict[str, Any]:
        """This result as JSON values."""
        return {
            **dataclasses.asdict(self),
            "path": str(self.path),
            "plain": None if self.plain is None else str(self.plain),
            "says_little": self.says_little,
            "files": [str(path) for path in self.files],
            "sparsity": self.zeros.sparsity,
            "channels": None if self.channels is None else self.channels.to_dict(),
            "sparse": None if self.sparse is None else self.sparse.to_dict(),
        }


@dataclass(frozen=True)
class FoldResult:
    """Written weights of a folded model.

    Attributes:
        path: The file with the state dict.
        format: ``safetensors``, ``compact``, or ``pt2``: a graph without dead channels.
        weights: How many weights can be sparse: the sites, or all of two dimensions or more.
        elements: Scalars in them.
        zeros: Zeros among these.
        parameters: Scalars in all parameters.
        empty: Weights that are zeros and nothing else.
        sizes: Weights before, file after.
        channels: What was removed with dead channels; ``None`` where they were left.
    """

    path: Path
    format: str
    weights: int
    elements: int
    zeros: int
    parameters: int
    empty: tuple[str, ...]
    sizes: tuple[Size, ...]
    channels: ChannelReport | None = None

    @property
    def sparsity(self) -> float:
        """Share of zeros among these weights."""
        return self.zeros / self.elements if self.elements else 0.0

    def to_dict(self) -> dict[str, Any]:
        """This result as JSON values."""
        return {
            **dataclasses.asdict(self),
            "path": str(self.path),
            "sparsity": self.sparsity,
            "channels": None if self.channels is None else self.channels.to_dict(),
        }

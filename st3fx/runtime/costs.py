"""How long layers take: the cost model that chooses between sparse and dense kernels.

A sparse convolution multiplies each nonzero with vectors of neighbouring output positions, for one
row after the other; its time is linear in what it has to do::

    t = call + pack · bytes copied + multiply · nonzeros · vectors + row · rows · tiles

and that of a dense one in its multiplications and the bytes of its images. The constants are
seconds for one thread. The defaults were measured by ``calibrate`` on one core of an AVX-512
server; the model was within 10 % of half of the times. What is compared are two times of the same
machine, so they are of use on others too.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from st3fx import native
from st3fx.files.reading import Size

LANES = 16
TILE = 112


@dataclass(frozen=True)
class ConvWork:
    """A convolution of one image.

    Attributes:
        rows: Output channels.
        columns: Weights of an output channel.
        nonzeros: Weights that are not zero.
        taps: Weights of a kernel: 9 for 3×3.
        stride: The larger of the two.
        groups: Of channels.
        in_positions: Pixels of the input.
        out_positions: Pixels of the output.
    """

    rows: int
    columns: int
    nonzeros: int
    taps: int
    stride: int
    groups: int
    in_positions: int
    out_positions: int

    @property
    def channels(self) -> int:
        """Input channels."""
        return self.columns // self.taps * self.groups

    @property
    def in_bytes(self) -> int:
        """Of the input."""
        return 4 * self.channels * self.in_positions

    @property
    def out_bytes(self) -> int:
        """Of the output."""
        return 4 * self.rows * self.out_positions

    @property
    def window_bytes(self) -> int:
        """Of the input that all tiles read: neighbouring ones read the rows between them both.

        Images count as square.
        """
        width = max(math.isqrt(self.out_positions), 1)
        tiles = math.ceil(self.out_positions / TILE)
        rows = max(min(TILE, self.out_positions) // width, 1)
        read = (rows - 1) * self.stride + math.isqrt(self.taps)
        return 4 * self.channels * tiles * read * math.isqrt(self.in_positions)

    @property
    def vectors(self) -> int:
        """Of an output channel."""
        return math.ceil(self.out_positions / LANES)

    @property
    def macs(self) -> int:
        """Multiplications of the dense convolution."""
        return self.rows * self.columns * self.out_positions

    @property
    def is_window(self) -> bool:
        """Whether it reads more than one pixel, or not all of them."""
        return self.taps > 1 or self.stride > 1


@dataclass(frozen=True)
class LinearWork:
    """A product with a matrix.

    Attributes:
        rows: Output features.
        columns: Input features.
        nonzeros: Weights that are not zero.
        vectors: How many vectors of features are multiplied with it.
    """

    rows: int
    columns: int
    nonzeros: int
    vectors: int

    @property
    def macs(self) -> int:
        """Multiplications of the dense product."""
        return self.rows * self.columns * self.vectors


Work = ConvWork | LinearWork


@dataclass(frozen=True)
class Costs:
    """The constants of the model, in seconds, for one thread.

    Attributes:
        call: Of one of our operators.
        multiply: A nonzero times 16 positions.
        row: One row of one tile.
        pack: A byte of the input that is copied as it is.
        pack_window: A byte of the input that is copied for a window.
        pack_strided: The same, where the window moves by more than one pixel.
        dense_pointwise: A multiplication of a dense 1×1 convolution.
        dense_window: A multiplication of any other dense convolution.
        dense_store: A byte that a dense convolution reads or writes.
        move: A byte of an image that changes its layout.
        sparse_linear: A nonzero times one vector of features.
        sparse_linear_many: The same, where there are 16 vectors or more.
        sparse_linear_move: A byte of these vectors, read or written.
        dense_linear: A multiplication of a dense product with 16 vectors or more.
        dense_linear_weight: A weight that a dense product reads.
    """

    call: Size = 6.7e-06
    multiply: Size = 5.1e-10
    row: Size = 9.2e-09
    pack: Size = 3.9e-11
    pack_window: Size = 7.5e-11
    pack_strided: Size = 1.27e-10
    dense_pointwise: Size = 1.65e-11
    dense_window: Size = 1.82e-11
    dense_store: Size = 5.3e-11
    move: Size = 2.9e-11
    sparse_linear: Size = 2.74e-10
    sparse_linear_many: Size = 4.5e-11
    sparse_linear_move: Size = 1.25e-10
    dense_linear: Size = 2e-11
    dense_linear_weight: Size = 7e-11


MANY = 16
"""Vectors of features from which a product is one of two matrices."""


def sparse_features(work: Work, *, blocked: bool) -> dict[str, float]:
    """How much of each constant a sparse kernel takes.

    Args:
        work: What it computes.
        blocked: Whether its input is in the blocked layout.
    """
    if isinstance(work, LinearWork):
        products = work.nonzeros * work.vectors
        if work.vectors < MANY:
            return {"call": 1.0, "sparse_linear": products}
        moved = 4 * work.vectors * (work.rows + work.columns)
        return {"call": 1.0, "sparse_linear_many": products, "sparse_linear_move": moved}
    return {
        "call": 1.0,
        **_packed(work, blocked=blocked),
        "multiply": work.nonzeros * work.vectors,
        "row": work.rows * math.ceil(work.out_positions / TILE),
    }


def _packed(work: ConvWork, *, blocked: bool) -> dict[str, float]:
    """What is copied before anything is multiplied."""
    if work.taps == 1:
        return {"pack": 0.0 if blocked and work.stride == 1 else work.in_bytes / work.stride**2}
    return {"pack_window" if work.stride == 1 else "pack_strided": work.window_bytes}


def dense_features(work: Work) -> dict[str, float]:
    """How much of each constant ONNX Runtime's own kernel takes."""
    if isinstance(work, LinearWork):
        many = work.macs if work.vectors >= MANY else 0
        return {"dense_linear": many, "dense_linear_weight": work.rows * work.columns}
    kind = "dense_window" if work.is_window else "dense_pointwise"
    return {kind: work.macs, "dense_store": work.in_bytes + work.out_bytes}


def seconds(costs: Costs, features: dict[str, float]) -> float:
    """The time for that much of each constant."""
    constants: dict[str, float] = dataclasses.asdict(costs)
    return sum(constants[name] * amount for name, amount in features.items())


SHALLOW = 3
"""How much longer ONNX Runtime's INT8 convolution takes for a product where fewer than eight
channels come in: as graphs of one node, 26 G products a second for the first layer of a ResNet-50
and 85 G for its others (EPYC with AVX2)."""


@dataclass(frozen=True)
class QuantWork:
    """What a quantized operator does for one image, ours and ONNX Runtime's own.

    Attributes:
        blocks: Blocks of four weights times 16 output positions.
        shared: The same in fours of rows that have the same blocks, whose input is loaded once.
        rows: Output channels times 16 output positions, each of which is requantized.
        packed: Bytes of the input that are copied for a window.
        moved: Bytes that are read and written besides.
        macs: Multiplications of the dense operator.
        depthwise: The same of a depthwise convolution.
        passed: Bytes of images that come into a convolution and out of it.
        weights: Weights that a dense product with few vectors reads.
    """

    blocks: float = 0.0
    shared: float = 0.0
    rows: float = 0.0
    packed: float = 0.0
    moved: float = 0.0
    macs: float = 0.0
    depthwise: float = 0.0
    passed: float = 0.0
    weights: float = 0.0


@dataclass(frozen=True)
class QuantCosts:
    """Seconds of quantized operators, for one thread.

    By default those of a core with AVX2 and without VNNI (an EPYC of Zen 3): fitted to the times of
    all convolutions of a ResNet-50 and a MobileNetV2 with 10 % of their blocks, in whole graphs,
    with a mean error of 12 % for our operators and 17 % for ONNX Runtime's.

    Attributes:
        call: Of one of our operators.
        block: A block of weights times 16 positions.
        shared: The same in fours of rows that have the same blocks.
        row: 16 sums that become bytes.
        pack: A byte that is copied for a window.
        move: A byte that is read or written.
        dense_call: Of one of ONNX Runtime's convolutions.
        dense: A multiplication of ONNX Runtime's INT8 kernels.
        dense_depthwise: The same in a depthwise convolution.
        dense_pass: A byte of the images that such a convolution reads or writes.
        dense_weight: A weight that ONNX Runtime reads for few vectors.
    """

    call: float = 9e-06
    block: float = 9.7e-10
    shared: float = 9.7e-10
    row: float = 2.9e-09
    pack: float = 2e-11
    move: float = 3e-11
    dense_call: float = 1.2e-05
    dense: float = 8.7e-12
    dense_depthwise: float = 6.2e-11
    dense_pass: float = 1.3e-10
    dense_weight: float = 5e-11


VNNI = QuantCosts(block=7e-10, shared=7e-10, row=2.4e-09, dense=3.5e-12)
"""Of a core whose instructions multiply and add bytes. Its ``dense`` is ONNX Runtime's on a Xeon
with AVX-512; what was not measured there is as without them."""

VNNI_512 = dataclasses.replace(
    VNNI, call=1.5e-05, block=5.5e-10, shared=2.7e-10, row=2.3e-09, pack=2.7e-11
)
"""The same with vectors of 512 bits: fitted to the convolutions of a ResNet-50 with 5, 10 and 20 %
of their blocks and of a MobileNetV2 with 10 %, in whole graphs (a Xeon of Sapphire Rapids; a mean
error of 22 %). ONNX Runtime's own layers of the ResNet-50 but for the first take 16.3 ms there, and
17.2 by this model; the first one takes 1.6, and 1.4. Times are those of ONNX Runtime's profiler,
whose own share is in ``call``; the script is not kept."""


def quant_costs() -> QuantCosts:
    """The constants for the kernels that this machine runs."""
    isa = native.isa() if native.library_path().exists() else ""
    if isa == "avx512vnni":
        return VNNI_512
    return VNNI if isa in ("avxvnni", "neondot") else QuantCosts()


def quant_seconds(costs: QuantCosts, work: QuantWork) -> float:
    """The time of our operator."""
    return (
        costs.call + costs.block * work.blocks + costs.shared * work.shared
        + costs.row * work.rows
        + costs.pack * work.packed + costs.move * work.moved
    )  # fmt: skip


def dense_quant_seconds(costs: QuantCosts, work: QuantWork) -> float:
    """The time of ONNX Runtime's own operator."""
    call = costs.dense_call if work.macs or work.depthwise else costs.call
    return (
        call + costs.dense * work.macs + costs.dense_depthwise * work.depthwise
        + costs.dense_pass * work.passed + costs.dense_weight * work.weights
        + costs.move * work.moved
    )  # fmt: skip

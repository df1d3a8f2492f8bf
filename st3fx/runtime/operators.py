"""Names of our operators.

None of them is a name of ONNX or ONNX Runtime: there are tools that look at an operator's name and
not at its domain, and take one of ours for one of theirs.
"""

from __future__ import annotations

from typing import Final

SPARSE_CONV: Final = "SparseConv"
DEPTHWISE_CONV: Final = "DepthwiseConv"
SPARSE_LINEAR: Final = "SparseLinear"
MAX_POOL: Final = "ImageMaxPool"
AVERAGE_POOL: Final = "ImageAveragePool"
GLOBAL_AVERAGE_POOL: Final = "ImageGlobalAveragePool"
ADD: Final = "ImageAdd"
CHANNEL_SCALE: Final = "ChannelScale"
CONCAT: Final = "ImageConcat"
LAYOUT: Final = "Layout"

OPERATORS: Final = (
    SPARSE_CONV, DEPTHWISE_CONV, SPARSE_LINEAR, MAX_POOL, AVERAGE_POOL, GLOBAL_AVERAGE_POOL, ADD,
    CHANNEL_SCALE, CONCAT, LAYOUT,
)  # fmt: skip

FORMER: Final = {
    "MaxPool": MAX_POOL,
    "AveragePool": AVERAGE_POOL,
    "GlobalAveragePool": GLOBAL_AVERAGE_POOL,
    "Add": ADD,
    "Concat": CONCAT,
}
"""Name in files of earlier versions -> name now. The library knows both."""


def current_name(name: str) -> str:
    """The name that an operator of our domain has now."""
    return FORMER.get(name, name)

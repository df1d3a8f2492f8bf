"""A digest of tensors' values: tells whether they have changed, whatever wrote to them.

Version counters miss writes through ``.data`` or NumPy. On a CPU a digest of all values notices
them; on other devices it would have to be waited for, and there is none.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from st3fx.native import latent
from st3fx.tensors import in_memory_order

Digest: TypeAlias = tuple[int, ...]
"""Equal for equal values, of one shape and dtype; empty where there is none."""

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def digests(tensors: Sequence[Tensor], *, wait: bool = False) -> list[Digest]:
    """The digest of each tensor; those of dense CPU memory together, in one pass.

    Args:
        tensors: Any shapes and dtypes.
        wait: Wait for other devices; else there is none of tensors that lie there.
    """
    dense = [in_memory_order(tensor.detach()).contiguous() for tensor in tensors]
    found: list[Digest] = [()] * len(dense)
    here = [i for i, tensor in enumerate(dense) if tensor.device.type == "cpu"]
    if not latent.available():
        for i in here:
            found[i] = _by_sums(dense[i])
    elif here:
        ranges = [(dense[i].data_ptr(), dense[i].nbytes) for i in here]
        for i, value in zip(here, latent.digest(ranges), strict=True):
            found[i] = (value,)
    if wait:
        for i, tensor in enumerate(dense):
            if tensor.device.type not in ("cpu", "meta"):
                found[i] = _by_sums(tensor)
    return found


def _by_sums(tensor: Tensor) -> Digest:
    """Without the library: sums that change with any one value, and with most other changes.

    The sums of the bits of each row notice the smallest change of any one weight. They wrap around,
    and so miss some changes of all weights at once (another sign, a power of two), and of their
    order; the products with a fixed vector notice those.
    """
    if not tensor.numel():
        return (0,)
    rows = tensor.reshape(1, -1) if tensor.dim() < 2 else tensor.flatten(1)
    bits = rows.view(_INTEGERS[rows.element_size()]).sum(1)
    real = rows if rows.element_size() >= 4 else rows.float()
    products = torch.mv(real, _vector(real.shape[1], real.dtype).to(real.device))
    return (hash(bits.cpu().numpy().tobytes()), hash(products.cpu().numpy().tobytes()))


@functools.lru_cache(maxsize=64)
def _vector(size: int, dtype: torch.dtype) -> Tensor:
    """Fixed numbers of either sign, no two of them alike."""
    with torch.inference_mode(False):
        return torch.arange(1, size + 1, dtype=torch.float64).sin_().to(dtype)

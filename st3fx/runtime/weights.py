"""Sparse weights as the operators take them: the three arrays of ``ops.md``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class SparseWeights:
    """A matrix in compressed rows.

    Attributes:
        values: ``[nnz]`` float32, the nonzeros row after row.
        columns: ``[nnz]`` uint16, or uint32 where a row has more than 65,536 columns.
        row_starts: ``[rows + 1]`` int32, where each row begins.
    """

    values: NDArray[np.float32]
    columns: NDArray[np.uint16] | NDArray[np.uint32]
    row_starts: NDArray[np.int32]

    @property
    def nonzeros(self) -> int:
        """How many values there are."""
        return len(self.values)

    @property
    def nbytes(self) -> int:
        """Bytes of the three arrays."""
        return self.values.nbytes + self.columns.nbytes + self.row_starts.nbytes

    def dense(self, columns: int) -> NDArray[np.float32]:
        """The matrix ``[rows, columns]`` with its zeros."""
        matrix = np.zeros((len(self.row_starts) - 1, columns), dtype=np.float32)
        rows = np.repeat(np.arange(len(matrix)), np.diff(self.row_starts))
        matrix[rows, self.columns] = self.values
        return matrix


def compress(weight: NDArray[np.float32]) -> SparseWeights:
    """The nonzeros of a weight, its first axis being the rows and the others flattened.

    A negative zero is a zero. NaN is a nonzero.
    """
    matrix = weight.reshape(len(weight), -1)
    rows, columns = np.nonzero(matrix)
    counts = np.bincount(rows, minlength=len(matrix))
    narrow = matrix.shape[1] <= 1 << 16
    return SparseWeights(
        values=np.ascontiguousarray(matrix[rows, columns], dtype=np.float32),
        columns=columns.astype(np.uint16) if narrow else columns.astype(np.uint32),
        row_starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
    )

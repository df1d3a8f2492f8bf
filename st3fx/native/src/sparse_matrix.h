// Sparse weights as a model file holds them: compressed rows, checked before anything reads them.
#pragma once

#include <cstdint>
#include <vector>

#include "ort.h"

namespace st3fx {

struct SparseMatrix {
  int64_t rows = 0, columns = 0;
  std::vector<float> values;
  std::vector<uint32_t> column;   ///< Of each value; rising within a row.
  std::vector<int32_t> row_start; ///< rows + 1 of them.

  int64_t nonzeros() const { return static_cast<int64_t>(values.size()); }

  /// Reads inputs `first` (values), `first + 1` (columns), `first + 2` (row_starts) of a node.
  /// Throws `Error` if they are not a matrix of that many columns.
  static SparseMatrix of(const NodeInfo& node, size_t first, int64_t columns);
};

}  // namespace st3fx

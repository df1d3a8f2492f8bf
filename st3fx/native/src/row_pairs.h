// Sparse rows in the order in which the tile kernel reads them.
//
// Two rows run together, so that enough sums are under way to hide the latency of a multiply-add.
// Rows are sorted by their number of nonzeros, neighbours form a pair, and their nonzeros stand in
// turn: first of A, first of B, second of A, … then what A, the longer one, has left.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"
#include "sparse_matrix.h"

namespace st3fx {

/// The nonzeros of some rows within some columns.
struct Segment {
  std::vector<RowPair> pairs;
  std::vector<float> values;
  std::vector<uint16_t> columns;  ///< Counted from the block's first column.
  int64_t first_nonzero = 0;      ///< Nonzeros of all segments before this one.
};

/// A run of neighbouring columns that is worked on before the next one begins.
struct ColumnBlock {
  int64_t begin, size;
};

/// Neighbouring rows that read the same columns: one thread's smallest share.
struct RowPart {
  int64_t first_row, rows;
  std::vector<Segment> blocks;  ///< One for each column block.
};

struct PackedRows {
  std::vector<ColumnBlock> blocks;  ///< Of the columns of one convolution group.
  std::vector<RowPart> parts;       ///< `parts_per_group` for each group, in order.
  int64_t parts_per_group = 1;

  /// Columns of the largest block.
  int64_t largest_block() const;
};

/// Packs a matrix whose rows fall into `groups` equal runs. The rows of a group are cut into parts
/// of about equal work, columns into blocks of about `block_columns`, a multiple of `column_step`,
/// and never more than 65536.
PackedRows pack_rows(const SparseMatrix& matrix, int64_t groups, int64_t column_step,
                     int64_t block_columns);

}  // namespace st3fx

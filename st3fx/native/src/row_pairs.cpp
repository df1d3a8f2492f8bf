#include "row_pairs.h"

#include <algorithm>
#include <numeric>

namespace st3fx {
namespace {

constexpr int64_t kMaxParts = 8;      // enough shares for the threads of a small machine
constexpr int64_t kRowsPerPart = 16;  // fewer would leave unequal rows in a pair
constexpr int64_t kRowCost = 6;       // work of a row beside its nonzeros, in nonzeros

/// Columns in blocks of nearly equal size, each a multiple of `step`.
std::vector<ColumnBlock> cut_columns(int64_t columns, int64_t step, int64_t block_columns) {
  const int64_t limit = std::max<int64_t>(std::min<int64_t>(block_columns, 65536) / step, 1);
  const int64_t steps = columns / step, number = (steps + limit - 1) / limit;
  std::vector<ColumnBlock> blocks;
  for (int64_t i = 0; i < number; ++i) {
    const int64_t begin = steps * i / number * step, end = steps * (i + 1) / number * step;
    blocks.push_back({begin, end - begin});
  }
  return blocks;
}

/// Indices [begin, end) of the nonzeros of `row` that lie in the block.
std::pair<int64_t, int64_t> span(const SparseMatrix& m, int64_t row, const ColumnBlock& block) {
  const auto begin = m.column.begin() + m.row_start[row];
  const auto end = m.column.begin() + m.row_start[row + 1];
  const auto low = std::lower_bound(begin, end, block.begin);
  const auto high = std::lower_bound(low, end, block.begin + block.size);
  return {low - m.column.begin(), high - m.column.begin()};
}

Segment pack_segment(const SparseMatrix& m, int64_t first, int64_t rows, const ColumnBlock& block) {
  std::vector<std::pair<int64_t, int64_t>> spans(rows);
  for (int64_t r = 0; r < rows; ++r) spans[r] = span(m, first + r, block);
  auto length = [&](int64_t r) { return spans[r].second - spans[r].first; };
  std::vector<int64_t> order(rows);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return length(a) > length(b); });
  Segment segment;
  auto put = [&](int64_t index) {
    segment.values.push_back(m.values[index]);
    segment.columns.push_back(static_cast<uint16_t>(m.column[index] - block.begin));
  };
  for (int64_t i = 0; i < rows; i += 2) {
    const int64_t a = order[i], b = i + 1 < rows ? order[i + 1] : -1;
    const int64_t common = b < 0 ? 0 : length(b), extra = length(a) - common;
    segment.pairs.push_back({static_cast<uint32_t>(segment.values.size()),
                             static_cast<uint32_t>(common), static_cast<uint32_t>(extra),
                             static_cast<int32_t>(first + a),
                             static_cast<int32_t>(b < 0 ? -1 : first + b)});
    for (int64_t j = 0; j < common; ++j) {
      put(spans[a].first + j);
      put(spans[b].first + j);
    }
    for (int64_t j = common; j < length(a); ++j) put(spans[a].first + j);
  }
  return segment;
}

/// Where to cut the rows [first, first + rows) so that the parts have about the same work.
std::vector<int64_t> cut_rows(const SparseMatrix& m, int64_t first, int64_t rows, int64_t parts) {
  std::vector<int64_t> cuts{first};
  const int64_t total = m.row_start[first + rows] - m.row_start[first] + kRowCost * rows;
  for (int64_t row = first; row < first + rows; ++row) {
    const int64_t done = m.row_start[row] - m.row_start[first] + kRowCost * (row - first);
    const int64_t cut = static_cast<int64_t>(cuts.size());
    if (cut < parts && done * parts >= cut * total) cuts.push_back(row);
  }
  while (static_cast<int64_t>(cuts.size()) <= parts) cuts.push_back(first + rows);
  return cuts;
}

}  // namespace

int64_t PackedRows::largest_block() const {
  int64_t largest = 0;
  for (const ColumnBlock& block : blocks) largest = std::max(largest, block.size);
  return largest;
}

PackedRows pack_rows(const SparseMatrix& matrix, int64_t groups, int64_t column_step,
                     int64_t block_columns) {
  PackedRows packed;
  packed.blocks = cut_columns(matrix.columns, column_step, block_columns);
  const int64_t rows = matrix.rows / groups;
  packed.parts_per_group = std::clamp<int64_t>(rows / kRowsPerPart, 1, kMaxParts);
  int64_t nonzeros = 0;
  for (int64_t group = 0; group < groups; ++group) {
    const auto cuts = cut_rows(matrix, group * rows, rows, packed.parts_per_group);
    for (int64_t i = 0; i < packed.parts_per_group; ++i) {
      RowPart part{cuts[i], cuts[i + 1] - cuts[i], {}};
      for (const ColumnBlock& block : packed.blocks) {
        part.blocks.push_back(pack_segment(matrix, part.first_row, part.rows, block));
        part.blocks.back().first_nonzero = nonzeros;
        nonzeros += static_cast<int64_t>(part.blocks.back().values.size());
      }
      packed.parts.push_back(std::move(part));
    }
  }
  return packed;
}

}  // namespace st3fx

#include "sparse_matrix.h"

#include <string>

namespace st3fx {
namespace {

std::vector<uint32_t> widen(const Tensor& columns) {
  const int64_t n = count(columns.shape);
  if (columns.type == ort::kUint16) {
    const auto* data = static_cast<const uint16_t*>(columns.data);
    return {data, data + n};
  }
  if (columns.type == ort::kUint32) {
    const auto* data = static_cast<const uint32_t*>(columns.data);
    return {data, data + n};
  }
  throw Error("input 'columns' is neither uint16 nor uint32");
}

// What is wrong is put into words only where something is: this looks at every index of a file.
[[noreturn]] void refuse(const std::string& complaint) {
  throw Error("damaged sparse weights: " + complaint);
}

void check_row(const SparseMatrix& m, int64_t row) {
  auto where = [row] { return "row " + std::to_string(row); };
  const int64_t begin = m.row_start[row], end = m.row_start[row + 1];
  if (begin > end) refuse("row_starts falls at " + where());
  if (end > m.nonzeros())
    refuse(where() + " ends behind the last of " + std::to_string(m.nonzeros()) + " values");
  int64_t previous = -1;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t at = m.column[i];
    if (at >= m.columns)
      refuse(where() + " has column " + std::to_string(at) + " of " + std::to_string(m.columns));
    if (previous >= at) refuse("columns do not rise in " + where());
    previous = at;
  }
}

void check_matrix(const SparseMatrix& m) {
  if (m.row_start.front() != 0)
    refuse("row_starts begins with " + std::to_string(m.row_start.front()));
  for (int64_t row = 0; row < m.rows; ++row) check_row(m, row);
  if (m.row_start.back() != m.nonzeros())
    refuse("row_starts ends with " + std::to_string(m.row_start.back()) + " of " +
           std::to_string(m.nonzeros()) + " values");
}

}  // namespace

SparseMatrix SparseMatrix::of(const NodeInfo& node, size_t first, int64_t columns) {
  const Tensor values = node.constant(first, "values", ort::kFloat);
  const Tensor column = node.constant(first + 1, "columns", ort::kAnyType);
  const Tensor starts = node.constant(first + 2, "row_starts", ort::kInt32);
  if (values.shape.size() != 1 || column.shape != values.shape)
    refuse("values of shape " + to_string(values.shape) + ", columns of shape " +
           to_string(column.shape));
  if (starts.shape.size() != 1 || starts.shape[0] < 2)
    refuse("row_starts of shape " + to_string(starts.shape));
  SparseMatrix matrix;
  matrix.rows = starts.shape[0] - 1;
  matrix.columns = columns;
  matrix.values.assign(values.floats(), values.floats() + values.shape[0]);
  matrix.column = widen(column);
  const auto* data = static_cast<const int32_t*>(starts.data);
  matrix.row_start.assign(data, data + starts.shape[0]);
  check_matrix(matrix);
  return matrix;
}

}  // namespace st3fx

#include "quad_matrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

namespace st3fx {
namespace {

constexpr float kLargestFactor = 1 << 20;  // a byte times it has room in 32 bits

// What is wrong is put into words only where something is: this looks at every index of a file.
[[noreturn]] void refuse(const std::string& complaint) {
  throw Error("damaged sparse weights: " + complaint);
}

Tensor numbers(const NodeInfo& node, size_t input, const char* what, int type, int64_t n) {
  const Tensor tensor = node.constant(input, what, type);
  if (tensor.shape != Shape{n})
    throw Error(std::string(what) + " of shape " + to_string(tensor.shape) + " for " +
                std::to_string(n) + " outputs");
  return tensor;
}

}  // namespace

Images quads_of(const Tensor& tensor, int64_t channels) {
  const Shape& shape = tensor.shape;
  if (tensor.type != ort::kUint8) throw Error("input is not uint8");
  if (shape.size() != 4)
    throw Error("input of shape " + to_string(shape) + " is no batch of images [N, C, H, W]");
  const Images quads{Layout::blocked, shape[0], (channels + 3) / 4, {shape[2], shape[3]}};
  if (byte_shape(quads) != shape)
    throw Error("input of shape " + to_string(shape) + ", but " + std::to_string(channels) +
                " channels of this size are " + to_string(byte_shape(quads)) +
                " in the blocked layout of bytes");
  return quads;
}

Shape byte_shape(const Images& quads) {
  Shape shape = quads.shape();
  shape[1] *= 4;
  return shape;
}

const Tensor& same_bytes(const Tensor& tensor, const Images& quads) {
  if (tensor.type != ort::kUint8) throw Error("operand is not uint8");
  if (tensor.shape != byte_shape(quads))
    throw Error("operand of shape " + to_string(tensor.shape) + " for an output of shape " +
                to_string(byte_shape(quads)));
  return tensor;
}

float repeated(int32_t byte) {
  const uint32_t bits = static_cast<uint32_t>(byte) * 0x01010101U;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

int32_t byte_attribute(const NodeInfo& node, const char* name, int32_t fallback) {
  const int64_t value = node.integer(name, fallback);
  if (value < 0 || value > 255)
    throw Error(std::string("attribute '") + name + "' is " + std::to_string(value) + ", no byte");
  return static_cast<int32_t>(value);
}

void require_range(int32_t minimum, int32_t maximum, const char* prefix) {
  if (minimum > maximum)
    throw Error("attribute '" + std::string(prefix) + "minimum' is " + std::to_string(minimum) +
                ", more than '" + prefix + "maximum', " + std::to_string(maximum));
}

float finite_attribute(const NodeInfo& node, const char* name) {
  const float value = node.number(name, std::numeric_limits<float>::quiet_NaN());
  if (!std::isfinite(value))
    throw Error(std::string("attribute '") + name + "' is missing or not finite");
  return value;
}

Requantize requantize_of(const NodeInfo& node, bool has_residual) {
  Requantize how;
  how.zero_point = byte_attribute(node, "y_zero_point", 0);
  how.minimum = byte_attribute(node, "minimum", 0);
  how.maximum = byte_attribute(node, "maximum", 255);
  require_range(how.minimum, how.maximum, "");
  if (!has_residual) return how;
  how.sum_factor = finite_attribute(node, "sum_factor");
  how.residual_factor = finite_attribute(node, "residual_factor");
  how.offset = finite_attribute(node, "offset");
  for (float factor : {how.sum_factor, how.residual_factor, how.offset})
    if (std::abs(factor) > kLargestFactor)
      throw Error("a factor of the residual is out of range: " + std::to_string(factor));
  how.sum_minimum = byte_attribute(node, "sum_minimum", 0);
  how.sum_maximum = byte_attribute(node, "sum_maximum", 255);
  require_range(how.sum_minimum, how.sum_maximum, "sum_");
  return how;
}

int32_t join_bytes(const int8_t* bytes) {
  int32_t joined;
  std::memcpy(&joined, bytes, sizeof joined);
  return joined;
}

std::vector<std::array<int8_t, 4>> small_pairs(const int8_t* weights) {
  auto fits = [](int a, int b) {
    const int positive = std::max(a, 0) + std::max(b, 0), negative = std::min(a, 0) + std::min(b, 0);
    return positive <= 128 && negative >= -128;  // times 255: 32640
  };
  if (fits(weights[0], weights[1]) && fits(weights[2], weights[3]))
    return {{weights[0], weights[1], weights[2], weights[3]}};
  std::array<int8_t, 4> half, rest;
  for (int c = 0; c < 4; ++c) {
    half[c] = static_cast<int8_t>(weights[c] / 2);
    rest[c] = static_cast<int8_t>(weights[c] - half[c]);
  }
  return {half, rest};
}

int64_t WeightSums::largest(int64_t bias, const std::string& where) const {
  const int64_t most = std::max(bias + positive, -(bias + negative));
  if (most > std::numeric_limits<int32_t>::max())
    throw Error("the sums of " + where + " do not fit into 32 bits");
  return most;
}

bool is_wide(float multiplier, int64_t largest) {
  return std::abs(static_cast<double>(multiplier)) * static_cast<double>(largest) > 1e9;
}

int64_t rows_of(const NodeInfo& node, size_t input) {
  const Tensor starts = node.constant(input, "row_starts", ort::kInt32);
  if (starts.shape.size() != 1 || starts.shape[0] < 2)
    refuse("row_starts of shape " + to_string(starts.shape));
  return starts.shape[0] - 1;
}

std::vector<int32_t> read_integers(const NodeInfo& node, size_t input, const char* what,
                                   int64_t n) {
  const auto* data =
      static_cast<const int32_t*>(numbers(node, input, what, ort::kInt32, n).data);
  return {data, data + n};
}

std::vector<float> read_numbers(const NodeInfo& node, size_t input, const char* what, int64_t n) {
  const float* data = numbers(node, input, what, ort::kFloat, n).floats();
  for (int64_t i = 0; i < n; ++i)
    if (!std::isfinite(data[i]))
      throw Error(std::string(what) + " is not finite at " + std::to_string(i));
  return {data, data + n};
}

/// Whether the four rows of a quad have the same columns.
static bool same_columns(const QuadMatrix& matrix, int64_t quad) {
  const uint32_t* start = matrix.row_start.data() + 4 * quad;
  const uint32_t* column = matrix.column.data();
  for (int r = 1; r < 4; ++r)
    if (!std::equal(column + start[0], column + start[1], column + start[r], column + start[r + 1]))
      return false;
  return true;
}

QuadMatrix QuadMatrix::of(const NodeInfo& node, size_t first, int64_t columns,
                          const QuantKernels& kernels, int32_t x_zero_point,
                          const std::vector<int32_t>& bias, const std::vector<float>& multiplier) {
  const Tensor values = node.constant(first, "values", ort::kInt8);
  const Tensor column = node.constant(first + 1, "columns", ort::kAnyType);
  const Tensor starts = node.constant(first + 2, "row_starts", ort::kInt32);
  QuadMatrix matrix;
  matrix.rows = rows_of(node, first + 2);
  matrix.quads = (matrix.rows + 3) / 4;
  if (values.shape.size() != 1 || column.shape.size() != 1 ||
      values.shape[0] != 4 * column.shape[0])
    refuse("values of shape " + to_string(values.shape) + ", columns of shape " +
           to_string(column.shape));
  if (column.type != ort::kUint16 && column.type != ort::kUint32)
    throw Error("input 'columns' is neither uint16 nor uint32");
  const int64_t blocks = column.shape[0];
  auto column_at = [&](int64_t i) -> int64_t {
    return column.type == ort::kUint16 ? static_cast<const uint16_t*>(column.data)[i]
                                       : static_cast<const uint32_t*>(column.data)[i];
  };
  const auto* start = static_cast<const int32_t*>(starts.data);
  const auto* weights = static_cast<const int8_t*>(values.data);
  if (start[0] != 0) refuse("row_starts begins with " + std::to_string(start[0]));
  matrix.bias.assign(4 * matrix.quads, 0);
  matrix.multiplier.assign(4 * matrix.quads, 0);
  matrix.total.assign(4 * matrix.quads, 0);
  matrix.row_start.push_back(0);
  for (int64_t row = 0; row < matrix.rows; ++row) {
    auto where = [row] { return "row " + std::to_string(row); };
    if (start[row] > start[row + 1]) refuse("row_starts falls at " + where());
    if (start[row + 1] > blocks)
      refuse(where() + " ends behind the last of " + std::to_string(blocks) + " blocks");
    int64_t previous = -1;
    WeightSums sums;
    for (int64_t i = start[row]; i < start[row + 1]; ++i) {
      const int64_t at = column_at(i);
      if (at >= columns)
        refuse(where() + " has column " + std::to_string(at) + " of " + std::to_string(columns));
      if (previous >= at) refuse("columns do not rise in " + where());
      previous = at;
      const int8_t* four = weights + 4 * i;
      for (int c = 0; c < 4; ++c) sums.add(four[c]);
      if (!kernels.needs_small_pairs) {
        matrix.column.push_back(static_cast<uint32_t>(at));
        matrix.weights.push_back(join_bytes(four));
        continue;
      }
      for (const std::array<int8_t, 4>& part : small_pairs(four)) {
        matrix.column.push_back(static_cast<uint32_t>(at));
        matrix.weights.push_back(join_bytes(part.data()));
      }
    }
    matrix.row_start.push_back(static_cast<uint32_t>(matrix.column.size()));
    const int64_t own = static_cast<int64_t>(bias[row]) - x_zero_point * sums.total;
    const int64_t most = sums.largest(own, where());
    matrix.bias[row] = wrapped(own + kernels.input_offset * sums.total);
    matrix.multiplier[row] = multiplier[row];
    matrix.total[row] = static_cast<int32_t>(sums.total);
    matrix.wide |= is_wide(multiplier[row], most);
  }
  if (start[matrix.rows] != blocks)
    refuse("row_starts ends with " + std::to_string(start[matrix.rows]) + " of " +
           std::to_string(blocks) + " blocks");
  while (static_cast<int64_t>(matrix.row_start.size()) <= 4 * matrix.quads)
    matrix.row_start.push_back(matrix.row_start.back());
  for (int64_t quad = 0; quad < matrix.quads; ++quad)
    matrix.shared.push_back(same_columns(matrix, quad));
  return matrix;
}

}  // namespace st3fx

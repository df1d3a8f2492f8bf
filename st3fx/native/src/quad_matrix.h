// Sparse weights in blocks of four, as quantized operators take them: checked, and made ready.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "layout.h"
#include "quant.h"

namespace st3fx {

/// Images of `channels` bytes as images of quads; an error where the tensor does not fit.
Images quads_of(const Tensor& tensor, int64_t channels);

/// The shape that a tensor of such images is declared with.
Shape byte_shape(const Images& quads);

/// Like `same_shape`, for bytes.
const Tensor& same_bytes(const Tensor& tensor, const Images& quads);

inline const float* quad_data(const Tensor& tensor) {
  return static_cast<const float*>(tensor.data);
}

/// A quad of four times a byte, as a float's bits.
float repeated(int32_t byte);

/// A zero point, or a bound of bytes.
int32_t byte_attribute(const NodeInfo& node, const char* name, int32_t fallback);

/// An error where a range of bytes is empty.
void require_range(int32_t minimum, int32_t maximum, const char* prefix);

/// A number that must be there and finite.
float finite_attribute(const NodeInfo& node, const char* name);

/// Reads y_zero_point, minimum, maximum, and what a residual asks for where there is one.
Requantize requantize_of(const NodeInfo& node, bool has_residual);

/// Four bytes as the 32 bits that lie in memory.
int32_t join_bytes(const int8_t* bytes);

/// Whether no two products of neighbouring channels with bytes can leave 16 bits, or are split: the
/// rows [weights of a block] that add up to `weights`, one or two.
std::vector<std::array<int8_t, 4>> small_pairs(const int8_t* weights);

/// What the weights of one output add up to.
struct WeightSums {
  int64_t total = 0, positive = 0, negative = 0;  ///< The latter two times the largest byte.

  void add(int8_t weight) {
    total += weight;
    (weight > 0 ? positive : negative) += 255 * weight;
  }
  /// The largest sum of bytes with a bias; an error, which names `where`, beyond 32 bits.
  int64_t largest(int64_t bias, const std::string& where) const;
};

/// Modulo 2³²: what an offset of the inputs adds on the way, the bias takes away.
inline int32_t wrapped(int64_t bias) { return static_cast<int32_t>(static_cast<uint32_t>(bias)); }

/// Whether so large a sum times the multiplier may leave 32 bits.
bool is_wide(float multiplier, int64_t largest);

struct QuadMatrix {
  int64_t rows = 0;               ///< As the model has them.
  int64_t quads = 0;              ///< Of outputs: rows in fours, the last ones empty.
  std::vector<uint32_t> row_start;  ///< [4 · quads + 1]
  std::vector<uint8_t> shared;      ///< [quads]: whether its rows have the same columns.
  std::vector<uint32_t> column;     ///< Of each block, within its row.
  std::vector<int32_t> weights;     ///< Of each block.
  std::vector<int32_t> bias;        ///< [4 · quads], zero points taken off.
  std::vector<float> multiplier;    ///< [4 · quads]
  std::vector<int32_t> total;       ///< [4 · quads], of the weights.
  bool wide = false;                ///< As `Requantize` has it.

  /// Inputs `first` to `first + 2` of a node. Throws `Error` where they are damaged.
  ///
  /// `columns`: blocks that a row may have. `bias` and `multiplier`: one for each row.
  static QuadMatrix of(const NodeInfo& node, size_t first, int64_t columns,
                       const QuantKernels& kernels, int32_t x_zero_point,
                       const std::vector<int32_t>& bias, const std::vector<float>& multiplier);

  int64_t blocks() const { return static_cast<int64_t>(column.size()); }
};

/// A constant int32 or float32 input with one number for each output.
std::vector<int32_t> read_integers(const NodeInfo& node, size_t input, const char* what, int64_t n);
std::vector<float> read_numbers(const NodeInfo& node, size_t input, const char* what, int64_t n);

/// Rows of outputs in the shape of row_starts at that input.
int64_t rows_of(const NodeInfo& node, size_t input);

}  // namespace st3fx

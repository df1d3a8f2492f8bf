#include "scalar.h"

#include <cmath>

namespace st3fx::scalar {
namespace {

/// The input under tap (r, s) of the window at output (row, column), zero outside of the image.
double input_at(const Convolution& conv, const float* x, int64_t n, int64_t c, int64_t out_row,
                int64_t out_column, int64_t r, int64_t s) {
  const Window& w = conv.window;
  const int64_t row = out_row * w.stride_height + r * w.dilation_height - w.pad_top;
  const int64_t column = out_column * w.stride_width + s * w.dilation_width - w.pad_left;
  if (row < 0 || row >= w.height || column < 0 || column >= w.width) return 0;
  return x[conv.in.index(n, c, row * w.width + column)];
}

/// Zeros behind the last position, where a layout has room there.
void clear_padding(const Images& images, float* y) {
  if (images.layout == Layout::nchw) return;
  for (int64_t n = 0; n < images.batch; ++n)
    for (int64_t c = 0; c < images.channels; ++c)
      for (int64_t p = images.plane.positions(); p < images.plane.padded(); ++p)
        y[images.index(n, c, p)] = 0;
}

}  // namespace

double activate(double x, const Activation& activation) {
  switch (activation.kind) {
    case Activation::clip:
      return std::fmin(std::fmax(x, activation.minimum), activation.maximum);
    case Activation::silu: return x / (1 + std::exp(-x));
    case Activation::hard_swish: return x * std::fmin(std::fmax(x / 6 + 0.5, 0.0), 1.0);
    default: return x;
  }
}

void sparse_conv(const Convolution& conv, const SparseMatrix& weights, const float* x,
                 const float* bias, const float* residual, float* y) {
  const Window& w = conv.window;
  const int64_t taps = w.kernel_height * w.kernel_width;
  clear_padding(conv.out, y);
  for (int64_t n = 0; n < conv.out.batch; ++n) {
    for (int64_t k = 0; k < weights.rows; ++k) {
      const int64_t first = k / (weights.rows / conv.groups) * (conv.in.channels / conv.groups);
      for (int64_t p = 0; p < conv.out.plane.positions(); ++p) {
        const int64_t index = conv.out.index(n, k, p);
        double sum = bias[k];
        if (residual) sum += residual[index];
        for (int64_t i = weights.row_start[k]; i < weights.row_start[k + 1]; ++i) {
          const int64_t tap = weights.column[i] % taps, c = first + weights.column[i] / taps;
          sum += static_cast<double>(weights.values[i]) *
                 input_at(conv, x, n, c, p / w.out_width, p % w.out_width, tap / w.kernel_width,
                          tap % w.kernel_width);
        }
        y[index] = static_cast<float>(activate(sum, conv.activation));
      }
    }
  }
}

}  // namespace st3fx::scalar

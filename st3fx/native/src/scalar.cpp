#include "scalar.h"

#include <cmath>
#include <limits>

namespace st3fx::scalar {
namespace {

/// The input under a tap of the window at output p; null outside of the image.
const float* input_at(const Convolution& conv, const float* x, int64_t n, int64_t c, int64_t p,
                      int64_t tap) {
  const Window& w = conv.window;
  const int64_t r = tap / w.kernel_width, s = tap % w.kernel_width;
  const int64_t row = p / w.out_width * w.stride_height + r * w.dilation_height - w.pad_top;
  const int64_t column = p % w.out_width * w.stride_width + s * w.dilation_width - w.pad_left;
  if (row < 0 || row >= w.height || column < 0 || column >= w.width) return nullptr;
  return x + conv.in.index(n, c, row * w.width + column);
}

/// Calls `output(n, c, p, index)` for each output.
template <class Output>
void each_output(const Images& out, const Output& output) {
  for (int64_t n = 0; n < out.batch; ++n)
    for (int64_t c = 0; c < out.channels; ++c)
      for (int64_t p = 0; p < out.plane.positions(); ++p) output(n, c, p, out.index(n, c, p));
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
  const int64_t taps = conv.window.kernel_height * conv.window.kernel_width;
  clear_padding(conv.out, y);
  each_output(conv.out, [&](int64_t n, int64_t k, int64_t p, int64_t index) {
    const int64_t first = k / (weights.rows / conv.groups) * (conv.in.channels / conv.groups);
    double sum = bias[k] + (residual ? static_cast<double>(residual[index]) : 0.0);
    for (int64_t i = weights.row_start[k]; i < weights.row_start[k + 1]; ++i) {
      const int64_t c = first + weights.column[i] / taps, tap = weights.column[i] % taps;
      if (const float* input = input_at(conv, x, n, c, p, tap))
        sum += static_cast<double>(weights.values[i]) * *input;
    }
    y[index] = static_cast<float>(activate(sum, conv.activation));
  });
}

void depthwise(const Convolution& conv, const float* weights, const float* bias, const float* x,
               const float* residual, float* y) {
  const int64_t taps = conv.window.kernel_height * conv.window.kernel_width;
  clear_padding(conv.out, y);
  each_output(conv.out, [&](int64_t n, int64_t c, int64_t p, int64_t index) {
    double sum = bias[c] + (residual ? static_cast<double>(residual[index]) : 0.0);
    for (int64_t tap = 0; tap < taps; ++tap)
      if (const float* input = input_at(conv, x, n, c, p, tap))
        sum += static_cast<double>(weights[c * taps + tap]) * *input;
    y[index] = static_cast<float>(activate(sum, conv.activation));
  });
}

void pool(const Convolution& conv, const WindowAttributes& window, bool largest,
          bool count_padding, const float* x, float* y) {
  clear_padding(conv.out, y);
  each_output(conv.out, [&](int64_t n, int64_t c, int64_t p, int64_t index) {
    double result = largest ? -std::numeric_limits<double>::infinity() : 0.0;
    for (int64_t tap = 0; tap < window.taps(); ++tap)
      if (const float* input = input_at(conv, x, n, c, p, tap))
        result = largest ? std::fmax(result, *input) : result + *input;
    const Window& w = conv.window;
    if (!largest)
      result /= static_cast<double>(
          window.counted(w, p / w.out_width, p % w.out_width, count_padding));
    y[index] = static_cast<float>(result);
  });
}

void sparse_product(const Product& product, const SparseMatrix& weights, const float* x,
                    const float* bias, float* y) {
  for (int64_t m = 0; m < product.count; ++m) {
    for (int64_t k = 0; k < weights.rows; ++k) {
      double sum = bias[k];
      for (int64_t i = weights.row_start[k]; i < weights.row_start[k + 1]; ++i)
        sum += static_cast<double>(weights.values[i]) *
               x[m * product.x_step + weights.column[i] * product.x_stride];
      y[m * product.y_step + k * product.y_stride] =
          static_cast<float>(activate(sum, product.activation));
    }
  }
}

}  // namespace st3fx::scalar

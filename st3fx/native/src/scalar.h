// The reference: every operator in its plainest form, summed in double precision. What the fast
// kernels are tested against, and what `ST3FX_ISA=scalar` runs.
#pragma once

#include "activation.h"
#include "layout.h"
#include "sparse_matrix.h"
#include "window.h"

namespace st3fx::scalar {

struct Convolution {
  Images in, out;
  Window window;
  int64_t groups;
  Activation activation;
};

void sparse_conv(const Convolution& conv, const SparseMatrix& weights, const float* x,
                 const float* bias, const float* residual, float* y);

void depthwise(const Convolution& conv, const float* weights, const float* bias, const float* x,
               const float* residual, float* y);

/// The largest or the average of each window; `count_padding` as in ONNX's count_include_pad.
void pool(const Convolution& conv, const WindowAttributes& window, bool largest,
          bool count_padding, const float* x, float* y);

/// y[m, k] = activation(bias[k] + Σ weights[k, c] · x[m, c]): element (m, c) of x lies at
/// `m · x_step + c · x_stride`, (m, k) of y at `m · y_step + k · y_stride`.
struct Product {
  int64_t count, x_step, x_stride, y_step, y_stride;
  Activation activation;
};
void sparse_product(const Product& product, const SparseMatrix& weights, const float* x,
                    const float* bias, float* y);

double activate(double x, const Activation& activation);

}  // namespace st3fx::scalar

// The simple loops: sums, scaling, a sparse row times a vector. Included by the instruction-set files.
#pragma once

#include "activate.h"
#include "kernels.h"
#include "vec.h"

namespace st3fx::ST3FX_ISA {

/// The activation of a single number, as the vectors have it.
ST3FX_INLINE float activate_one(float x, const Activation& activation) {
  return activate(broadcast(x), activation)[0];
}

static void add(const float* a, const float* b, float* y, int64_t n, const Activation& activation) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth)
    store(y + i, activate(load(a + i) + load(b + i), activation));
  for (; i < n; ++i) y[i] = activate_one(a[i] + b[i], activation);
}

static void scale(const float* x, float factor, float* y, int64_t n) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store(y + i, load(x + i) * broadcast(factor));
  for (; i < n; ++i) y[i] = x[i] * factor;
}

static float sum(const float* x, int64_t n) {
  Vec sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kWidth <= n; i += 4 * kWidth)
    for (int j = 0; j < 4; ++j) sums[j] += load(x + i + j * kWidth);
  for (; i + kWidth <= n; i += kWidth) sums[0] += load(x + i);
  const Vec all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  float total = 0;
  for (int j = 0; j < kWidth; ++j) total += all[j];
  for (; i < n; ++i) total += x[i];
  return total;
}

static void transpose(const float* from, int64_t from_stride, int64_t rows, int64_t columns,
                      float* to, int64_t to_stride) {
  constexpr int64_t kBlock = 16;  // rows and columns whose cache lines are used up at once
  for (int64_t row = 0; row < rows; row += kBlock) {
    const int64_t row_end = row + kBlock < rows ? row + kBlock : rows;
    for (int64_t column = 0; column < columns; ++column)
      for (int64_t r = row; r < row_end; ++r)
        to[column * to_stride + r] = from[r * from_stride + column];
  }
}

/// Scalar multiply-adds, eight sums under way: fetching sixteen scattered floats into a vector takes
/// longer than using them one by one.
static void sparse_dot(const DotJob& job) {
  constexpr int kSums = 8;
  for (int64_t row = job.row_begin; row < job.row_end; ++row) {
    const int32_t end = job.row_start[row + 1];
    int32_t i = job.row_start[row];
    float sums[kSums] = {job.bias[row]};
    for (; i + kSums <= end; i += kSums)
      for (int j = 0; j < kSums; ++j) sums[j] += job.values[i + j] * job.x[job.columns[i + j]];
    for (; i < end; ++i) sums[0] += job.values[i] * job.x[job.columns[i]];
    const float total = ((sums[0] + sums[1]) + (sums[2] + sums[3])) +
                        ((sums[4] + sums[5]) + (sums[6] + sums[7]));
    job.y[row] = activate_one(total, job.activation);
  }
}

}  // namespace st3fx::ST3FX_ISA

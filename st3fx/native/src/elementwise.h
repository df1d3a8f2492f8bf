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

/// Scalar multiply-adds, eight sums under way: fetching scattered floats into a vector takes longer
/// than using them one by one.
ST3FX_INLINE void dot_pair(const DotJob& job, const RowPair& pair) {
  float sums[8] = {};  // in turn of the first and of the second row
  const uint32_t turns_end = pair.begin + 2 * pair.common, end = turns_end + pair.extra;
  uint32_t i = pair.begin;
  for (; i + 8 <= turns_end; i += 8)
    for (uint32_t j = 0; j < 8; ++j) sums[j] += job.values[i + j] * job.x[job.columns[i + j]];
  for (uint32_t j = 0; i < turns_end; ++i, ++j)
    sums[j] += job.values[i] * job.x[job.columns[i]];
  for (; i + 4 <= end; i += 4)
    for (uint32_t j = 0; j < 4; ++j)
      sums[2 * j] += job.values[i + j] * job.x[job.columns[i + j]];
  for (; i < end; ++i) sums[0] += job.values[i] * job.x[job.columns[i]];
  auto finish = [&](int32_t row, float sum) {
    sum += job.first ? job.bias[row] : job.y[row];
    job.y[row] = job.last ? activate_one(sum, job.activation) : sum;
  };
  finish(pair.first, (sums[0] + sums[2]) + (sums[4] + sums[6]));
  if (pair.second >= 0) finish(pair.second, (sums[1] + sums[3]) + (sums[5] + sums[7]));
}

static void sparse_dot(const DotJob& job) {
  for (int64_t i = 0; i < job.pair_count; ++i) dot_pair(job, job.pairs[i]);
}

}  // namespace st3fx::ST3FX_ISA

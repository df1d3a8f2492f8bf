// The simple loops: sums, scaling, sparse rows times one vector. Included by the instruction-set
// files.
#pragma once

#include "activate.h"
#include "kernels.h"
#include "sparse_tile.h"
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

/// The sum of a vector's lanes, by halves: one after the other they would wait for each other.
ST3FX_INLINE float sum_of_lanes(Vec v) {
  float lanes[kWidth];
  store(lanes, v);
#pragma GCC unroll 8
  for (int half = kWidth / 2; half > 0; half /= 2)
#pragma GCC unroll 8
    for (int j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  return lanes[0];
}

static float sum(const float* x, int64_t n) {
  Vec sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kWidth <= n; i += 4 * kWidth)
    for (int j = 0; j < 4; ++j) sums[j] += load(x + i + j * kWidth);
  for (; i + kWidth <= n; i += kWidth) sums[0] += load(x + i);
  float total = sum_of_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < n; ++i) total += x[i];
  return total;
}

static void transpose(const float* from, int64_t from_stride, int64_t rows, int64_t columns,
                      float* to, int64_t to_stride) {
  constexpr int64_t kBlock = 256;  // rows: so many floats are written one after the other
  for (int64_t row = 0; row < rows; row += kBlock) {
    const int64_t row_end = row + kBlock < rows ? row + kBlock : rows;
    const int64_t fours_end = row + (row_end - row) / 4 * 4;
    int64_t column = 0;
    for (; column + 4 <= columns; column += 4)
      for (int64_t r = row; r < fours_end; r += 4)
        transpose_fours(from + r * from_stride + column, from_stride, to + column * to_stride + r,
                        to_stride);
    // What is left: the last columns, and the last rows of all others.
    for (int64_t rest = 0; rest < columns; ++rest)
      for (int64_t r = rest < column ? fours_end : row; r < row_end; ++r)
        to[rest * to_stride + r] = from[r * from_stride + rest];
  }
}

/// Four products: values in a row, inputs wherever their columns are.
ST3FX_INLINE Quad products(const DotJob& job, uint32_t i) {
  Quad values;
  uint64_t columns;  // four of them in one load
  __builtin_memcpy(&values, job.values + i, sizeof values);
  __builtin_memcpy(&columns, job.columns + i, sizeof columns);
  const Quad inputs = {job.x[columns & 0xffff], job.x[columns >> 16 & 0xffff],
                       job.x[columns >> 32 & 0xffff], job.x[columns >> 48]};
  return values * inputs;
}

/// One vector times a pair of rows. Four inputs at a time: wider vectors of scattered floats take
/// longer to put together than they save.
ST3FX_INLINE void dot_pair(const DotJob& job, const RowPair& pair) {
  Quad turns[2] = {}, rest[2] = {};  // of both rows in turn; of the first row alone
  const uint32_t turns_end = pair.begin + 2 * pair.common, end = turns_end + pair.extra;
  uint32_t i = pair.begin;
  for (; i + 8 <= turns_end; i += 8) {
    turns[0] += products(job, i);
    turns[1] += products(job, i + 4);
  }
  float first = 0, second = 0;
  for (; i < turns_end; i += 2) {
    first += job.values[i] * job.x[job.columns[i]];
    second += job.values[i + 1] * job.x[job.columns[i + 1]];
  }
  for (; i + 8 <= end; i += 8) {
    rest[0] += products(job, i);
    rest[1] += products(job, i + 4);
  }
  for (; i < end; ++i) first += job.values[i] * job.x[job.columns[i]];
  const Quad both = turns[0] + turns[1], alone = rest[0] + rest[1];
  first += (both[0] + both[2]) + ((alone[0] + alone[1]) + (alone[2] + alone[3]));
  second += both[1] + both[3];
  auto finish = [&](int32_t row, float sum) {
    sum += job.first ? job.bias[row] : job.y[row];
    job.y[row] = job.last ? activate_one(sum, job.activation) : sum;
  };
  finish(pair.first, first);
  if (pair.second >= 0) finish(pair.second, second);
}

static void sparse_dot(const DotJob& job) {
  for (int64_t i = 0; i < job.pair_count; ++i) dot_pair(job, job.pairs[i]);
}

/// What the core can do at best: enough independent sums to hide the latency.
static double multiply_adds(int64_t rounds) {
  const Vec f = broadcast(static_cast<float>(rounds) * 1e-9F);
  Sums<6> a, b;
#pragma GCC unroll 8
  for (int j = 0; j < 6; ++j) a.v[j] = broadcast(1.0F + j), b.v[j] = broadcast(-1.0F - j);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < 6; ++j) a.v[j] = a.v[j] * f + f, b.v[j] = b.v[j] * f + f;
  }
  Vec total = {};
#pragma GCC unroll 8
  for (int j = 0; j < 6; ++j) total += a.v[j] - b.v[j];
  asm volatile("" : : "m"(total));  // or nothing of this would be done
  return 2.0 * 12 * kWidth * static_cast<double>(rounds);
}

}  // namespace st3fx::ST3FX_ISA

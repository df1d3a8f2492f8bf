// The inner loop of sparse convolutions and sparse matrix products. Included by the instruction-set
// files.
//
// A nonzero weight is spread over a vector and multiplied with S vectors of neighbouring positions;
// the sums of two rows stay in registers until all their nonzeros are through.
#pragma once

#include "activate.h"
#include "kernels.h"
#include "vec.h"

namespace st3fx::ST3FX_ISA {

/// S vectors of neighbouring positions of one row.
template <int S>
struct Sums {
  Vec v[S];
};

/// sums += value · positions
template <int S>
ST3FX_INLINE void multiply_add(Sums<S>& sums, float value, const float* positions) {
  const Vec weight = broadcast(value);
  positions = in_register(positions);
#pragma GCC unroll 8
  for (int s = 0; s < S; ++s) sums.v[s] += weight * load(positions + s * kWidth);
}

template <int S>
ST3FX_INLINE void begin_row(Sums<S>& sums, const TileJob& job, int64_t row, int64_t at) {
  const int64_t offset = row * job.row_stride + at;
  if (!job.first) {
    const float* from = job.out + offset;
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) sums.v[s] = load(from + s * kWidth);
    return;
  }
  const Vec bias = broadcast(job.bias[row]);
#pragma GCC unroll 8
  for (int s = 0; s < S; ++s) sums.v[s] = bias;
  if (!job.residual) return;
  const float* from = job.residual + offset;
#pragma GCC unroll 8
  for (int s = 0; s < S; ++s) sums.v[s] += load(from + s * kWidth);
}

/// Stores the activation of S vectors of sums.
template <int S>
ST3FX_INLINE void finish_row(Sums<S>& sums, const Activation& activation, float* to) {
  if (activation.kind == Activation::clip) {
    const Vec low = broadcast(activation.minimum), high = broadcast(activation.maximum);
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) sums.v[s] = minimum(maximum(sums.v[s], low), high);
  }
#pragma GCC unroll 8
  for (int s = 0; s < S; ++s) store(to + s * kWidth, sums.v[s]);
  if (activation.kind == Activation::silu || activation.kind == Activation::hard_swish)
    for (int i = 0; i < S * kWidth; i += kWidth) store(to + i, activate(load(to + i), activation));
}

template <int S>
ST3FX_INLINE void end_row(Sums<S>& sums, const TileJob& job, int64_t row, int64_t at) {
  finish_row(sums, job.last ? job.activation : Activation{}, job.out + row * job.row_stride + at);
}

/// Where the input of a nonzero begins: listed, or computed where columns are evenly spaced.
struct Listed {
  const uint32_t* offsets;
  ST3FX_MEMBER int64_t operator[](uint32_t nonzero) const { return offsets[nonzero]; }
};
struct Spaced {
  const uint16_t* columns;
  int64_t stride;
  ST3FX_MEMBER int64_t operator[](uint32_t nonzero) const { return columns[nonzero] * stride; }
};

/// Has S vectors brought near of a row that begins soon.
template <int S>
ST3FX_INLINE void fetch_row(const TileJob& job, int64_t row, int64_t at) {
  const int64_t offset = row * job.row_stride + at;
  const bool apart = job.residual && job.residual != job.out;
  for (int i = 0; i < S * kWidth; i += 16) {
    fetch(job.out + offset + i);
    if (apart) fetch(job.residual + offset + i);
  }
}

/// Positions [at, at + S·kWidth) of a pair of rows; U nonzeros of each row are under way at once.
template <int S, int U, class Offsets>
ST3FX_INLINE void run_pair(const TileJob& job, const RowPair& pair, const Offsets offsets,
                           int64_t at) {
  const float* value = job.values;
  const float* taps = job.taps + at;
  Sums<S> a[U] = {}, b[U] = {};
  begin_row(a[0], job, pair.first, at);
  if (pair.second >= 0) begin_row(b[0], job, pair.second, at);
  uint32_t i = pair.begin;
  const uint32_t turns_end = i + 2 * pair.common, end = turns_end + pair.extra;
  for (; i + 2 * U <= turns_end; i += 2 * U) {
#pragma GCC unroll 4
    for (uint32_t u = 0; u < U; ++u) {
      multiply_add(a[u], value[i + 2 * u], taps + offsets[i + 2 * u]);
      multiply_add(b[u], value[i + 2 * u + 1], taps + offsets[i + 2 * u + 1]);
    }
  }
  for (; i < turns_end; i += 2) {
    multiply_add(a[0], value[i], taps + offsets[i]);
    multiply_add(b[0], value[i + 1], taps + offsets[i + 1]);
  }
  for (; i < end; ++i) multiply_add(a[0], value[i], taps + offsets[i]);
#pragma GCC unroll 4
  for (int u = 1; u < U; ++u)
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) a[0].v[s] += a[u].v[s], b[0].v[s] += b[u].v[s];
  end_row(a[0], job, pair.first, at);
  if (pair.second >= 0) end_row(b[0], job, pair.second, at);
}

/// A tile of 16·S positions, cut into pieces of S vectors.
template <int S, class Offsets>
ST3FX_INLINE void run_pieces(const TileJob& job, const Offsets offsets) {
  constexpr int U = S == 1 ? 4 : S == 2 ? 2 : 1;
  const bool unchanged = !job.first && !job.last;
  for (int64_t at = 0; at < 16 * S; at += S * kWidth) {
    for (int64_t i = 0; i < job.pair_count; ++i) {
      // Rows are in the order of their nonzeros, which no core foresees.
      if (job.first && i + 1 < job.pair_count) {
        fetch_row<S>(job, job.pairs[i + 1].first, at);
        if (job.pairs[i + 1].second >= 0) fetch_row<S>(job, job.pairs[i + 1].second, at);
      }
      if (!unchanged || job.pairs[i].common + job.pairs[i].extra > 0)
        run_pair<S, U>(job, job.pairs[i], offsets, at);
    }
  }
}

template <int S>
static void run_tile(const TileJob& job) {
  if (job.offsets) {
    run_pieces<S>(job, Listed{job.offsets});
  } else {
    run_pieces<S>(job, Spaced{job.columns, job.column_stride});
  }
}

static void sparse_tile(const TileJob& job) {
  using Function = void (*)(const TileJob&);
  static constexpr Function by_width[] = {run_tile<1>, run_tile<2>, run_tile<3>, run_tile<4>,
                                          run_tile<5>, run_tile<6>, run_tile<7>};
  by_width[job.width / 16 - 1](job);
}

}  // namespace st3fx::ST3FX_ISA

// Depthwise convolutions and pools: a window over each channel by itself. Included by the
// instruction-set files.
#pragma once

#include "activate.h"
#include "kernels.h"
#include "sparse_tile.h"
#include "vec.h"

namespace st3fx::ST3FX_ISA {

/// Positions [at, at + S·kWidth) of one channel.
template <int S>
ST3FX_INLINE void window_piece(const WindowJob& job, int64_t channel, int64_t at) {
  const float* taps = job.taps + (channel - job.channel_begin) * job.channel_floats + at;
  const int64_t offset = channel * job.row_stride + at;
  Sums<S> sums;
  const bool convolve = job.kind == WindowJob::convolve;
  const float* weight = convolve ? job.weights + channel * job.tap_count : nullptr;
  for (int s = 0; s < S; ++s) {
    sums.v[s] = convolve ? broadcast(job.bias[channel]) : Vec{};
    if (job.residual) sums.v[s] += load(job.residual + offset + s * kWidth);
    if (job.kind == WindowJob::largest) sums.v[s] = load(taps + job.tap_offsets[0] + s * kWidth);
  }
  for (int64_t i = 0; i < job.tap_count; ++i) {
    const float* from = taps + job.tap_offsets[i];
    if (convolve) {
      multiply_add(sums, weight[i], from);
    } else if (job.kind == WindowJob::average) {
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) sums.v[s] += load(from + s * kWidth);
    } else {
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) sums.v[s] = maximum(load(from + s * kWidth), sums.v[s]);
    }
  }
  for (int s = 0; s < S; ++s) {
    if (job.kind == WindowJob::average) sums.v[s] *= load(job.scale + at + s * kWidth);
    store(job.out + offset + s * kWidth, activate(sums.v[s], job.activation));
  }
}

template <int S>
static void window_pieces(const WindowJob& job) {
  for (int64_t channel = job.channel_begin; channel < job.channel_end; ++channel)
    for (int64_t at = 0; at < 16 * S; at += S * kWidth) window_piece<S>(job, channel, at);
}

static void window_tile(const WindowJob& job) {
  using Function = void (*)(const WindowJob&);
  static constexpr Function by_width[] = {
      window_pieces<1>, window_pieces<2>, window_pieces<3>, window_pieces<4>,
      window_pieces<5>, window_pieces<6>, window_pieces<7>};
  by_width[job.width / 16 - 1](job);
}

}  // namespace st3fx::ST3FX_ISA

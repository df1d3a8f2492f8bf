// Depthwise convolutions and pools: a window over each channel by itself. Included by the
// instruction-set files.
#pragma once

#include "activate.h"
#include "kernels.h"
#include "sparse_tile.h"
#include "vec.h"

namespace st3fx::ST3FX_ISA {

using WindowKind = WindowJob::Kind;

/// Positions [at, at + S·kWidth) of one channel.
template <int S, WindowKind kind>
ST3FX_INLINE void window_piece(const WindowJob& job, int64_t channel, int64_t at) {
  const float* taps = job.taps + channel * job.channel_floats + at;
  const int64_t offset = channel * job.row_stride + at;
  constexpr bool convolves = kind == WindowJob::convolve;
  const float* weight = convolves ? job.weights + channel * job.tap_count : nullptr;
  const Vec start = convolves ? broadcast(job.bias[channel]) : Vec{};
  Sums<S> sums;
#pragma GCC unroll 8
  for (int s = 0; s < S; ++s)
    sums.v[s] = kind == WindowJob::largest ? load(taps + job.tap_offsets[0] + s * kWidth) : start;
  if (kind == WindowJob::convolve && job.residual) {
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) sums.v[s] += load(job.residual + offset + s * kWidth);
  }
  for (int64_t i = 0; i < job.tap_count; ++i) {
    const float* from = taps + job.tap_offsets[i];
    if (kind == WindowJob::convolve) {
      multiply_add(sums, weight[i], from);
    } else {
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) {
        const Vec x = load(from + s * kWidth);
        sums.v[s] = kind == WindowJob::average ? sums.v[s] + x : maximum(x, sums.v[s]);
      }
    }
  }
  if (kind == WindowJob::average) {
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) sums.v[s] *= load(job.scale + at + s * kWidth);
  }
  finish_row(sums, job.activation, job.out + offset);
}

template <WindowKind kind>
static void window_channels(const WindowJob& job) {
  for (int64_t channel = 0; channel < job.channels; ++channel) {
    int64_t at = 0;
    for (; at + 7 * kWidth <= job.width; at += 7 * kWidth) window_piece<7, kind>(job, channel, at);
    switch ((job.width - at) / kWidth) {
      case 1: window_piece<1, kind>(job, channel, at); break;
      case 2: window_piece<2, kind>(job, channel, at); break;
      case 3: window_piece<3, kind>(job, channel, at); break;
      case 4: window_piece<4, kind>(job, channel, at); break;
      case 5: window_piece<5, kind>(job, channel, at); break;
      case 6: window_piece<6, kind>(job, channel, at); break;
      default: break;
    }
  }
}

static void window_tile(const WindowJob& job) {
  switch (job.kind) {
    case WindowJob::convolve: return window_channels<WindowJob::convolve>(job);
    case WindowJob::largest: return window_channels<WindowJob::largest>(job);
    case WindowJob::average: return window_channels<WindowJob::average>(job);
  }
}

}  // namespace st3fx::ST3FX_ISA

// Depthwise convolutions and pools: a window over each channel by itself. Included by the
// instruction-set files.
#pragma once

#include "activate.h"
#include "kernels.h"
#include "sparse_tile.h"
#include "vec.h"

namespace st3fx::ST3FX_ISA {

using WindowKind = WindowJob::Kind;

/// What a tap beside the image counts as.
template <WindowKind kind>
ST3FX_INLINE Vec nothing() {
  return kind == WindowJob::largest ? broadcast(-__builtin_inff()) : Vec{};
}

/// x where the mask is set, else `outside`.
ST3FX_INLINE Vec inside(const int32_t* mask, Vec x, Vec outside) {
  IntVec set;
  __builtin_memcpy(&set, mask, sizeof set);
  return set ? x : outside;
}

/// sums ∘= the taps of one column of the kernel
template <int S, WindowKind kind>
ST3FX_INLINE void add_column(Sums<S>& sums, const WindowJob& job, const float* taps,
                             const float* weights, int64_t column) {
  for (int64_t i = column; i < job.rows * job.columns; i += job.columns) {
    const float* from = taps + job.tap_offsets[i];
    if (kind == WindowJob::convolve) {
      multiply_add(sums, weights[i], from);
    } else {
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) {
        const Vec x = load(from + s * kWidth);
        sums.v[s] = kind == WindowJob::average ? sums.v[s] + x : maximum(x, sums.v[s]);
      }
    }
  }
}

/// sums ∘= the same, but for the positions that the mask leaves out
template <int S, WindowKind kind>
ST3FX_INLINE void add_masked(Sums<S>& sums, const WindowJob& job, const float* taps,
                             const float* weights, int64_t column, const int32_t* mask) {
  Sums<S> part;
#pragma GCC unroll 8
  for (int s = 0; s < S; ++s) part.v[s] = nothing<kind>();
  add_column<S, kind>(part, job, taps, weights, column);
#pragma GCC unroll 8
  for (int s = 0; s < S; ++s) {
    const Vec x = inside(mask + s * kWidth, part.v[s], nothing<kind>());
    sums.v[s] = kind == WindowJob::largest ? maximum(x, sums.v[s]) : sums.v[s] + x;
  }
}

/// Bias and residual of some positions of a channel.
template <int S>
ST3FX_INLINE void begin_sums(Sums<S>& sums, const WindowJob& job, int64_t channel, int64_t offset) {
  const Vec bias = broadcast(job.bias[channel]);
#pragma GCC unroll 8
  for (int s = 0; s < S; ++s) sums.v[s] = bias;
  if (!job.residual) return;
#pragma GCC unroll 8
  for (int s = 0; s < S; ++s) sums.v[s] += load(job.residual + offset + s * kWidth);
}

/// A convolution whose kernel has three columns side by side. Each row is read once: what the outer
/// columns see is shifted in registers, where reading it would cross a cache line every time.
template <int S>
ST3FX_INLINE void convolve_three(const WindowJob& job, int64_t channel, int64_t at) {
  const int64_t position = job.position + at, offset = channel * job.row_stride + at;
  const float* taps = job.taps + channel * job.channel_floats + at;
  const float* weights = job.weights + channel * job.rows * 3;
  Sums<S> left{}, middle, right{};
  begin_sums(middle, job, channel, offset);
  for (int64_t row = 0; row < job.rows; ++row, weights += 3) {
    const Vec first = broadcast(weights[0]), second = broadcast(weights[1]);
    const Vec third = broadcast(weights[2]);
    const float* from = taps + job.tap_offsets[row * 3 + 1];
    Vec previous = load(from - kWidth), current = load(from);
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) {
      const Vec next = load(from + (s + 1) * kWidth);
      left.v[s] += first * one_before(previous, current);
      middle.v[s] += second * current;
      right.v[s] += third * one_after(current, next);
      previous = current;
      current = next;
    }
  }
#pragma GCC unroll 8
  for (int s = 0; s < S; ++s) {
    if (job.masks[0]) left.v[s] = inside(job.masks[0] + position + s * kWidth, left.v[s], Vec{});
    if (job.masks[2]) right.v[s] = inside(job.masks[2] + position + s * kWidth, right.v[s], Vec{});
    middle.v[s] += left.v[s] + right.v[s];
  }
  finish_row(middle, job.activation, job.out + offset);
}

static void three_columns(const WindowJob& job) {
  constexpr int S = kWidth == 8 ? 2 : 7;  // three times as many sums fit into the registers
  for (int64_t channel = 0; channel < job.channels; ++channel) {
    int64_t at = 0;
    for (; at + S * kWidth <= job.width; at += S * kWidth) convolve_three<S>(job, channel, at);
    for (; at + 4 * kWidth <= job.width && S > 4; at += 4 * kWidth)
      convolve_three<4>(job, channel, at);
    for (; at < job.width; at += kWidth) convolve_three<1>(job, channel, at);
  }
}

/// Positions [at, at + S·kWidth) of one channel.
template <int S, WindowKind kind>
ST3FX_INLINE void window_piece(const WindowJob& job, int64_t channel, int64_t at) {
  const int64_t position = job.position + at, offset = channel * job.row_stride + at;
  const float* taps = job.taps + channel * job.channel_floats + at;
  constexpr bool convolves = kind == WindowJob::convolve;
  const float* weights = convolves ? job.weights + channel * job.rows * job.columns : nullptr;
  Sums<S> sums;
  if (convolves) {
    begin_sums(sums, job, channel, offset);
  } else {
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) sums.v[s] = nothing<kind>();
  }
  for (int64_t column = 0; column < job.columns; ++column) {
    if (const int32_t* mask = job.masks[column]) {
      add_masked<S, kind>(sums, job, taps, weights, column, mask + position);
    } else {
      add_column<S, kind>(sums, job, taps, weights, column);
    }
  }
  if (kind == WindowJob::average) {
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) sums.v[s] *= load(job.scale + position + s * kWidth);
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
  if (job.three_columns) return three_columns(job);
  switch (job.kind) {
    case WindowJob::convolve: return window_channels<WindowJob::convolve>(job);
    case WindowJob::largest: return window_channels<WindowJob::largest>(job);
    case WindowJob::average: return window_channels<WindowJob::average>(job);
  }
}

}  // namespace st3fx::ST3FX_ISA

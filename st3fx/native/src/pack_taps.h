// Copies the input that a tile of outputs reads, so that every tap of the kernel reads vectors.
// Included by the instruction-set files. What is copied where is worked out in `taps.cpp`.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace st3fx::ST3FX_ISA {

/// Copies n pixels, every stride-th from there on. `ahead`: 32 floats behind them may be read.
ST3FX_INLINE void copy_run(float* to, const float* from, int64_t n, int64_t stride, bool ahead) {
  if (stride == 1) return copy_exactly(to, from, n);
  if (stride == 2 && ahead) {
    for (; n >= kWidth; n -= kWidth, from += 2 * kWidth, to += kWidth) store(to, load_even(from));
    if (n == 0) return;
    float rest[16];
    store(rest, load_even(from));
    return copy_exactly(to, rest, n);
  }
  for (int64_t i = 0; i < n; ++i) to[i] = from[i * stride];
}

static void pack_taps(const PackJob& job) {
  const int64_t channels = job.channel_end - job.channel_begin;
  fill(job.taps, job.outside, channels * job.plane_count * job.plane_floats);
  float* to = job.taps;
  for (int64_t c = job.channel_begin; c < job.channel_end; ++c) {
    // A channel takes 16 floats or more: the two that follow are there to be read.
    const bool ahead = c + 2 < job.channel_end;
    for (int64_t i = 0; i < job.plane_count; ++i, to += job.plane_floats) {
      for (int32_t r = job.planes[i].begin; r < job.planes[i].end; ++r) {
        const PixelRun& run = job.runs[r];
        copy_run(to + run.tile_offset, job.x + run.image_offset + c * run.channel_stride, run.count,
                 job.stride, ahead);
      }
    }
  }
}

}  // namespace st3fx::ST3FX_ISA

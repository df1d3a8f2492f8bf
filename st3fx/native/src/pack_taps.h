// Copies the input that a tile of outputs reads, so that every tap of the kernel reads vectors.
// Included by the instruction-set files. What is copied where is worked out in `taps.cpp`.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace st3fx::ST3FX_ISA {

/// Copies n pixels, every stride-th from there on. `ahead`: 32 floats behind them may be read, and
/// 15 behind the copy overwritten.
ST3FX_INLINE void copy_run(float* to, const float* from, int64_t n, int64_t stride, bool ahead) {
  if (stride == 1) return ahead ? copy(to, from, n) : copy_exactly(to, from, n);
  if (stride == 2 && ahead) {
    for (; n > 0; n -= kWidth, from += 2 * kWidth, to += kWidth) store(to, load_even(from));
    return;
  }
  for (int64_t i = 0; i < n; ++i) to[i] = from[i * stride];
}

/// One plane of one channel, from its begin to its end: what a copy overwrites behind itself is
/// written after it.
ST3FX_INLINE void pack_plane(const PackJob& job, const PlaneRuns& plane, int64_t channel, float* to,
                             bool ahead) {
  int64_t at = 0;
  for (int32_t r = plane.begin; r < plane.end; ++r) {
    const PixelRun& run = job.runs[r];
    fill(to + at, job.outside, run.tile_offset - at);
    copy_run(to + run.tile_offset, job.x + run.image_offset + channel * run.channel_stride,
             run.count, job.stride, ahead);
    at = run.tile_offset + run.count;
  }
  fill(to + at, job.outside, job.plane_floats - at);
}

static void pack_taps(const PackJob& job) {
  float* to = job.taps;
  for (int64_t c = job.channel_begin; c < job.channel_end; ++c) {
    // A channel takes 16 floats or more: the two that follow are there to be read.
    const bool ahead = c + 2 < job.channels;
    for (int64_t i = 0; i < job.plane_count; ++i, to += job.plane_floats)
      pack_plane(job, job.planes[i], c, to, ahead);
  }
}

}  // namespace st3fx::ST3FX_ISA

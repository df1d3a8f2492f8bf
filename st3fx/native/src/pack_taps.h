// Copies the input that a tile of outputs reads, so that every tap of the kernel reads vectors.
// Included by the instruction-set files. What is copied where is worked out in `taps.cpp`.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace st3fx::ST3FX_ISA {

/// Copies whole vectors: up to 15 floats are written behind the run, twice as many read.
ST3FX_INLINE void copy_run(float* to, const float* from, int64_t n, int64_t stride) {
  if (stride == 1) {
    copy(to, from, n);
  } else if (stride == 2) {
    for (int64_t i = 0; i < n; i += kWidth) store(to + i, load_even(from + 2 * i));
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = from[i * stride];
  }
}

ST3FX_INLINE void copy_run_exactly(float* to, const float* from, int64_t n, int64_t stride) {
  if (stride == 1) return copy_exactly(to, from, n);
  for (int64_t i = 0; i < n; ++i) to[i] = from[i * stride];
}

static void pack_taps(const PackJob& job) {
  float* to = job.taps;
  for (int64_t c = job.channel_begin; c < job.channel_end; ++c) {
    // Behind the last channel lies what others read or write.
    const bool exactly = c + 1 == job.channel_end;
    for (int64_t i = 0; i < job.plane_count; ++i, to += job.plane_floats) {
      const PlaneRuns& plane = job.planes[i];
      for (int32_t r = plane.run_begin; r < plane.run_end; ++r) {
        const PixelRun& run = job.runs[r];
        const float* from = job.x + run.image_offset + c * run.channel_stride;
        if (exactly) {
          copy_run_exactly(to + run.tile_offset, from, run.count, job.stride);
        } else {
          copy_run(to + run.tile_offset, from, run.count, job.stride);
        }
      }
      // Last: the runs have written over them.
      for (int32_t g = plane.gap_begin; g < plane.gap_end; ++g)
        fill(to + job.gaps[g].tile_offset, job.gap_value, job.gaps[g].count);
    }
  }
}

}  // namespace st3fx::ST3FX_ISA

// Copies the input that a tile of outputs reads, so that every tap of the kernel reads vectors.
// Included by the instruction-set files. What is copied where is worked out in `taps.cpp`.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace st3fx::ST3FX_ISA {

/// What a copy may touch behind its pixels.
struct Room {
  bool to_read;   ///< 32 floats of the image.
  bool to_write;  ///< 15 floats of the packed channels, which are written after it.
};

/// Copies n pixels, every stride-th from there on.
ST3FX_INLINE void copy_run(float* to, const float* from, int64_t n, int64_t stride, Room room) {
  const bool both = room.to_read && room.to_write;
  if (stride == 1) return both ? copy(to, from, n) : copy_exactly(to, from, n);
  if (stride == 2 && room.to_read) {
    const int64_t whole = room.to_write ? n + kWidth - 1 : n;
    for (int64_t i = 0; i + kWidth <= whole; i += kWidth) store(to + i, load_even(from + 2 * i));
    if (room.to_write || n % kWidth == 0) return;
    float rest[16] = {};
    const int64_t done = n / kWidth * kWidth;
    store(rest, load_even(from + 2 * done));
    return copy_exactly(to + done, rest, n - done);
  }
  for (int64_t i = 0; i < n; ++i) to[i] = from[i * stride];
}

/// One plane of one channel, from its begin to its end: what a copy overwrites behind itself is
/// written after it.
ST3FX_INLINE void pack_plane(const PackJob& job, const PlaneRuns& plane, int64_t channel, float* to,
                             Room room) {
  int64_t at = 0;
  for (int32_t r = plane.begin; r < plane.end; ++r) {
    const PixelRun& run = job.runs[r];
    fill(to + at, job.outside, run.tile_offset - at);
    copy_run(to + run.tile_offset, job.x + run.image_offset + channel * run.channel_stride,
             run.count, job.stride, room);
    at = run.tile_offset + run.count;
  }
  fill(to + at, job.outside, job.plane_floats - at);
}

static void pack_taps(const PackJob& job) {
  float* to = job.taps;
  for (int64_t c = job.channel_begin; c < job.channel_end; ++c) {
    // A channel takes 16 floats or more: the two that follow are there to be read. What follows the
    // last one packed here may be another thread's.
    const Room room{c + 2 < job.channels, c + 1 < job.channel_end};
    for (int64_t i = 0; i < job.plane_count; ++i, to += job.plane_floats)
      pack_plane(job, job.planes[i], c, to, room);
  }
}

}  // namespace st3fx::ST3FX_ISA

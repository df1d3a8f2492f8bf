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
  if (stride == 1) return copy_exactly(to, from, n);
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
  for (int32_t i = plane.outside_begin; i < plane.outside_end; ++i)
    to[job.outside_positions[i]] = job.outside;
}

/// One run of neighbouring pixels in some channels. Aligned vectors are written: the first one keeps
/// what is there before the run, and the last one reaches over its end.
ST3FX_INLINE void copy_vectors(const PixelRun& run, float* to, const float* from, int64_t channels,
                               int64_t channel_floats) {
  const int64_t skip = run.tile_offset % kWidth, n = skip + run.count;
  const int64_t channel_stride = run.channel_stride;
  const IntVec own = lanes_between(skip, kWidth);
  to += run.tile_offset - skip;
  from += run.image_offset - skip;
  for (; channels > 0; --channels, to += channel_floats, from += channel_stride) {
    store(to, skip == 0 ? load(from) : own ? load(from) : load(to));
    for (int64_t i = kWidth; i < n; i += kWidth) store(to + i, load(from + i));
  }
}

/// One plane of channels [begin, end) of neighbouring pixels, around which all may be read. Run
/// after run, not channel after channel: runs are short, and alike in all channels.
ST3FX_INLINE void pack_neighbours(const PackJob& job, const PlaneRuns& plane, int64_t begin,
                                  int64_t end, float* to, int64_t channel_floats) {
  auto fill_all = [&](int64_t from, int64_t until) {
    for (int64_t c = 0; from < until && c < end - begin; ++c)
      fill(to + c * channel_floats + from, job.outside, until - from);
  };
  int64_t at = 0;
  for (int32_t r = plane.begin; r < plane.end; ++r) {
    const PixelRun& run = job.runs[r];
    fill_all(at, run.tile_offset);
    copy_vectors(run, to, job.x + begin * run.channel_stride, end - begin, channel_floats);
    at = run.tile_offset + run.count;
  }
  fill_all(at, job.plane_floats);
  for (int32_t i = plane.outside_begin; i < plane.outside_end; ++i)
    fill_all(job.outside_positions[i], job.outside_positions[i] + 1);
}

/// Channels [begin, end), one after the other. Those that follow are packed later.
ST3FX_INLINE void pack_channels(const PackJob& job, int64_t begin, int64_t end, float* to) {
  for (int64_t c = begin; c < end; ++c) {
    // What follows the last channel of all may be another thread's.
    const Room room{c + job.margin < job.channels, c + 1 < job.channel_end};
    for (int64_t i = 0; i < job.plane_count; ++i, to += job.plane_floats)
      pack_plane(job, job.planes[i], c, to, room);
  }
}

static void pack_taps(const PackJob& job) {
  const int64_t channel_floats = job.plane_count * job.plane_floats;
  auto plane_of = [&](int64_t channel, int64_t plane) {
    return job.taps + (channel - job.channel_begin) * channel_floats + plane * job.plane_floats;
  };
  int64_t begin = job.channel_begin > job.margin ? job.channel_begin : job.margin;
  int64_t end = job.channels - job.margin;
  if (end > job.channel_end) end = job.channel_end;
  if (job.stride > 1 || begin >= end) begin = end = job.channel_begin;
  pack_channels(job, job.channel_begin, begin, job.taps);
  pack_channels(job, end, job.channel_end, plane_of(end, 0));
  for (int64_t i = 0; i < job.plane_count && begin < end; ++i)
    pack_neighbours(job, job.planes[i], begin, end, plane_of(begin, i), channel_floats);
}

}  // namespace st3fx::ST3FX_ISA

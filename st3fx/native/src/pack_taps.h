// Copies the input that a tile of outputs reads, so that every tap of the kernel reads vectors.
// Included by the instruction-set files. What is copied where is worked out in `taps.cpp`.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace st3fx::ST3FX_ISA {

constexpr int64_t kPackFloats = 4096;

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
}

/// −1 in the lanes whose bits are set.
ST3FX_INLINE IntVec lanes_of(int32_t bits) {
  IntVec bit;
  for (int i = 0; i < kWidth; ++i) bit[i] = 1 << i;
  return (bit & bits) != 0;
}

/// One group in some channels. `first`: what is not copied lies outside, else it stays as it is.
template <bool first, int stride>
ST3FX_INLINE void copy_group(const PackJob& job, const PixelGroup& group, int64_t begin,
                             int64_t channels, float* to, int64_t channel_floats) {
  const Vec outside = broadcast(job.outside);
  to += group.tile_offset;
  const float* from = job.x + group.image_offset + begin * group.channel_stride;
#pragma GCC unroll 4
  for (int j = 0; j < kStep; ++j, to += kWidth, from += stride * kWidth) {
    const IntVec lanes = lanes_of(group.lanes >> (j * kWidth));
    for (int64_t c = 0; c < channels; ++c) {
      const float* source = from + c * group.channel_stride;
      float* target = to + c * channel_floats;
      const Vec x = stride == 2 ? load_even(source) : load(source);
      store(target, lanes ? x : first ? outside : load(target));
    }
  }
}

/// One plane of channels [begin, end), around whose pixels all may be read.
template <int stride>
ST3FX_INLINE void pack_groups(const PackJob& job, const PlaneRuns& plane, int64_t begin,
                              int64_t end, float* to, int64_t channel_floats) {
  auto fill_all = [&](int64_t from, int64_t until) {
    for (int64_t c = 0; from < until && c < end - begin; ++c)
      fill(to + c * channel_floats + from, job.outside, until - from);
  };
  int64_t at = 0;
  for (int32_t i = plane.group_begin; i < plane.group_end; ++i) {
    const PixelGroup& group = job.groups[i];
    fill_all(at, group.tile_offset);
    if (group.tile_offset >= at) {
      copy_group<true, stride>(job, group, begin, end - begin, to, channel_floats);
    } else {
      copy_group<false, stride>(job, group, begin, end - begin, to, channel_floats);
    }
    at = group.tile_offset + 16;
  }
  fill_all(at, job.plane_floats);
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
  if (job.stride > 2 || begin >= end) begin = end = job.channel_begin;
  pack_channels(job, job.channel_begin, begin, job.taps);
  pack_channels(job, end, job.channel_end, plane_of(end, 0));
  // Group after group, not channel after channel: groups are alike in all channels. So many of these
  // at a time that what is written stays in the L1 cache.
  const int64_t fitting = kPackFloats / channel_floats, step = fitting > 8 ? fitting : 8;
  for (; begin < end; begin += step) {
    const int64_t until = begin + step < end ? begin + step : end;
    for (int64_t i = 0; i < job.plane_count; ++i) {
      float* to = plane_of(begin, i);
      if (job.stride == 2) {
        pack_groups<2>(job, job.planes[i], begin, until, to, channel_floats);
      } else {
        pack_groups<1>(job, job.planes[i], begin, until, to, channel_floats);
      }
    }
  }
}

}  // namespace st3fx::ST3FX_ISA

// From an image to the taps of one output tile. Included by the instruction-set files.
//
// The input rows under the tile are first copied to a *patch*, one channel at a time: with zeros where
// the window reaches over the border, and the pixels of a row sorted by their column modulo the stride
// (the *phases*). In it the inputs of a row of outputs lie side by side for every tap.
#pragma once

#include "image.h"
#include "kernels.h"
#include "vec.h"

namespace st3fx::ST3FX_ISA {

/// How a patch lies in memory.
struct Patch {
  int64_t phase_floats;  ///< From one phase of a row to the next.
  int64_t row_floats;
  int64_t pixels;  ///< Of an input row that some window reads, padding included.
};

ST3FX_INLINE Patch patch_of(const Window& w) {
  const int64_t pixels =
      (w.out_width - 1) * w.stride_width + (w.kernel_width - 1) * w.dilation_width + 1;
  const int64_t phase = (pixels + w.stride_width - 1) / w.stride_width;
  return {phase, phase * w.stride_width, pixels};
}

/// One row of the patch: pixels [-pad_left, …) of input row `row`, zeros outside of the image. May
/// write up to 15 floats behind the row.
ST3FX_INLINE void pack_row(const TapsJob& job, const Patch& patch, int64_t channel, int64_t row,
                           float* to, float* line) {
  const Window& w = job.window;
  if (row < 0 || row >= w.height) return fill(to, 0, patch.row_floats);
  float* pixels = w.stride_width == 1 ? to : line;
  const int64_t left = w.pad_left < patch.pixels ? w.pad_left : patch.pixels;
  const int64_t inside = patch.pixels - left < w.width ? patch.pixels - left : w.width;
  for (int64_t i = 0; i < left; ++i) pixels[i] = 0;
  read_positions(job.image, channel, row * w.width, inside, pixels + left);
  for (int64_t i = left + inside; i < patch.row_floats; ++i) pixels[i] = 0;
  if (w.stride_width == 2) {
    for (int64_t i = 0; i < patch.phase_floats; ++i) {
      to[i] = line[2 * i];
      to[patch.phase_floats + i] = line[2 * i + 1];
    }
  } else if (w.stride_width > 2) {
    for (int64_t i = 0; i < patch.row_floats; ++i)
      to[i % w.stride_width * patch.phase_floats + i / w.stride_width] = line[i];
  }
}

/// One tap at every position of the tile, from the patch.
ST3FX_INLINE void pack_tap(const TapsJob& job, const float* origin, int64_t row_floats, float* to,
                           bool is_last) {
  const Window& w = job.window;
  const int64_t step = w.stride_height * row_floats;
  int64_t column = job.position % w.out_width;
  const float* from = origin;
  for (int64_t done = 0; done < job.valid; from += step, column = 0) {
    const int64_t left = job.valid - done, row = w.out_width - column;
    const int64_t n = left < row ? left : row;
    if (is_last && n == left) {
      copy_exactly(to + done, from + column, n);
    } else {
      copy(to + done, from + column, n);
    }
    done += n;
  }
  if (job.valid < job.width) fill(to + job.valid, 0, job.width - job.valid);
}

/// One pixel under each position: the tap is the image itself.
ST3FX_INLINE bool is_identity(const Window& w) {
  return w.kernel_height * w.kernel_width == 1 && w.stride_height == 1 && w.stride_width == 1 &&
         w.pad_top == 0 && w.pad_left == 0 && w.out_width == w.width && w.out_height == w.height;
}

static void pack_taps(const TapsJob& job) {
  const Window& w = job.window;
  float* to = job.taps;
  if (is_identity(w)) {
    for (int64_t c = job.channel_begin; c < job.channel_end; ++c, to += job.width) {
      for (int64_t done = 0; done < job.valid;) {
        const Stretch run = locate(job.image, c, job.position + done);
        const int64_t left = job.valid - done, n = left < run.length ? left : run.length;
        copy_exactly(to + done, run.at, n);
        done += n;
      }
      fill(to + job.valid, 0, job.width - job.valid);
    }
    return;
  }
  const Patch patch = patch_of(w);
  const int64_t first = job.position / w.out_width;
  const int64_t last = (job.position + job.valid - 1) / w.out_width;
  const int64_t top = first * w.stride_height - w.pad_top;
  const int64_t rows =
      (last - first) * w.stride_height + (w.kernel_height - 1) * w.dilation_height + 1;
  float* line = job.patch + rows * patch.row_floats + 16;
  for (int64_t c = job.channel_begin; c < job.channel_end; ++c) {
    for (int64_t r = 0; r < rows; ++r)
      pack_row(job, patch, c, top + r, job.patch + r * patch.row_floats, line);
    for (int64_t r = 0; r < w.kernel_height; ++r) {
      for (int64_t s = 0; s < w.kernel_width; ++s, to += job.width) {
        const int64_t shift = s * w.dilation_width;
        const float* origin = job.patch + r * w.dilation_height * patch.row_floats +
                              shift % w.stride_width * patch.phase_floats + shift / w.stride_width;
        const bool is_last = c + 1 == job.channel_end && r + 1 == w.kernel_height &&
                             s + 1 == w.kernel_width;
        pack_tap(job, origin, patch.row_floats, to, is_last);
      }
    }
  }
}

}  // namespace st3fx::ST3FX_ISA

// Reading and writing rows of pixels of an image in either layout. Included by the instruction-set
// files.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace st3fx::ST3FX_ISA {

constexpr int64_t kTilePositions = 112;

struct Stretch {
  const float* at;
  int64_t length;  ///< Positions that lie side by side from there.
};

/// Where position p of channel c lies.
ST3FX_INLINE Stretch locate(const Image& image, int64_t c, int64_t p) {
  if (!image.blocked) return {image.data + c * image.positions + p, image.positions - p};
  const int64_t first = p / kTilePositions * kTilePositions;
  const int64_t rest = (image.positions - first + 15) / 16 * 16;
  const int64_t width = rest < kTilePositions ? rest : kTilePositions;
  return {image.data + first * image.channels + c * width + (p - first), width - (p - first)};
}

/// Copies positions [p, p + n) of channel c, and up to 15 floats of anything behind them.
ST3FX_INLINE void read_positions(const Image& image, int64_t c, int64_t p, int64_t n, float* to) {
  const float* end = image.data + image.size;
  while (n > 0) {
    const Stretch run = locate(image, c, p);
    const int64_t length = n < run.length ? n : run.length;
    if (run.at + (length + 15) / 16 * 16 <= end) {
      copy(to, run.at, length);
    } else {
      copy_exactly(to, run.at, length);
    }
    p += length, to += length, n -= length;
  }
}

}  // namespace st3fx::ST3FX_ISA

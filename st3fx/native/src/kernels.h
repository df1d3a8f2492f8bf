// What an instruction set provides: the inner loops, as functions on plain memory.
//
// Nothing of the standard library here: the instruction-set files include it (see `vec.h`).
#pragma once

#include <cstdint>

#include "activation.h"
#include "cpu.h"

namespace st3fx {

/// Two sparse rows whose nonzeros stand in turn: see `row_pairs.h`.
struct RowPair {
  uint32_t begin;         ///< Index of the first nonzero.
  uint32_t common;        ///< Nonzeros that stand in turn, counted per row.
  uint32_t extra;         ///< Further nonzeros, all of them the first row's.
  int32_t first, second;  ///< Rows; `second` is -1 where a row is alone.
};

/// One tile of output positions, for some pairs of rows and one block of columns.
struct TileJob {
  const RowPair* pairs;
  int64_t pair_count;
  const float* values;
  const uint16_t* columns;
  const float* taps;      ///< Input at column 0; column j lies `j · width` floats further.
  int64_t width;          ///< Positions of the tile: a multiple of 16, at most 112.
  float* out;             ///< Row 0; row k lies `k · row_stride` floats further.
  const float* residual;  ///< As `out`, or null.
  int64_t row_stride;
  const float* bias;      ///< One for each row.
  bool first;             ///< Sums begin with bias and residual instead of going on from `out`.
  bool last;              ///< The activation follows.
  Activation activation;
};

/// How a window moves over an image.
struct Window {
  int64_t kernel_height, kernel_width;
  int64_t stride_height, stride_width;
  int64_t dilation_height, dilation_width;
  int64_t pad_top, pad_left;
  int64_t height, width;          ///< Of the input.
  int64_t out_height, out_width;
};

/// One image in memory. Position p of channel c, in the blocked layout, lies in tile p / 112.
struct Image {
  const float* data;
  int64_t channels, positions;
  int64_t size;  ///< Floats, with padding: nothing behind them is read.
  bool blocked;
};

/// The input of some channels as the taps of one output tile: for each channel, kernel row and kernel
/// column the input under it at each of the tile's positions.
struct TapsJob {
  Window window;
  Image image;
  int64_t channel_begin, channel_end;
  int64_t position, valid, width;  ///< The output tile: first position, positions, with padding.
  float* taps;                     ///< `width` floats for each tap.
  float* patch;                    ///< Working memory: `patch_floats(window)`.
};

struct Kernels {
  void (*sparse_tile)(const TileJob&);
  void (*pack_taps)(const TapsJob&);
};

/// The kernels of an instruction set; null for `scalar`, which has none.
const Kernels* kernels_of(Isa isa);

}  // namespace st3fx

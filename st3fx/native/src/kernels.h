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
  const float* taps;        ///< The input of a nonzero begins …
  const uint32_t* offsets;  ///< … at `taps + offsets[i]`, or where there are none
  const uint16_t* columns;  ///< at `taps + columns[i] · column_stride`.
  int64_t column_stride;
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

/// Positions that lie side by side both in an image and in a tile's working memory.
struct PixelRun {
  int64_t image_offset;    ///< Of the first one, in channel 0.
  int64_t channel_stride;  ///< In the image, at this place.
  int32_t tile_offset;
  int32_t count;
  bool may_overrun;  ///< Whether up to 15 floats behind it in the image may be overwritten.
};

/// The same, cut where a tile's groups of sixteen positions begin: pixels of one group.
struct PixelGroup {
  int64_t image_offset;    ///< Of the group's first position, were it one of them.
  int64_t channel_stride;
  int32_t tile_offset;     ///< A multiple of 16; groups of several pieces follow each other.
  int32_t lanes;           ///< A bit for each position that is one of them.
};

/// What one plane of one tile is packed of, as ranges of lists: two ways to say the same.
struct PlaneRuns {
  int32_t begin, end;              ///< Runs.
  int32_t group_begin, group_end;  ///< Groups.
};

/// Packs the input that a tile of outputs reads.
struct PackJob {
  const PixelRun* runs;
  const PixelGroup* groups;
  const PlaneRuns* planes;
  int64_t plane_count, plane_floats;  ///< Floats are a multiple of 16.
  int64_t stride;  ///< Of neighbours of a run in the image; `count` counts what is copied.
  const float* x;
  int64_t channel_begin, channel_end;
  int64_t channels;  ///< Of the image.
  int64_t margin;    ///< So many at either end of it may not have 32 floats of others beside them.
  float* taps;    ///< [channel][plane][plane_floats]
  float outside;  ///< Value of pixels outside of the image.
};

/// Moves rows of a tile between working memory and an image.
struct StageJob {
  const PixelRun* runs;
  int64_t run_count;
  int64_t row_begin, row_end;
  float* stage;
  int64_t stage_row;  ///< The row that the stage begins with; they are `width` apart.
  int64_t width;
  float* y;
  /// What follows the image's last position in channel 0, where the tile ends with it; else none.
  int64_t padding_offset, padding_count;
  int64_t padding_stride;  ///< From one channel to the next.
};

/// Every channel by itself: a depthwise convolution or a pool, of one tile of some channels. All
/// pointers are those of the first of these.
struct WindowJob {
  enum Kind { convolve, largest, average };
  Kind kind;
  const float* taps;
  int64_t channel_floats;
  int64_t rows, columns;        ///< Of the kernel.
  const uint32_t* tap_offsets;  ///< [row][column]
  /// A convolution by three columns: their taps stand side by side, 16 floats before the middle one
  /// may be read, and none but the outer two has a mask.
  bool three_columns;
  /// One for each column, or null where its taps never lie beside the image; at each position of
  /// the image −1, or 0 where they do.
  const int32_t* const* masks;
  int64_t channels;
  const float* weights;  ///< To convolve: [channel][row][column].
  const float* bias;     ///< To convolve: one for each channel.
  const float* scale;    ///< To average: one for each position of the image.
  int64_t position;      ///< Of the tile in the image, whose `masks` and `scale` these are.
  int64_t width;          ///< A multiple of 16.
  float* out;             ///< Channel c lies `c · row_stride` floats further.
  const float* residual;  ///< As `out`, or null.
  int64_t row_stride;
  Activation activation;
};

/// Pairs of sparse rows times one vector.
struct DotJob {
  const RowPair* pairs;
  int64_t pair_count;
  const float* values;
  const uint16_t* columns;
  const float* x;  ///< At column 0.
  const float* bias;
  float* y;
  bool first, last;  ///< As in `TileJob`.
  Activation activation;
};

struct Kernels {
  void (*sparse_tile)(const TileJob&);
  void (*sparse_dot)(const DotJob&);
  void (*window_tile)(const WindowJob&);
  void (*pack_taps)(const PackJob&);
  void (*gather_rows)(const StageJob&);   ///< From the image to working memory.
  void (*scatter_rows)(const StageJob&);  ///< From working memory to the image.
  /// y = activation(a + b), n floats; y may be a or b.
  void (*add)(const float* a, const float* b, float* y, int64_t n, const Activation&);
  /// y = x · factor
  void (*scale)(const float* x, float factor, float* y, int64_t n);
  float (*sum)(const float* x, int64_t n);
  /// to[column · to_stride + row] = from[row · from_stride + column]
  void (*transpose)(const float* from, int64_t from_stride, int64_t rows, int64_t columns,
                    float* to, int64_t to_stride);
  /// Multiply-adds from registers, so many rounds of them; the floating-point operations done.
  double (*multiply_adds)(int64_t rounds);
};

/// The kernels of an instruction set; null for `scalar`, which has none.
const Kernels* kernels_of(Isa isa);

}  // namespace st3fx

// What an instruction set provides for quantized operators: inner loops on plain memory.
//
// A *quad* is four consecutive channels of one position, uint8, in 32 bits. In memory quads lie as
// floats do in the blocked layout, so everything that moves floats moves quads too; pointers to
// them are pointers to float for that reason.
//
// Nothing of the standard library here: the instruction-set files include it (see `vec.h`).
#pragma once

#include <cstdint>

#include "activation.h"
#include "cpu.h"

namespace st3fx {

/// Four weights, one byte each, and where the quad begins that they multiply.
struct QuantBlock {
  uint32_t offset;
  int32_t weights;
};

/// How exact sums become bytes; see ops.md.
struct Requantize {
  int32_t zero_point = 0, minimum = 0, maximum = 255;
  /// Whether a product of sum and multiplier may leave 32 bits: it is limited first.
  bool wide = false;
  // With a residual:
  float sum_factor = 0, residual_factor = 0, offset = 0;
  int32_t sum_minimum = 0, sum_maximum = 255;
};

/// One tile of output positions, for some quads of sparse rows.
struct QuantTileJob {
  const QuantBlock* blocks;
  const uint32_t* row_start;  ///< Four rows for each quad, and the end.
  const uint8_t* shared;      ///< Whether the four rows of a quad read the same quads.
  int64_t quad_begin, quad_end;
  const float* taps;     ///< A block's input begins `offset · offset_bytes` bytes from here.
  int64_t offset_bytes;
  int64_t width;         ///< Positions of the tile: a multiple of 16.
  int64_t chunk;         ///< So many positions at a time, or fewer.
  float* out;            ///< Quad 0; quad k lies `k · row_stride` floats further.
  const float* residual; ///< As `out`, or null.
  int64_t row_stride;
  const int32_t* bias;       ///< One for each row.
  const float* multiplier;   ///< One for each row.
  const Requantize* requantize;
  /// Where sums become floats instead of bytes: one for each row and position,
  /// `sum · multiplier + real_bias`, the rows `width` floats apart; else null.
  float* real_out;
  const float* real_bias;
  Activation activation;
};

/// Every channel by itself: some quads of one tile. Pointers are those of the first quad.
struct QuantWindowJob {
  enum Kind { sum, largest };
  Kind kind;
  const float* taps;
  int64_t quad_floats;           ///< From one quad's packed input to the next one's.
  int64_t tap_count;
  const uint32_t* tap_offsets;   ///< In floats; a multiple of four of them where the kind is `sum`.
  bool threes;                   ///< Fours are three neighbours, and one with a weight of zero.
  int64_t quads;
  const int8_t* weights;         ///< [quad][tap / 4][channel][4], once more for each of `halves`.
  int64_t halves;                ///< Of weights, whose products are added.
  const int32_t* bias;           ///< [quad][4]
  const float* multiplier;       ///< [quad][4]
  const float* position_factor;  ///< In its place, one for each position, or null.
  int64_t width;                 ///< Positions: a multiple of 16.
  float* out;
  const float* residual;
  int64_t row_stride;
  const Requantize* requantize;
};

struct QuantKernels {
  /// What products subtract from every input, beside its zero point: bytes may be taken as signed.
  int32_t input_offset;
  /// Whether two products of neighbouring channels must fit into 16 bits: weights are split.
  bool needs_small_pairs;
  int64_t largest_chunk;  ///< Positions whose sums fit into registers.
  int64_t cache_bytes;    ///< So much of a tile's input is read at full speed: smaller chunks fit.
  void (*sparse_tile)(const QuantTileJob&);
  void (*window_tile)(const QuantWindowJob&);
  /// y = clamp(rint((a·a_factor + b·b_factor) + offset)), n bytes; y may be a or b.
  void (*add)(const uint8_t* a, const uint8_t* b, uint8_t* y, int64_t n, const Requantize&);
  /// y = clamp(rint(x / scale) + zero_point), n of them.
  void (*quantize)(const float* x, float scale, int32_t zero_point, uint8_t* y, int64_t n);
  /// n quads of the bytes of four channels.
  void (*to_quads)(const uint8_t* const channels[4], uint8_t* quads, int64_t n);
  /// y = (x − zero_point) · scale, n of them, every fourth byte of x.
  void (*dequantize)(const uint8_t* x, float scale, int32_t zero_point, float* y, int64_t n);
  /// sums[c] += each channel of n quads
  void (*sum_quads)(const float* x, int64_t n, int64_t sums[4]);
  /// y = clamp(rint(float((x − zero) · factor[c]) · scale) + zero_point) for n quads
  void (*scale_quads)(const float* x, int32_t x_zero_point, const int32_t factor[4], float scale,
                      float* y, int64_t n, const Requantize&);
  /// The least and the largest of n floats and zero.
  void (*range)(const float* x, int64_t n, float* least, float* largest);
};

const QuantKernels& quant_kernels_of(Isa isa);

}  // namespace st3fx

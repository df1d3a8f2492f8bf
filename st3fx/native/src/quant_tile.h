// The inner loops of quantized operators. Included by the instruction-set files `quant_*.cpp`.
#pragma once

#include "activate.h"
#include "quant.h"
#include "quant_vec.h"

namespace st3fx::ST3FX_ISA {

// Vectors of sums that fit into the registers. Where one instruction does all of a product, two rows
// run in turn, to hide its latency; where sums are added by themselves there is none to hide.
#if ST3FX_LANES == 16
constexpr int kSums = 7;
constexpr bool kTwoRows = true;
constexpr bool kSharesTaps = true;
#elif ST3FX_LANES == 8 && defined(__AVXVNNI__)
constexpr int kSums = 6;
constexpr bool kTwoRows = true;
constexpr bool kSharesTaps = false;
#elif ST3FX_LANES == 8
constexpr int kSums = 7;
constexpr bool kTwoRows = false;
constexpr bool kSharesTaps = false;
#elif defined(__ARM_FEATURE_DOTPROD)
constexpr int kSums = 7;
constexpr bool kTwoRows = true;
constexpr bool kSharesTaps = false;
#else
constexpr int kSums = 4;
constexpr bool kTwoRows = false;
constexpr bool kSharesTaps = false;
#endif

// Fewer positions at a time keep a tile's input in the first cache, and cost more for each block. With
// AVX2 on a Zen 3 that pays. On an Intel core it does not (Sapphire Rapids, ResNet-50, 90 % zeros:
// 1.10 times as long with AVX-512, 1.07 with AVX-VNNI): its second cache is fast enough.
#if ST3FX_LANES == 16 || defined(__AVXVNNI__)
constexpr int64_t kCacheBytes = 1024 * 1024;
#else
constexpr int64_t kCacheBytes = 24 * 1024;
#endif

#if defined(__ARM_FEATURE_DOTPROD)
constexpr int32_t kInputOffset = 128;
#else
constexpr int32_t kInputOffset = 0;
#endif

#if ST3FX_LANES == 8 && !defined(__AVXVNNI__)
constexpr bool kNeedsSmallPairs = true;
#else
constexpr bool kNeedsSmallPairs = false;
#endif

/// sums += a block
template <int S>
ST3FX_INLINE void add_block(IntVec* sums, const QuantBlock& block, const char* taps,
                            int64_t offset_bytes) {
  const IntVec weights = broadcast_int(block.weights);
  const char* x = taps + block.offset * offset_bytes;
#pragma GCC unroll 8
  for (int k = 0; k < S; ++k) sums[k] = dot(sums[k], load_bytes(x + k * 4 * kWidth), weights);
}

/// Sums of four rows that read the same quads, at vectors [from, from + S) of positions: each quad
/// is loaded once. Not inlined: a compiler that sees both halves at once keeps sums of the second in
/// registers, and no weights of the first.
template <int S, int All>
__attribute__((noinline)) static void sum_together(IntVec (*sums)[All], int from,
                                                   const QuantTileJob& job, int64_t quad,
                                                   const char* taps) {
  const QuantBlock* rows[4];
  IntVec own[4][S];
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) {
    rows[r] = job.blocks + job.row_start[4 * quad + r];
#pragma GCC unroll 8
    for (int k = 0; k < S; ++k) own[r][k] = broadcast_int(job.bias[4 * quad + r]);
  }
  taps += from * 4 * kWidth;
  for (int64_t i = 0, n = rows[1] - rows[0]; i < n; ++i) {
    const char* x = taps + rows[0][i].offset * job.offset_bytes;
    IntVec weights[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) weights[r] = broadcast_int(rows[r][i].weights);
#pragma GCC unroll 8
    for (int k = 0; k < S; ++k) {
      const Bytes bytes = load_bytes(x + k * 4 * kWidth);
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) own[r][k] = dot(own[r][k], bytes, weights[r]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r)
#pragma GCC unroll 8
    for (int k = 0; k < S; ++k) sums[r][from + k] = own[r][k];
}

/// The same as `sum_rows`, of rows that read the same quads. The sums of four rows at all positions
/// do not fit into registers.
template <int S>
ST3FX_INLINE void sum_shared_rows(IntVec (*sums)[S], const QuantTileJob& job, int64_t quad,
                                  const char* taps) {
  constexpr int half = (S + 1) / 2;
  sum_together<half, S>(sums, 0, job, quad, taps);
  if constexpr (S > 1) sum_together<S - half, S>(sums, half, job, quad, taps);
}

/// Sums of four rows at S vectors of positions.
template <int S>
ST3FX_INLINE void sum_rows(IntVec (*sums)[S], const QuantTileJob& job, int64_t quad,
                           const char* taps) {
  const uint32_t* start = job.row_start + 4 * quad;
  const int32_t* bias = job.bias + 4 * quad;
  constexpr int step = kTwoRows ? 2 : 1;
#pragma GCC unroll 4
  for (int r = 0; r < 4; r += step) {
    IntVec first[S], second[S];
#pragma GCC unroll 8
    for (int k = 0; k < S; ++k) {
      first[k] = broadcast_int(bias[r]);
      second[k] = broadcast_int(bias[r + step - 1]);
    }
    const QuantBlock* a = job.blocks + start[r];
    const QuantBlock* a_end = job.blocks + start[r + 1];
    if (kTwoRows) {
      const QuantBlock* b = a_end;
      const QuantBlock* b_end = job.blocks + start[r + 2];
      const int64_t common = a_end - a < b_end - b ? a_end - a : b_end - b;
      for (int64_t i = 0; i < common; ++i) {
        add_block<S>(first, a[i], taps, job.offset_bytes);
        add_block<S>(second, b[i], taps, job.offset_bytes);
      }
      for (b += common; b < b_end; ++b) add_block<S>(second, *b, taps, job.offset_bytes);
      a += common;
    }
    for (; a < a_end; ++a) add_block<S>(first, *a, taps, job.offset_bytes);
#pragma GCC unroll 8
    for (int k = 0; k < S; ++k) {
      sums[r][k] = first[k];
      if (kTwoRows) sums[r + step - 1][k] = second[k];
    }
  }
}

/// rint(sums · multiplier), before the zero point.
ST3FX_INLINE IntVec scaled(IntVec sums, Vec multiplier, bool wide) {
  Vec product = to_float(sums) * multiplier;
  if (wide) product = minimum(maximum(product, broadcast(-1e9F)), broadcast(1e9F));
  return to_int(product);
}

/// The sum of rint(product), as a byte, and one of the residual: still to be clamped.
ST3FX_INLINE IntVec with_residual(Vec product, IntVec residual, const Requantize& how) {
  // Bounds are integers: it makes no difference that they come before rounding. Adding 1.5·2²³
  // rounds to an integer, which stays exact when the zero point is added.
  constexpr float kRounds = 12582912.0F;
  const auto zero = static_cast<float>(how.zero_point);
  product = maximum(product, broadcast(static_cast<float>(how.minimum) - zero));
  product = minimum(product, broadcast(static_cast<float>(how.maximum) - zero));
  const Vec q = (product + broadcast(kRounds)) - broadcast(kRounds - zero);
  return to_int(q * broadcast(how.sum_factor) + to_float(residual) * broadcast(how.residual_factor) +
                broadcast(how.offset));
}

ST3FX_INLINE Bytes clamp_bytes(Bytes bytes, int32_t minimum, int32_t maximum) {
  return smaller(larger(bytes, broadcast_byte(minimum)), broadcast_byte(maximum));
}

/// Sums of four rows as floats.
template <int S>
ST3FX_INLINE void store_real(const IntVec (*sums)[S], const Vec* multiplier,
                             const QuantTileJob& job, int64_t quad, int64_t at) {
  for (int r = 0; r < 4; ++r) {
    const Vec bias = broadcast(job.real_bias[4 * quad + r]);
    float* out = job.real_out + (4 * quad + r) * job.width + at;
    for (int k = 0; k < S; ++k)
      store(out + k * kWidth, activate(to_float(sums[r][k]) * multiplier[r] + bias,
                                       job.activation));
  }
}

// A copy of `Requantize` in the two that follow, which what they store cannot change: so it stays
// in registers. They are loops, because the sums do not.

/// Sums of four rows as bytes.
template <int S>
ST3FX_INLINE void store_quads(const IntVec (*sums)[S], const Vec* multiplier, const Requantize how,
                              float* out) {
#pragma GCC unroll 1
  for (int k = 0; k < S; ++k) {
    IntVec q[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) q[r] = scaled(sums[r][k], multiplier[r], how.wide);
    store_bytes(out + k * kWidth,
                clamp_bytes(pack_rows(q, how.zero_point), how.minimum, how.maximum));
  }
}

/// Sums of four rows, as bytes, added to those of the residual.
template <int S>
ST3FX_INLINE void store_quads_beside(const IntVec (*sums)[S], const Vec* multiplier,
                                     const Requantize how, const float* residual, float* out) {
#pragma GCC unroll 1
  for (int k = 0; k < S; ++k) {
    IntVec q[4];
    const Bytes beside = load_bytes(residual + k * kWidth);
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r)
      q[r] = with_residual(to_float(sums[r][k]) * multiplier[r], byte_of_lanes(beside, r), how);
    store_bytes(out + k * kWidth, clamp_bytes(pack_rows(q, 0), how.sum_minimum, how.sum_maximum));
  }
}

/// One quad of rows at S vectors of positions from `at` on.
template <int S>
ST3FX_INLINE void quad_tile(const QuantTileJob& job, int64_t quad, int64_t at) {
  IntVec sums[4][S];
  const char* taps = reinterpret_cast<const char*>(job.taps) + 4 * at;
  if (kSharesTaps && job.shared[quad])
    sum_shared_rows<S>(sums, job, quad, taps);
  else
    sum_rows<S>(sums, job, quad, taps);
  Vec multiplier[4];
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) multiplier[r] = broadcast(job.multiplier[4 * quad + r]);
  const int64_t row = quad * job.row_stride + at;
  if (job.real_out)
    store_real<S>(sums, multiplier, job, quad, at);
  else if (job.residual)
    store_quads_beside<S>(sums, multiplier, *job.requantize, job.residual + row, job.out + row);
  else
    store_quads<S>(sums, multiplier, *job.requantize, job.out + row);
}

template <int S>
static void quads_tile(const QuantTileJob& job, int64_t at) {
  for (int64_t quad = job.quad_begin; quad < job.quad_end; ++quad) quad_tile<S>(job, quad, at);
}

static void sparse_quads(const QuantTileJob& job) {
  const int64_t vectors = job.width / kWidth;
  int64_t most = job.chunk / kWidth;
  most = most < 1 ? 1 : most > kSums ? kSums : most;
  const int64_t chunks = (vectors + most - 1) / most;
  for (int64_t i = 0; i < chunks; ++i) {
    const int64_t begin = vectors * i / chunks, size = vectors * (i + 1) / chunks - begin;
    const int64_t at = begin * kWidth;
    switch (size) {
      case 1: quads_tile<1>(job, at); break;
      case 2: quads_tile<2>(job, at); break;
      case 3: quads_tile<3>(job, at); break;
      case 4: quads_tile<4>(job, at); break;
#if ST3FX_LANES > 4 || defined(__ARM_FEATURE_DOTPROD)
      case 5: quads_tile<5>(job, at); break;
      case 6: quads_tile<6>(job, at); break;
      case 7: quads_tile<(kSums < 7 ? 1 : 7)>(job, at); break;
#endif
      default: break;
    }
  }
}

/// The four taps of each channel side by side, times their weights, at one vector of positions:
/// `sums[j]` has position j of each 128 bits.
ST3FX_INLINE void sum_window(IntVec* sums, const QuantWindowJob& job, int64_t quad, int64_t at) {
  const float* taps = job.taps + quad * job.quad_floats + at;
  const int64_t fours = job.tap_count / 4;
  const int8_t* weights = job.weights + quad * 16 * fours * job.halves;
  const IntVec bias = repeat(job.bias + 4 * quad);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) sums[j] = bias;
  for (int64_t i = 0; i < fours; ++i) {
    Bytes x[4], y[4];
#pragma GCC unroll 4
    for (int t = 0; t < 4; ++t) x[t] = load_bytes(taps + job.tap_offsets[4 * i + t]);
    interleave(x, y);
    for (int64_t half = 0; half < job.halves; ++half) {
      const IntVec w = repeat(weights + 16 * (half * fours + i));
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) sums[j] = dot(sums[j], y[j], w);
    }
  }
}

/// The same where each four is three neighbours. Four positions of a channel side by side are the
/// taps of two outputs: the second one's weights are the first one's a tap later.
ST3FX_INLINE void sum_threes(IntVec* sums, const QuantWindowJob& job, int64_t quad, int64_t at) {
  const float* taps = job.taps + quad * job.quad_floats + at;
  const int64_t rows = job.tap_count / 4;
  const int8_t* weights = job.weights + quad * 16 * rows;
  const IntVec bias = repeat(job.bias + 4 * quad);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) sums[j] = bias;
  for (int64_t r = 0; r < rows; ++r) {
    const IntVec own = repeat(weights + 16 * r), next = own << 8;
    const float* from = taps + job.tap_offsets[4 * r];
#pragma GCC unroll 2
    for (int j = 0; j < 4; j += 2) {
      const Bytes x = by_channel(load_bytes(from + j));
      sums[j] = dot(sums[j], x, own);
      sums[j + 1] = dot(sums[j + 1], x, next);
    }
  }
}

/// The factor of position j of each 128 bits, in all its lanes.
ST3FX_INLINE Vec factor_of_position(const float* factors, int j) {
  Vec v;
  for (int i = 0; i < kWidth; ++i) v[i] = factors[i / 4 * 4 + j];
  return v;
}

static void sum_windows(const QuantWindowJob& job) {
  const Requantize how = *job.requantize;
  for (int64_t quad = 0; quad < job.quads; ++quad) {
    const Vec multiplier = (Vec)repeat(job.multiplier + 4 * quad);
    float* out = job.out + quad * job.row_stride;
    const float* residual = job.residual ? job.residual + quad * job.row_stride : nullptr;
    for (int64_t at = 0; at < job.width; at += kWidth) {
      IntVec q[4];
      if (job.threes) sum_threes(q, job, quad, at);
      else sum_window(q, job, quad, at);
      Vec factor[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j)
        factor[j] = job.position_factor ? factor_of_position(job.position_factor + at, j)
                                        : multiplier;
      if (!residual) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) q[j] = scaled(q[j], factor[j], how.wide);
        store_bytes(out + at,
                    clamp_bytes(pack_positions(q, how.zero_point), how.minimum, how.maximum));
        continue;
      }
      const Bytes x[4] = {load_bytes(residual + at), {}, {}, {}};
      Bytes beside[4];
      interleave(x, beside);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j)
        q[j] = with_residual(to_float(q[j]) * factor[j], (IntVec)beside[j], how);
      store_bytes(out + at, clamp_bytes(pack_positions(q, 0), how.sum_minimum, how.sum_maximum));
    }
  }
}

static void largest_in_windows(const QuantWindowJob& job) {
  for (int64_t quad = 0; quad < job.quads; ++quad) {
    const float* taps = job.taps + quad * job.quad_floats;
    for (int64_t at = 0; at < job.width; at += kWidth) {
      Bytes found = {};
      for (int64_t t = 0; t < job.tap_count; ++t)
        found = larger(found, load_bytes(taps + at + job.tap_offsets[t]));
      store_bytes(job.out + quad * job.row_stride + at, found);
    }
  }
}

static void quant_windows(const QuantWindowJob& job) {
  job.kind == QuantWindowJob::sum ? sum_windows(job) : largest_in_windows(job);
}

// What follows is one number at a time, in a form that compilers make vectors of.

/// clamp(rint(x)) for finite x: adding 1.5·2²³ rounds to an integer, which the low bits then hold.
ST3FX_INLINE int32_t rounded(float x, int32_t minimum, int32_t maximum) {
  x = x > -65536.0F ? x : -65536.0F;
  x = x < 65536.0F ? x : 65536.0F;
  x += 12582912.0F;
  int32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  bits -= 0x4B400000;
  bits = bits > minimum ? bits : minimum;
  return bits < maximum ? bits : maximum;
}

static void add_bytes(const uint8_t* a, const uint8_t* b, uint8_t* y, int64_t n,
                      const Requantize& given) {
  const Requantize how = given;
  for (int64_t i = 0; i < n; ++i) {
    const float sum = static_cast<float>(a[i]) * how.sum_factor +
                      static_cast<float>(b[i]) * how.residual_factor + how.offset;
    y[i] = static_cast<uint8_t>(rounded(sum, how.sum_minimum, how.sum_maximum));
  }
}

static void quantize(const float* x, float scale, int32_t zero_point, uint8_t* y, int64_t n) {
  const int32_t minimum = -zero_point, maximum = 255 - zero_point;
  for (int64_t i = 0; i < n; ++i)
    y[i] = static_cast<uint8_t>(rounded(x[i] / scale, minimum, maximum) + zero_point);
}

static void to_quads(const uint8_t* const channels[4], uint8_t* quads, int64_t n) {
  const uint8_t *a = channels[0], *b = channels[1], *c = channels[2], *d = channels[3];
  for (int64_t i = 0; i < n; ++i) {
    quads[4 * i] = a[i], quads[4 * i + 1] = b[i];
    quads[4 * i + 2] = c[i], quads[4 * i + 3] = d[i];
  }
}

static void dequantize(const uint8_t* x, float scale, int32_t zero_point, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = static_cast<float>(x[4 * i] - zero_point) * scale;
}

static void sum_quads(const float* x, int64_t n, int64_t sums[4]) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(x);
  constexpr int64_t kPiece = 1 << 20;  // whose sums fit into 32 bits
  for (int64_t begin = 0; begin < n; begin += kPiece) {
    const int64_t end = begin + kPiece < n ? begin + kPiece : n;
    uint32_t a = 0, b = 0, c = 0, d = 0;
    for (int64_t i = begin; i < end; ++i) {
      a += bytes[4 * i], b += bytes[4 * i + 1];
      c += bytes[4 * i + 2], d += bytes[4 * i + 3];
    }
    sums[0] += a, sums[1] += b, sums[2] += c, sums[3] += d;
  }
}

static void scale_quads(const float* x, int32_t x_zero_point, const int32_t factor[4], float scale,
                        float* y, int64_t n, const Requantize& given) {
  const Requantize how = given;
  const auto* from = reinterpret_cast<const uint8_t*>(x);
  auto* to = reinterpret_cast<uint8_t*>(y);
  const int32_t minimum = how.minimum - how.zero_point, maximum = how.maximum - how.zero_point;
  for (int64_t i = 0; i < n; ++i)
    for (int c = 0; c < 4; ++c) {
      const float product = static_cast<float>((from[4 * i + c] - x_zero_point) * factor[c]);
      const int32_t q = rounded(product * scale, minimum, maximum);
      to[4 * i + c] = static_cast<uint8_t>(q + how.zero_point);
    }
}

static void range(const float* x, int64_t n, float* least, float* largest) {
  float low = 0, high = 0;
  for (int64_t i = 0; i < n; ++i) {
    low = x[i] < low ? x[i] : low;
    high = x[i] > high ? x[i] : high;
  }
  *least = low, *largest = high;
}

extern const QuantKernels quant_kernels;
const QuantKernels quant_kernels{
    kInputOffset, kNeedsSmallPairs, kSums * kWidth, kCacheBytes, sparse_quads, quant_windows,
    add_bytes, quantize, to_quads, dequantize, sum_quads, scale_quads, range};

}  // namespace st3fx::ST3FX_ISA

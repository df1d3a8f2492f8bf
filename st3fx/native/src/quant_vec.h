// Vectors of quads (see `quant.h`), as wide as the file's flags allow: the only place of the
// quantized kernels that knows an architecture. Products and sums of floats stay apart: these files
// are compiled without contraction, so that all of them give the same bits.
#pragma once

#include "vec.h"

#if defined(__x86_64__)
#if !defined(__clang__)
// GCC's own headers have vectors without a value in them, which it then warns of.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace st3fx::ST3FX_ISA {

typedef uint8_t Bytes __attribute__((vector_size(4 * ST3FX_LANES)));

ST3FX_INLINE Bytes load_bytes(const void* from) {
  Bytes v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}
ST3FX_INLINE void store_bytes(void* to, Bytes v) { __builtin_memcpy(to, &v, sizeof v); }
ST3FX_INLINE IntVec broadcast_int(int32_t x) { return x - IntVec{}; }
ST3FX_INLINE Vec to_float(IntVec v) { return __builtin_convertvector(v, Vec); }
ST3FX_INLINE IntVec larger(IntVec a, IntVec b) { return a > b ? a : b; }
ST3FX_INLINE IntVec smaller(IntVec a, IntVec b) { return a < b ? a : b; }
ST3FX_INLINE Bytes larger(Bytes a, Bytes b) { return a > b ? a : b; }
ST3FX_INLINE Bytes smaller(Bytes a, Bytes b) { return a < b ? a : b; }
ST3FX_INLINE Bytes broadcast_byte(int32_t x) { return static_cast<uint8_t>(x) - Bytes{}; }

/// Byte r of every lane.
ST3FX_INLINE IntVec byte_of_lanes(Bytes v, int r) {
#if ST3FX_LANES == 16
  if (r == 1 || r == 2) {  // one instruction, by another unit than the arithmetic around it
    const __m512i from = _mm512_set1_epi32(static_cast<int32_t>(0x80808000U) | r);
    const __m512i order = _mm512_add_epi32(_mm512_set4_epi32(12, 8, 4, 0), from);
    return (IntVec)_mm512_shuffle_epi8((__m512i)v, order);
  }
#endif
  typedef uint32_t Lanes __attribute__((vector_size(4 * ST3FX_LANES)));
  const Lanes shifted = (Lanes)v >> 8 * r;
  return (IntVec)(r == 3 ? shifted : shifted & 255U);
}

#if ST3FX_LANES == 16
/// Sixteen bytes in every 128 bits.
ST3FX_INLINE IntVec repeat(const void* from) {
  return (IntVec)_mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(from)));
}
ST3FX_INLINE __m512i bits(IntVec v) { return (__m512i)v; }
ST3FX_INLINE __m512i bits(Bytes v) { return (__m512i)v; }
ST3FX_INLINE IntVec to_int(Vec v) { return (IntVec)_mm512_cvtps_epi32((__m512)v); }
/// sums += the four products of each lane
ST3FX_INLINE IntVec dot(IntVec sums, Bytes x, IntVec weights) {
  return (IntVec)_mm512_dpbusd_epi32(bits(sums), bits(x), bits(weights));
}
/// Bytes of four rows, clamped, as quads: byte r of a lane is row r's.
ST3FX_INLINE Bytes pack_rows(const IntVec* q, int32_t zero_point) {
  const __m512i zero = _mm512_set1_epi16(static_cast<int16_t>(zero_point));
  const __m512i even = _mm512_adds_epi16(_mm512_packs_epi32(bits(q[0]), bits(q[2])), zero);
  const __m512i odd = _mm512_adds_epi16(_mm512_packs_epi32(bits(q[1]), bits(q[3])), zero);
  const __m512i order = _mm512_set4_epi32(0x0f070b03, 0x0e060a02, 0x0d050901, 0x0c040800);
  return (Bytes)_mm512_shuffle_epi8(_mm512_packus_epi16(even, odd), order);
}
/// Bytes of four positions in each 128 bits, clamped, one after the other.
ST3FX_INLINE Bytes pack_positions(const IntVec* q, int32_t zero_point) {
  const __m512i zero = _mm512_set1_epi16(static_cast<int16_t>(zero_point));
  const __m512i first = _mm512_adds_epi16(_mm512_packs_epi32(bits(q[0]), bits(q[1])), zero);
  const __m512i second = _mm512_adds_epi16(_mm512_packs_epi32(bits(q[2]), bits(q[3])), zero);
  return (Bytes)_mm512_packus_epi16(first, second);
}
/// x[0] to x[3] become: byte t of lane l of y[j] is byte j + 4·… of x[t]; 128 bits by themselves.
ST3FX_INLINE void interleave(const Bytes* x, Bytes* y) {
  const __m512i ab = _mm512_unpacklo_epi8(bits(x[0]), bits(x[1]));
  const __m512i AB = _mm512_unpackhi_epi8(bits(x[0]), bits(x[1]));
  const __m512i cd = _mm512_unpacklo_epi8(bits(x[2]), bits(x[3]));
  const __m512i CD = _mm512_unpackhi_epi8(bits(x[2]), bits(x[3]));
  y[0] = (Bytes)_mm512_unpacklo_epi16(ab, cd), y[1] = (Bytes)_mm512_unpackhi_epi16(ab, cd);
  y[2] = (Bytes)_mm512_unpacklo_epi16(AB, CD), y[3] = (Bytes)_mm512_unpackhi_epi16(AB, CD);
}
/// Four positions of a quad in each 128 bits become four channels of four positions.
ST3FX_INLINE Bytes by_channel(Bytes x) {
  const __m512i order = _mm512_set4_epi32(0x0f0b0703, 0x0e0a0602, 0x0d090501, 0x0c080400);
  return (Bytes)_mm512_shuffle_epi8(bits(x), order);
}
#elif ST3FX_LANES == 8
ST3FX_INLINE IntVec repeat(const void* from) {
  return (IntVec)_mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(from)));
}
ST3FX_INLINE __m256i bits(IntVec v) { return (__m256i)v; }
ST3FX_INLINE __m256i bits(Bytes v) { return (__m256i)v; }
ST3FX_INLINE IntVec to_int(Vec v) { return (IntVec)_mm256_cvtps_epi32((__m256)v); }
ST3FX_INLINE IntVec dot(IntVec sums, Bytes x, IntVec weights) {
#if defined(__AVXVNNI__)
  return (IntVec)_mm256_dpbusd_avx_epi32(bits(sums), bits(x), bits(weights));
#else
  // Exact, because no pair of products leaves 16 bits: `needs_small_pairs`.
  const __m256i pairs = _mm256_maddubs_epi16(bits(x), bits(weights));
  return sums + (IntVec)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#endif
}
ST3FX_INLINE Bytes pack_rows(const IntVec* q, int32_t zero_point) {
  const __m256i zero = _mm256_set1_epi16(static_cast<int16_t>(zero_point));
  const __m256i even = _mm256_adds_epi16(_mm256_packs_epi32(bits(q[0]), bits(q[2])), zero);
  const __m256i odd = _mm256_adds_epi16(_mm256_packs_epi32(bits(q[1]), bits(q[3])), zero);
  const __m256i order = _mm256_setr_epi32(0x0c040800, 0x0d050901, 0x0e060a02, 0x0f070b03,
                                          0x0c040800, 0x0d050901, 0x0e060a02, 0x0f070b03);
  return (Bytes)_mm256_shuffle_epi8(_mm256_packus_epi16(even, odd), order);
}
ST3FX_INLINE Bytes pack_positions(const IntVec* q, int32_t zero_point) {
  const __m256i zero = _mm256_set1_epi16(static_cast<int16_t>(zero_point));
  const __m256i first = _mm256_adds_epi16(_mm256_packs_epi32(bits(q[0]), bits(q[1])), zero);
  const __m256i second = _mm256_adds_epi16(_mm256_packs_epi32(bits(q[2]), bits(q[3])), zero);
  return (Bytes)_mm256_packus_epi16(first, second);
}
ST3FX_INLINE void interleave(const Bytes* x, Bytes* y) {
  const __m256i ab = _mm256_unpacklo_epi8(bits(x[0]), bits(x[1]));
  const __m256i AB = _mm256_unpackhi_epi8(bits(x[0]), bits(x[1]));
  const __m256i cd = _mm256_unpacklo_epi8(bits(x[2]), bits(x[3]));
  const __m256i CD = _mm256_unpackhi_epi8(bits(x[2]), bits(x[3]));
  y[0] = (Bytes)_mm256_unpacklo_epi16(ab, cd), y[1] = (Bytes)_mm256_unpackhi_epi16(ab, cd);
  y[2] = (Bytes)_mm256_unpacklo_epi16(AB, CD), y[3] = (Bytes)_mm256_unpackhi_epi16(AB, CD);
}
ST3FX_INLINE Bytes by_channel(Bytes x) {
  const __m256i order = _mm256_setr_epi32(0x0c080400, 0x0d090501, 0x0e0a0602, 0x0f0b0703,
                                          0x0c080400, 0x0d090501, 0x0e0a0602, 0x0f0b0703);
  return (Bytes)_mm256_shuffle_epi8(bits(x), order);
}
#else
ST3FX_INLINE IntVec repeat(const void* from) {
  IntVec v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}
#if defined(__x86_64__)
ST3FX_INLINE __m128i bits(IntVec v) { return (__m128i)v; }
ST3FX_INLINE __m128i bits(Bytes v) { return (__m128i)v; }
ST3FX_INLINE IntVec to_int(Vec v) { return (IntVec)_mm_cvtps_epi32((__m128)v); }
ST3FX_INLINE IntVec dot(IntVec sums, Bytes x, IntVec weights) {
  // Sixteen bits of each: the signs of the weights come from a comparison.
  const __m128i none = _mm_setzero_si128(), w = bits(weights);
  const __m128i wide = _mm_unpacklo_epi8(w, _mm_cmpgt_epi8(none, w));
  const __m128i low = _mm_madd_epi16(_mm_unpacklo_epi8(bits(x), none), wide);
  const __m128i wide_high = _mm_unpackhi_epi8(w, _mm_cmpgt_epi8(none, w));
  const __m128i high = _mm_madd_epi16(_mm_unpackhi_epi8(bits(x), none), wide_high);
  const __m128 even = _mm_shuffle_ps((__m128)low, (__m128)high, _MM_SHUFFLE(2, 0, 2, 0));
  const __m128 odd = _mm_shuffle_ps((__m128)low, (__m128)high, _MM_SHUFFLE(3, 1, 3, 1));
  return sums + (IntVec)even + (IntVec)odd;
}
#else
typedef int8_t SignedBytes __attribute__((vector_size(16)));
ST3FX_INLINE IntVec to_int(Vec v) { return (IntVec)vcvtnq_s32_f32((float32x4_t)v); }
ST3FX_INLINE IntVec dot(IntVec sums, Bytes x, IntVec weights) {
#if defined(__ARM_FEATURE_DOTPROD)
  const int8x16_t shifted = (int8x16_t)(x ^ static_cast<uint8_t>(128));  // `input_offset`
  return (IntVec)vdotq_s32((int32x4_t)sums, shifted, (int8x16_t)weights);
#else
  const int16x8_t low = (int16x8_t)vmovl_u8(vget_low_u8((uint8x16_t)x));
  const int16x8_t high = (int16x8_t)vmovl_u8(vget_high_u8((uint8x16_t)x));
  const int8x16_t w = (int8x16_t)weights;
  const int16x8_t w_low = vmovl_s8(vget_low_s8(w)), w_high = vmovl_s8(vget_high_s8(w));
  const int32x4_t a = vmull_s16(vget_low_s16(low), vget_low_s16(w_low));
  const int32x4_t b = vmull_s16(vget_high_s16(low), vget_high_s16(w_low));
  const int32x4_t c = vmull_s16(vget_low_s16(high), vget_low_s16(w_high));
  const int32x4_t d = vmull_s16(vget_high_s16(high), vget_high_s16(w_high));
  return sums + (IntVec)vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d));
#endif
}
#endif
#if defined(__x86_64__)
ST3FX_INLINE __m128i narrow(IntVec a, IntVec b, int32_t zero_point) {
  return _mm_adds_epi16(_mm_packs_epi32(bits(a), bits(b)),
                        _mm_set1_epi16(static_cast<int16_t>(zero_point)));
}
ST3FX_INLINE Bytes pack_positions(const IntVec* q, int32_t zero_point) {
  return (Bytes)_mm_packus_epi16(narrow(q[0], q[1], zero_point), narrow(q[2], q[3], zero_point));
}
ST3FX_INLINE Bytes by_channel(Bytes x) {
  const __m128i mixed = _mm_unpacklo_epi8(bits(x), _mm_srli_si128(bits(x), 8));  // 0 and 2, 1 and 3
  return (Bytes)_mm_unpacklo_epi8(mixed, _mm_srli_si128(mixed, 8));
}
ST3FX_INLINE Bytes pack_rows(const IntVec* q, int32_t zero_point) {
  return by_channel(pack_positions(q, zero_point));  // four positions of each row
}
ST3FX_INLINE void interleave(const Bytes* x, Bytes* y) {
  const __m128i ab = _mm_unpacklo_epi8(bits(x[0]), bits(x[1]));
  const __m128i AB = _mm_unpackhi_epi8(bits(x[0]), bits(x[1]));
  const __m128i cd = _mm_unpacklo_epi8(bits(x[2]), bits(x[3]));
  const __m128i CD = _mm_unpackhi_epi8(bits(x[2]), bits(x[3]));
  y[0] = (Bytes)_mm_unpacklo_epi16(ab, cd), y[1] = (Bytes)_mm_unpackhi_epi16(ab, cd);
  y[2] = (Bytes)_mm_unpacklo_epi16(AB, CD), y[3] = (Bytes)_mm_unpackhi_epi16(AB, CD);
}
#else
ST3FX_INLINE uint16x8_t narrow(IntVec a, IntVec b, int32_t zero_point) {
  const int16x8_t both = vcombine_s16(vqmovn_s32((int32x4_t)a), vqmovn_s32((int32x4_t)b));
  return (uint16x8_t)vqaddq_s16(both, vdupq_n_s16(static_cast<int16_t>(zero_point)));
}
ST3FX_INLINE Bytes pack_positions(const IntVec* q, int32_t zero_point) {
  const int16x8_t low = (int16x8_t)narrow(q[0], q[1], zero_point);
  const int16x8_t high = (int16x8_t)narrow(q[2], q[3], zero_point);
  return (Bytes)vcombine_u8(vqmovun_s16(low), vqmovun_s16(high));
}
ST3FX_INLINE Bytes by_channel(Bytes x) {
  const uint8x16_t from = (uint8x16_t)x, mixed = vzip1q_u8(from, vextq_u8(from, from, 8));
  return (Bytes)vzip1q_u8(mixed, vextq_u8(mixed, mixed, 8));
}
ST3FX_INLINE Bytes pack_rows(const IntVec* q, int32_t zero_point) {
  return by_channel(pack_positions(q, zero_point));  // four positions of each row
}
ST3FX_INLINE void interleave(const Bytes* x, Bytes* y) {
  const uint8x16_t a = (uint8x16_t)x[0], b = (uint8x16_t)x[1];
  const uint8x16_t c = (uint8x16_t)x[2], d = (uint8x16_t)x[3];
  const uint16x8_t ab = (uint16x8_t)vzip1q_u8(a, b), AB = (uint16x8_t)vzip2q_u8(a, b);
  const uint16x8_t cd = (uint16x8_t)vzip1q_u8(c, d), CD = (uint16x8_t)vzip2q_u8(c, d);
  y[0] = (Bytes)vzip1q_u16(ab, cd), y[1] = (Bytes)vzip2q_u16(ab, cd);
  y[2] = (Bytes)vzip1q_u16(AB, CD), y[3] = (Bytes)vzip2q_u16(AB, CD);
}
#endif
#endif

}  // namespace st3fx::ST3FX_ISA

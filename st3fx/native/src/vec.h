// One vector of floats as wide as the instruction set that this file is compiled for.
//
// The compilers' own vector types do the work on every architecture; what differs is the width.
// Only the instruction-set files include this, each inside its own namespace (ST3FX_ISA), and
// nothing of the standard library's templates: a function that two files share could end up with
// instructions that the CPU does not have.
#pragma once

#include <cstdint>

#if defined(__AVX512F__)
#define ST3FX_LANES 16
#elif defined(__AVX2__)
#define ST3FX_LANES 8
#else
#define ST3FX_LANES 4  // NEON, SSE
#endif

#define ST3FX_MEMBER inline __attribute__((always_inline))
#define ST3FX_INLINE static ST3FX_MEMBER

namespace st3fx::ST3FX_ISA {

constexpr int kWidth = ST3FX_LANES;
constexpr int kStep = 16 / kWidth;  // vectors in sixteen floats

typedef float Vec __attribute__((vector_size(4 * ST3FX_LANES)));
typedef int32_t IntVec __attribute__((vector_size(4 * ST3FX_LANES)));

ST3FX_INLINE Vec load(const float* from) {
  Vec v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}
ST3FX_INLINE void store(float* to, Vec v) { __builtin_memcpy(to, &v, sizeof v); }
/// Has a cache line brought near that is needed soon.
ST3FX_INLINE void fetch(const float* from) { __builtin_prefetch(from); }
/// The same pointer, of which the compiler does not know where it came from: it adds a constant to
/// one register then, where an instruction that adds two would cost an Intel core twice as much.
ST3FX_INLINE const float* in_register(const float* pointer) {
  __asm__("" : "+r"(pointer));
  return pointer;
}
/// All lanes x. (x − 0 is x, bit for bit.)
ST3FX_INLINE Vec broadcast(float x) { return x - Vec{}; }
ST3FX_INLINE Vec maximum(Vec a, Vec b) { return a > b ? a : b; }
ST3FX_INLINE Vec minimum(Vec a, Vec b) { return a < b ? a : b; }

/// −1 in lanes [begin, end), 0 in the others.
ST3FX_INLINE IntVec lanes_between(int64_t begin, int64_t end) {
  IntVec lane;
  for (int i = 0; i < kWidth; ++i) lane[i] = i;
  return (lane >= static_cast<int32_t>(begin)) & (lane < static_cast<int32_t>(end));
}

/// Copies n floats, and up to 15 more behind them.
ST3FX_INLINE void copy(float* to, const float* from, int64_t n) {
  for (int64_t i = 0; i < n; i += 16)
    for (int j = 0; j < kStep; ++j) store(to + i + j * kWidth, load(from + i + j * kWidth));
}

/// Copies n floats and touches no others.
ST3FX_INLINE void copy_exactly(float* to, const float* from, int64_t n) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) copy(to + i, from + i, 16);
  if (n & 8) __builtin_memcpy(to + i, from + i, 32), i += 8;
  if (n & 4) __builtin_memcpy(to + i, from + i, 16), i += 4;
  if (n & 2) __builtin_memcpy(to + i, from + i, 8), i += 2;
  if (n & 1) to[i] = from[i];
}

/// Every second one of the 2·kWidth floats from there on.
ST3FX_INLINE Vec load_even(const float* from) {
#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
  const Vec a = load(from), b = load(from + kWidth);
#if ST3FX_LANES == 16
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
#elif ST3FX_LANES == 8
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
#else
  return __builtin_shufflevector(a, b, 0, 2, 4, 6);
#endif
#else
  Vec v;
  for (int i = 0; i < kWidth; ++i) v[i] = from[2 * i];
  return v;
#endif
}

/// The floats from one before `current` on, which follows `previous`.
ST3FX_INLINE Vec one_before(Vec previous, Vec current) {
#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
#if ST3FX_LANES == 16
  return __builtin_shufflevector(previous, current, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26,
                                 27, 28, 29, 30);
#elif ST3FX_LANES == 8
  return __builtin_shufflevector(previous, current, 7, 8, 9, 10, 11, 12, 13, 14);
#else
  return __builtin_shufflevector(previous, current, 3, 4, 5, 6);
#endif
#else
  Vec v;
  v[0] = previous[kWidth - 1];
  for (int i = 1; i < kWidth; ++i) v[i] = current[i - 1];
  return v;
#endif
}

/// The floats from one after the begin of `current` on, which `next` follows.
ST3FX_INLINE Vec one_after(Vec current, Vec next) {
#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
#if ST3FX_LANES == 16
  return __builtin_shufflevector(current, next, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15,
                                 16);
#elif ST3FX_LANES == 8
  return __builtin_shufflevector(current, next, 1, 2, 3, 4, 5, 6, 7, 8);
#else
  return __builtin_shufflevector(current, next, 1, 2, 3, 4);
#endif
#else
  Vec v;
  for (int i = 1; i < kWidth; ++i) v[i - 1] = current[i];
  v[kWidth - 1] = next[0];
  return v;
#endif
}

/// Four floats, whatever the width.
typedef float Quad __attribute__((vector_size(16)));

ST3FX_INLINE Quad load_quad(const float* from) {
  Quad v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

/// Quad rows of four floats become four columns.
ST3FX_INLINE void transpose_fours(const float* from, int64_t from_stride, float* to,
                                  int64_t to_stride) {
#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
  const Quad a = load_quad(from), b = load_quad(from + from_stride);
  const Quad c = load_quad(from + 2 * from_stride), d = load_quad(from + 3 * from_stride);
  const Quad ab = __builtin_shufflevector(a, b, 0, 4, 1, 5);
  const Quad AB = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Quad cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  const Quad CD = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  const Quad columns[4] = {
      __builtin_shufflevector(ab, cd, 0, 1, 4, 5), __builtin_shufflevector(ab, cd, 2, 3, 6, 7),
      __builtin_shufflevector(AB, CD, 0, 1, 4, 5), __builtin_shufflevector(AB, CD, 2, 3, 6, 7)};
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) __builtin_memcpy(to + i * to_stride, &columns[i], sizeof columns[i]);
#else
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) to[i * to_stride + j] = from[j * from_stride + i];
#endif
}

ST3FX_INLINE void fill(float* to, float x, int64_t n) {
  for (; n >= kWidth; n -= kWidth, to += kWidth) store(to, broadcast(x));
  for (; n > 0; --n) *to++ = x;
}

/// eˣ, to about one unit in the last place: x = n·ln 2 + r, |r| ≤ ln 2 / 2, and a polynomial in r
/// (the Taylor series of degree seven). Below −87 it gives a number under 2e-38, above 88 it grows
/// no more.
ST3FX_INLINE Vec exponential(Vec x) {
  x = minimum(maximum(x, broadcast(-87.0F)), broadcast(88.0F));
  const Vec shift = broadcast(12582912.0F);  // 1.5·2²³: adding it rounds to an integer
  const Vec rounded = x * broadcast(1.44269504F) + shift;
  const Vec n = rounded - shift;
  Vec r = x - n * broadcast(0.693145752F);  // ln 2 in two parts
  r = r - n * broadcast(1.42860677e-6F);
  Vec p = broadcast(1.0F / 5040);
  p = p * r + broadcast(1.0F / 720);
  p = p * r + broadcast(1.0F / 120);
  p = p * r + broadcast(1.0F / 24);
  p = p * r + broadcast(1.0F / 6);
  p = p * r + broadcast(0.5F);
  p = p * r + broadcast(1.0F);
  p = p * r + broadcast(1.0F);
  const IntVec power = (__builtin_convertvector(n, IntVec) + 127) << 23;
  Vec scale;
  __builtin_memcpy(&scale, &power, sizeof scale);
  return p * scale;
}

}  // namespace st3fx::ST3FX_ISA

// The kernels of latent.h, compiled once for each instruction set: define KERNELS, then include.
//
// Loops run over kLanes independent sums, which the compiler keeps in vectors of whatever width it
// has, and which are added up in one order; products and sums are never contracted. So every
// instruction set gives the same bits.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "latent.h"

namespace st3fx::latent {
namespace {

constexpr int kLanes = 64;

int32_t magnitude_bits(float value) {
  int32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits & 0x7fffffff;
}

void score(const float* weights, int64_t size, float scale, float* scores) {
  for (int64_t i = 0; i < size; i++) scores[i] = std::fabs(weights[i] / scale);
}

Tally count(const float* scores, int64_t size, Band band) {
  int32_t below[kLanes] = {}, upto[kLanes] = {}, largest[kLanes] = {};
  const auto take = [&](int lane, float score) {
    const int32_t bits = magnitude_bits(score);
    below[lane] += bits < band.low;
    upto[lane] += bits <= band.high;
    largest[lane] = std::max(largest[lane], bits);
  };
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes)
    for (int lane = 0; lane < kLanes; lane++) take(lane, scores[i + lane]);
  for (int lane = 0; i + lane < size; lane++) take(lane, scores[i + lane]);

  Tally tally;
  for (int lane = 0; lane < kLanes; lane++) {
    tally.below += below[lane];
    tally.inside += upto[lane] - below[lane];
    tally.largest = std::max(tally.largest, largest[lane]);
  }
  return tally;
}

int64_t collect(const float* scores, int64_t size, Band band, float* found) {
  constexpr int kGroup = 32;  // few groups have one, so most are passed over as a whole
  const auto width = static_cast<uint32_t>(band.high - band.low);
  const auto is_inside = [&](float score) {
    return static_cast<uint32_t>(magnitude_bits(score) - band.low) <= width;
  };
  float* end = found;
  const auto take = [&](float score) {
    if (is_inside(score)) *end++ = std::fabs(score);
  };
  int64_t i = 0;
  for (; i + kGroup <= size; i += kGroup) {
    int32_t any = 0;
    for (int k = 0; k < kGroup; k++) any |= is_inside(scores[i + k]);
    for (int k = 0; any && k < kGroup; k++) take(scores[i + k]);
  }
  for (; i < size; i++) take(scores[i]);
  return end - found;
}

/// The sum of all lanes, by halves.
float sum(float (&lanes)[kLanes]) {
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int lane = 0; lane < width; lane++) lanes[lane] += lanes[lane + width];
  return lanes[0];
}

/// c_k: 1.01 over the share of the channel's magnitude that is kept, and 0.01.
float rescale_factor(const float* weight, int64_t size, float threshold) {
  float total[kLanes] = {}, kept[kLanes] = {};
  const auto take = [&](int lane, float value) {
    const float magnitude = std::fabs(value);
    total[lane] += magnitude;
    kept[lane] += magnitude > threshold ? magnitude : 0.0f;
  };
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes)
    for (int lane = 0; lane < kLanes; lane++) take(lane, weight[i + lane]);
  for (int lane = 0; i + lane < size; lane++) take(lane, weight[i + lane]);

  const auto length = static_cast<float>(size);
  const float rho = (sum(kept) / length + 1e-6f) / (sum(total) / length + 1e-6f);
  return 1.01f / (rho + 0.01f);
}

void soften(const float* weight, int64_t size, float threshold, bool rescale, float* out) {
  const float factor = rescale ? rescale_factor(weight, size, threshold) : 1.0f;
  for (int64_t i = 0; i < size; i++) {
    const float shrunk = std::fabs(weight[i]) - threshold;
    const float scaled = std::copysign(shrunk * factor, weight[i]);
    out[i] = shrunk <= 0.0f ? 0.0f : scaled;  // NaN stays
  }
}

/// Keys of the hash: 2·kHalf numbers without a pattern (the finaliser of a multiplicative mixer).
constexpr int kHalf = 128;
struct Keys {
  uint32_t key[2 * kHalf];
  constexpr Keys() : key() {
    uint64_t state = 1;
    for (auto& each : key) {
      state = state * 6364136223846793005u + 1442695040888963407u;  // Knuth, MMIX
      each = static_cast<uint32_t>((state ^ (state >> 29)) >> 31);
    }
  }
};
constexpr Keys kKeys;

using Word = uint32_t __attribute__((may_alias, aligned(1)));

/// NH (Black et al., UMAC, 1999) of one block: Σ (m_i + k_i)(m_j + k_j), each sum modulo 2^32.
uint64_t hash_block(const Word* words) {
  constexpr int kWide = 16;
  uint64_t sums[kWide] = {};
  for (int i = 0; i < kHalf; i += kWide)
    for (int lane = 0; lane < kWide; lane++) {
      const int first = i + lane, second = first + kHalf;
      sums[lane] += static_cast<uint64_t>(words[first] + kKeys.key[first]) *
                    static_cast<uint64_t>(words[second] + kKeys.key[second]);
    }
  uint64_t result = 0;
  for (uint64_t each : sums) result += each;
  return result;
}

uint64_t digest(const uint8_t* bytes, int64_t size) {
  constexpr int64_t kBlock = 2 * kHalf * sizeof(uint32_t);
  auto hash = static_cast<uint64_t>(size);
  const auto take = [&](const uint8_t* block) {
    hash = hash * 0x9e3779b97f4a7c15u + hash_block(reinterpret_cast<const Word*>(block));
  };
  int64_t i = 0;
  for (; i + kBlock <= size; i += kBlock) take(bytes + i);
  if (i < size) {
    uint8_t rest[kBlock] = {};
    std::memcpy(rest, bytes + i, size - i);
    take(rest);
  }
  return hash;
}

}  // namespace

extern const Kernels KERNELS = {score, count, collect, soften, digest};

}  // namespace st3fx::latent

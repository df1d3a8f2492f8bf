// The kernels of latent.h, compiled once for each instruction set: define KERNELS, then include.
//
// Loops run over kLanes independent sums, which the compiler keeps in vectors of whatever width it
// has, and which are added up in one order; products and sums are never contracted. So every
// instruction set gives the same bits.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

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
///
/// `deciding(i)` is compared with the threshold.
template <class Deciding>
float rescale_factor(const float* weight, int64_t size, float threshold, const Deciding& deciding) {
  float total[kLanes] = {}, kept[kLanes] = {};
  const auto take = [&](int lane, int64_t i) {
    const float magnitude = std::fabs(weight[i]);
    total[lane] += magnitude;
    kept[lane] += deciding(i) > threshold ? magnitude : 0.0f;
  };
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes)
    for (int lane = 0; lane < kLanes; lane++) take(lane, i + lane);
  for (int lane = 0; i + lane < size; lane++) take(lane, i + lane);

  const auto length = static_cast<float>(size);
  const float rho = (sum(kept) / length + 1e-6f) / (sum(total) / length + 1e-6f);
  return 1.01f / (rho + 0.01f);
}

void soften(const float* weight, int64_t size, float threshold, bool rescale, float* out) {
  const auto deciding = [&](int64_t i) { return std::fabs(weight[i]); };
  const float factor = rescale ? rescale_factor(weight, size, threshold, deciding) : 1.0f;
  for (int64_t i = 0; i < size; i++) {
    const float shrunk = std::fabs(weight[i]) - threshold;
    const float scaled = std::copysign(shrunk * factor, weight[i]);
    out[i] = shrunk <= 0.0f ? 0.0f : scaled;  // NaN stays
  }
}

constexpr float kLargest = std::numeric_limits<float>::max();
constexpr float kNormal = std::numeric_limits<float>::min();
constexpr int kLongest = 64;

/// `measure` for groups of `Size` weights, or of any size if that is 0.
///
/// Squares are added in the order of the weights, as torch's operators do.
template <int Size>
void measure_whole(const float* weight, int64_t blocks, int64_t inner, int any_size, bool spread,
                   float* out) {
  const int size = Size ? Size : any_size;
  const int64_t step = size * inner;
  for (int64_t block = 0; block < blocks; block++) {
    const float* from = weight + block * step;
    float* to = out + block * (spread ? step : inner);
    for (int64_t j = 0; j < inner; j++) {
      float sum = 0;
      for (int i = 0; i < size; i++) sum += from[i * inner + j] * from[i * inner + j];
      const float magnitude = std::sqrt(sum / static_cast<float>(size));
      if (spread)
        for (int i = 0; i < size; i++) to[i * inner + j] = magnitude;
      else
        to[j] = magnitude;
    }
  }
}

/// `measure` for the smallest of each group. Of equal weights the later ones are smaller.
///
/// Takes kLanes groups at a time, a plane of memory for the first weight of each, one for the second
/// and so on, so that comparisons fill vectors however the groups lie.
template <int Size>
void measure_smallest(const float* weight, int64_t blocks, int64_t inner, int any_size, int kept,
                      bool spread, float* out) {
  const int size = Size ? Size : any_size, gone = size - kept;
  const int64_t step = size * inner, groups = blocks * inner;
  float planes[Size ? Size : kLongest][kLanes];
  int64_t places[kLanes];
  for (int64_t first = 0; first < groups; first += kLanes) {
    const int lanes = static_cast<int>(std::min<int64_t>(kLanes, groups - first));
    int64_t block = first / inner, j = first % inner;
    for (int lane = 0; lane < lanes; lane++) {
      places[lane] = block * step + j;
      if (++j == inner) j = 0, block++;
    }
    for (int lane = 0; lane < lanes; lane++)
      for (int i = 0; i < size; i++)
        planes[i][lane] = std::fabs(weight[places[lane] + i * inner]);

    float sums[kLanes] = {};
    int32_t goes[Size ? Size : kLongest][kLanes];
    for (int i = 0; i < size; i++) {
      int32_t smaller[kLanes] = {};
      for (int k = 0; k < i; k++)
        for (int lane = 0; lane < kLanes; lane++) smaller[lane] += planes[k][lane] < planes[i][lane];
      for (int k = i + 1; k < size; k++)
        for (int lane = 0; lane < kLanes; lane++) smaller[lane] += planes[k][lane] <= planes[i][lane];
      for (int lane = 0; lane < kLanes; lane++) {
        goes[i][lane] = smaller[lane] < gone;
        sums[lane] += goes[i][lane] ? planes[i][lane] * planes[i][lane] : 0.0f;
      }
    }
    for (int lane = 0; lane < kLanes; lane++)
      sums[lane] = std::sqrt(sums[lane] / static_cast<float>(gone));
    if (!spread) {
      std::copy_n(sums, lanes, out + first);
      continue;
    }
    for (int i = 0; i < size; i++)
      for (int lane = 0; lane < kLanes; lane++)
        planes[i][lane] = goes[i][lane] ? sums[lane] : kLargest;
    for (int lane = 0; lane < lanes; lane++)
      for (int i = 0; i < size; i++) out[places[lane] + i * inner] = planes[i][lane];
  }
}

/// `measure` for long groups that lie in one piece each. The sum is in double precision: whatever
/// its order, the result is the same but for the rarest of cases.
void measure_long(const float* weight, int64_t blocks, int size, bool spread, float* out) {
  for (int64_t block = 0; block < blocks; block++) {
    const float* from = weight + block * size;
    double sums[kLanes] = {};
    int i = 0;
    for (; i + kLanes <= size; i += kLanes)
      for (int lane = 0; lane < kLanes; lane++) {
        const double value = from[i + lane];
        sums[lane] += value * value;
      }
    for (int lane = 0; i + lane < size; lane++) {
      const double value = from[i + lane];
      sums[lane] += value * value;
    }
    for (int width = kLanes / 2; width > 0; width /= 2)
      for (int lane = 0; lane < width; lane++) sums[lane] += sums[lane + width];
    const auto magnitude = static_cast<float>(std::sqrt(sums[0] / size));
    if (spread)
      std::fill_n(out + block * size, size, magnitude);
    else
      out[block] = magnitude;
  }
}

void measure(const float* weight, int64_t blocks, int64_t inner, int size, int kept, bool spread,
             float* out) {
  if (kept < 0)
    measure_long(weight, blocks, size, spread, out);
  else if (kept >= size)
    std::fill_n(out, blocks * inner * (spread ? size : 1), kLargest);
  else if (kept && size == 4)
    measure_smallest<4>(weight, blocks, inner, size, kept, spread, out);
  else if (kept)
    measure_smallest<0>(weight, blocks, inner, size, kept, spread, out);
  else if (size == 4)
    measure_whole<4>(weight, blocks, inner, size, spread, out);
  else
    measure_whole<0>(weight, blocks, inner, size, spread, out);
}

void soften_groups(const float* weight, const float* deciding, int64_t size, float threshold,
                   bool rescale, float* out) {
  const auto own = [&](int64_t i) { return deciding[i]; };
  const float factor = rescale ? rescale_factor(weight, size, threshold, own) : 1.0f;
  for (int64_t i = 0; i < size; i++) {
    const float over = deciding[i] - threshold;
    const float scaled = over / deciding[i] * weight[i] * factor;
    out[i] = over <= 0.0f || std::fabs(scaled) < kNormal ? 0.0f : scaled;  // NaN stays
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

extern const Kernels KERNELS = {score, count, collect, soften, measure, soften_groups, digest};

}  // namespace st3fx::latent

// The kernels of latent.h, compiled once for each instruction set: define KERNELS, then include.
//
// Loops run over kLanes independent sums, which the compiler keeps in vectors of whatever width it
// has, and which are added up in one order; products and sums are never contracted. So every
// instruction set gives the same bits.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "latent.h"

namespace st3fx::latent {
namespace {

/// As many lanes as a register has; results do not depend on their number.
#if defined(__AVX512F__)
constexpr int kWide = 16;
#elif defined(__AVX__)
constexpr int kWide = 8;
#else
constexpr int kWide = 4;
#endif
// Typedefs: clang drops the alignment from an alias, and takes all addresses for aligned ones.
typedef float Vector __attribute__((vector_size(4 * kWide), aligned(4), may_alias));
typedef int32_t Mask __attribute__((vector_size(4 * kWide), aligned(4), may_alias));

Vector& at(float* lanes) { return *reinterpret_cast<Vector*>(lanes); }
const Vector& at(const float* lanes) { return *reinterpret_cast<const Vector*>(lanes); }
Mask& at(int32_t* lanes) { return *reinterpret_cast<Mask*>(lanes); }
const Mask& at(const int32_t* lanes) { return *reinterpret_cast<const Mask*>(lanes); }

Vector only(Mask mask, Vector values) { return (Vector)(mask & (Mask)values); }
Vector absolute(Vector values) { return (Vector)((Mask)values & 0x7fffffff); }

int32_t magnitude_bits(float value) {
  int32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits & 0x7fffffff;
}

void score(const float* weights, int64_t size, float scale, float* scores) {
  for (int64_t i = 0; i < size; i++) scores[i] = std::fabs(weights[i] / scale);
}

Tally count(const float* scores, int64_t size, Band band) {
  // Integers are added in any order: as many at a time as stay in registers, in two chains.
  constexpr int kStep = 2 * kWide;
  Mask below[2] = {}, upto[2] = {}, largest[2] = {};
  int64_t i = 0;
  for (; i + kStep <= size; i += kStep)
    for (int half = 0; half < 2; half++) {
      const Mask bits = (Mask)at(scores + i + half * kWide) & 0x7fffffff;
      below[half] -= (Mask)(bits < band.low);
      upto[half] -= (Mask)(bits <= band.high);
      const Mask more = (Mask)(bits > largest[half]);
      largest[half] = (more & bits) | (~more & largest[half]);
    }
  Tally tally;
  for (int half = 0; half < 2; half++)
    for (int lane = 0; lane < kWide; lane++) {
      tally.below += below[half][lane];
      tally.inside += upto[half][lane] - below[half][lane];
      tally.largest = std::max(tally.largest, largest[half][lane]);
    }
  for (; i < size; i++) {
    const int32_t bits = magnitude_bits(scores[i]);
    tally.below += bits < band.low;
    tally.inside += bits >= band.low && bits <= band.high;
    tally.largest = std::max(tally.largest, bits);
  }
  return tally;
}

/// One bit for each lane.
uint32_t bits_of(Mask mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)mask);
#elif defined(__AVX__)
  return static_cast<uint32_t>(_mm256_movemask_ps((__m256)mask));
#elif defined(__SSE2__)
  return static_cast<uint32_t>(_mm_movemask_ps((__m128)mask));
#else
  uint32_t bits = 0;
  for (int lane = 0; lane < kWide; lane++) bits |= static_cast<uint32_t>(mask[lane] & 1) << lane;
  return bits;
#endif
}

int64_t collect(const float* scores, int64_t size, Band band, float* found) {
  float* end = found;
  int64_t i = 0;
  for (; i + kWide <= size; i += kWide) {  // few vectors have one
    const Mask bits = (Mask)at(scores + i) & 0x7fffffff;
    uint32_t inside = bits_of((Mask)(bits >= band.low) & (Mask)(bits <= band.high));
    for (; inside; inside &= inside - 1) *end++ = std::fabs(scores[i + __builtin_ctz(inside)]);
  }
  for (; i < size; i++) {
    const int32_t bits = magnitude_bits(scores[i]);
    if (bits >= band.low && bits <= band.high) *end++ = std::fabs(scores[i]);
  }
  return end - found;
}

/// The sum of all lanes, by halves.
float sum(float (&lanes)[kLanes]) {
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int lane = 0; lane < width; lane++) lanes[lane] += lanes[lane + width];
  return lanes[0];
}

/// c_k: 1.01 over the share of the channel's magnitude that is kept, and 0.01.
float factor_of(float (&kept)[kLanes], float (&total)[kLanes], int64_t size) {
  const auto length = static_cast<float>(size);
  const float rho = (sum(kept) / length + 1e-6f) / (sum(total) / length + 1e-6f);
  return 1.01f / (rho + 0.01f);
}

float rescale_factor(const float* weight, int64_t size, float threshold) {
  float total[kLanes] = {}, kept[kLanes] = {};
  const auto take = [&](int lane, int64_t i) {
    const float magnitude = std::fabs(weight[i]);
    total[lane] += magnitude;
    kept[lane] += magnitude > threshold ? magnitude : 0.0f;
  };
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes)
    for (int lane = 0; lane < kLanes; lane++) take(lane, i + lane);
  for (int lane = 0; i + lane < size; lane++) take(lane, i + lane);
  return factor_of(kept, total, size);
}

void soften(const float* weight, int64_t size, float threshold, bool rescale, float* out) {
  const float factor = rescale ? rescale_factor(weight, size, threshold) : 1.0f;
  for (int64_t i = 0; i < size; i++) {
    const float shrunk = std::fabs(weight[i]) - threshold;
    const float scaled = std::copysign(shrunk * factor, weight[i]);
    out[i] = shrunk <= 0.0f ? 0.0f : scaled;  // NaN stays
  }
}

/// How many weights of a piece, or of several, `is_counted`.
template <class Condition>
int64_t count_of(const float* weight, int64_t size, const Condition& is_counted) {
  int64_t sum = 0;
  for (int64_t begin = 0; begin < size; begin += kPiece) {
    const int64_t end = std::min(begin + kPiece, size);
    int32_t count = 0;
    for (int64_t i = begin; i < end; i++) count += is_counted(std::fabs(weight[i]));
    sum += count;
  }
  return sum;
}

int64_t left(const float* weight, int64_t size, float threshold) {
  return count_of(weight, size, [=](float magnitude) { return magnitude > threshold; });
}

int64_t remaining(const float* weight, int64_t size, float threshold) {
  return count_of(weight, size, [=](float magnitude) { return !(magnitude <= threshold); });
}

void harden(const float* weight, int64_t size, float threshold, float* out) {
  for (int64_t i = 0; i < size; i++)  // NaN stays
    out[i] = weight[i] * (std::fabs(weight[i]) > threshold ? 1.0f : 0.0f) + 0.0f;
}

/// The long-tailed estimate of the derivative of a step.
float step_derivative(float x) {
  const float distance = std::fabs(x), near = 2.0f - 4.0f * distance;
  return distance <= 0.4f ? near : distance <= 1.0f ? 0.4f : 0.0f;
}

void pass_back(Rule rule, const float* grad, const float* weight, int64_t size, float threshold,
               float factor, float* __restrict out, float* __restrict along) {
  switch (rule) {
    case Rule::scale:
      for (int64_t i = 0; i < size; i++)
        out[i] = grad[i] * (std::fabs(weight[i]) > threshold ? 1.0f : factor);
      break;
    case Rule::sign:
      for (int64_t i = 0; i < size; i++) {
        const float w = weight[i], sign = (w > 0.0f ? 1.0f : 0.0f) - (w < 0.0f ? 1.0f : 0.0f);
        const bool is_left = std::fabs(w) > threshold || threshold == 0.0f;
        out[i] = grad[i] * (is_left ? 1.0f : 0.0f);
        along[i] = out[i] * sign;
      }
      break;
    case Rule::tails:
      for (int64_t i = 0; i < size; i++) {
        const float magnitude = std::fabs(weight[i]);
        const float slope = threshold < 0.0f ? 0.0f : step_derivative(magnitude - threshold);
        out[i] = grad[i] * ((magnitude > threshold ? 1.0f : 0.0f) + magnitude * slope);
        along[i] = grad[i] * (weight[i] * slope);
      }
      break;
  }
}

// Which weights are left is as good as random: without branches, by way of memory of their own.

void gather(const float* weight, int64_t size, float threshold, float* ratios) {
  float all[kPiece], found[kPiece + 1];
  for (int64_t i = 0; i < size; i++) all[i] = threshold / std::fabs(weight[i]);
  int64_t count = 0;
  for (int64_t i = 0; i < size; i++) {
    found[count] = all[i];
    count += !(std::fabs(weight[i]) <= threshold);
  }
  std::copy_n(found, count, ratios);
}

void scatter(const float* weight, int64_t size, float threshold, const float* factors, float* out) {
  float all[kPiece];
  int64_t next = 0;
  for (int64_t i = 0; i < size; i++) {
    all[i] = factors[next];
    next += !(std::fabs(weight[i]) <= threshold);
  }
  for (int64_t i = 0; i < size; i++)
    out[i] = std::fabs(weight[i]) <= threshold ? 0.0f : weight[i] * all[i] + 0.0f;
}

constexpr float kLargest = std::numeric_limits<float>::max();
constexpr float kNormal = std::numeric_limits<float>::min();
constexpr int kLongest = 64;

/// The weights of up to kLanes groups: a plane for the first weight of each, one for the second and
/// so on, so that arithmetic fills vectors however groups lie in memory.
template <int Size>
using Planes = float[Size ? Size : kLongest][kLanes];

/// Groups side by side: `width` of each of `blocks` blocks, the first of which begins at `start`.
struct Tile {
  int64_t start, first;
  int blocks, width;

  int lanes() const { return blocks * width; }
};

/// Groups of `Size` weights, `Inner` floats apart, or of any size or distance where that is 0.
template <int Size, int Inner>
struct Layout {
  int any_size;
  int64_t any_inner;

  int size() const { return Size ? Size : any_size; }
  int64_t inner() const { return Inner ? Inner : any_inner; }

  template <class Body>
  void for_each_tile(int64_t blocks, const Body& body) const {
    const int width = static_cast<int>(std::min<int64_t>(inner(), kLanes)), high = kLanes / width;
    for (int64_t block = 0; block < blocks; block += high)
      for (int64_t j = 0; j < inner(); j += width)
        body(Tile{block * size() * inner() + j, block * inner() + j,
                  static_cast<int>(std::min<int64_t>(high, blocks - block)),
                  static_cast<int>(std::min<int64_t>(width, inner() - j))});
  }

  /// Calls `move(plane, lane, offset)` for each weight of a tile, `offset` floats from its start.
  template <class Move>
  void for_each_weight(const Tile& tile, const Move& move) const {
    if constexpr (Inner == 1) {
      if (Size != 0 && tile.blocks == kLanes) {  // a loop of fixed length fills vectors
        for (int lane = 0; lane < kLanes; lane++)
          for (int i = 0; i < Size; i++) move(i, lane, lane * Size + i);
        return;
      }
      for (int lane = 0; lane < tile.blocks; lane++)
        for (int i = 0; i < size(); i++) move(i, lane, lane * size() + i);
      return;
    }
    const int width = Inner ? Inner : tile.width;
    for (int block = 0; block < tile.blocks; block++)
      for (int i = 0; i < size(); i++)
        for (int j = 0; j < width; j++)
          move(i, block * width + j, (block * size() + i) * inner() + j);
  }

  /// Lanes that have no group are filled with zeros.
  void load(const float* from, const Tile& tile, Planes<Size>& planes) const {
    for (int i = 0; i < size(); i++)
      std::fill(planes[i] + tile.lanes(), planes[i] + kLanes, 0.0f);
    for_each_weight(tile, [&](int i, int lane, int64_t at) { planes[i][lane] = from[at]; });
  }

  void store(const Planes<Size>& planes, const Tile& tile, float* to) const {
    for_each_weight(tile, [&](int i, int lane, int64_t at) { to[at] = planes[i][lane]; });
  }
};

/// A tile of groups with what decides on each weight.
template <int Size, bool Some>
struct Group {
  Planes<Size> weights;
  int32_t goes[Some ? (Size ? Size : kLongest) : 1][kLanes];  // all bits of those that go
  float magnitude[kLanes];

  /// Those of a group that go are the `gone` smallest; of equals the later ones.
  void choose(int size, int gone) {
    for (int lane = 0; lane < kLanes; lane += kWide)
      for (int i = 0; i < size; i++) {
        const Vector own = absolute(at(weights[i] + lane));
        Mask smaller = {};
        for (int k = 0; k < i; k++) smaller -= (Mask)(absolute(at(weights[k] + lane)) < own);
        for (int k = i + 1; k < size; k++)
          smaller -= (Mask)(absolute(at(weights[k] + lane)) <= own);
        at(goes[i] + lane) = (Mask)(smaller < gone);
      }
  }

  /// The root mean square of those that go. Squares are added in the order of the weights; in
  /// double precision where their sum leaves what single precision can do.
  void measure(int size, int gone, int lanes) {
    constexpr float kSmallest = 0x1p-100f;
    float sums[kLanes];
    for (int lane = 0; lane < kLanes; lane += kWide) {
      Vector sum = {};
      for (int i = 0; i < size; i++) {
        Vector own = at(weights[i] + lane);
        if constexpr (Some) own = only(at(goes[i] + lane), own);
        sum += own * own;
      }
      at(sums + lane) = sum;
    }
    std::fill(sums + lanes, sums + kLanes, 1.0f);
    int32_t fits = -1;
    for (int lane = 0; lane < kLanes; lane++) {
      fits &= -(sums[lane] >= kSmallest && sums[lane] <= kLargest);
      magnitude[lane] = std::sqrt(sums[lane] / static_cast<float>(gone));
    }
    if (fits) return;
    double exact[kLanes] = {};
    for (int i = 0; i < size; i++)
      for (int lane = 0; lane < kLanes; lane++) {
        const double own = Some && !goes[Some ? i : 0][lane] ? 0.0f : weights[i][lane];
        exact[lane] += own * own;
      }
    for (int lane = 0; lane < kLanes; lane++)
      if (!(sums[lane] >= kSmallest && sums[lane] <= kLargest))
        magnitude[lane] = static_cast<float>(std::sqrt(exact[lane] / gone));
  }

  /// `own` where a weight goes, else `free`.
  Vector pick(int i, int lane, Vector own, Vector free) const {
    if constexpr (Some) {
      const Mask mask = at(goes[i] + lane);
      return (Vector)((mask & (Mask)own) | (~mask & (Mask)free));
    }
    return own;
  }
};

/// Calls `use(tile, group)` for all groups.
template <bool Some, int Size, int Inner, class Use>
void for_each_group(const Layout<Size, Inner>& layout, const float* weight, int64_t blocks,
                    int kept, const Use& use) {
  Group<Size, Some> group;
  const int size = layout.size(), gone = size - kept;
  layout.for_each_tile(blocks, [&](const Tile& tile) {
    layout.load(weight + tile.start, tile, group.weights);
    if constexpr (Some) group.choose(size, gone);
    group.measure(size, gone, tile.lanes());
    use(tile, group);
  });
}

/// Calls `run` with the layout of groups that there is code for, and whether some of a group stay.
template <class Run>
void with_layout(int64_t inner, int size, int kept, const Run& run) {
  const auto with = [&](const auto& layout) {
    kept ? run(layout, std::true_type()) : run(layout, std::false_type());
  };
  if (size == 4 && inner == 1)
    with(Layout<4, 1>{size, inner});
  else if (size == 4 && inner == 9)
    with(Layout<4, 9>{size, inner});
  else if (size == 4)
    with(Layout<4, 0>{size, inner});
  else if (inner == 1)
    with(Layout<0, 1>{size, inner});
  else
    with(Layout<0, 0>{size, inner});
}

/// The magnitude of a long group in one piece. Whatever the order of a sum in double precision, the
/// result is the same but for the rarest of cases.
float long_magnitude(const float* weight, int64_t size) {
  double sums[kLanes] = {};
  const auto take = [&](int lane, int64_t i) {
    const double value = weight[i];
    sums[lane] += value * value;
  };
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes)
    for (int lane = 0; lane < kLanes; lane++) take(lane, i + lane);
  for (int lane = 0; i + lane < size; lane++) take(lane, i + lane);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int lane = 0; lane < width; lane++) sums[lane] += sums[lane + width];
  return static_cast<float>(std::sqrt(sums[0] / static_cast<double>(size)));
}

template <bool Some, int Size, int Inner>
void measure_in(const Layout<Size, Inner>& layout, const float* weight, int64_t blocks, int kept,
                bool spread, float* out) {
  for_each_group<Some>(layout, weight, blocks, kept, [&](const Tile& tile, auto& group) {
    if (!spread) {
      std::copy_n(group.magnitude, tile.lanes(), out + tile.first);
      return;
    }
    for (int i = 0; i < layout.size(); i++)
      for (int lane = 0; lane < kLanes; lane += kWide)
        at(group.weights[i] + lane) =
            group.pick(i, lane, at(group.magnitude + lane), Vector{} + kLargest);
    layout.store(group.weights, tile, out + tile.start);
  });
}

void measure(const float* weight, int64_t blocks, int64_t inner, int size, int kept, bool spread,
             float* out) {
  if (kept >= size)
    std::fill_n(out, blocks * inner * (spread ? size : 1), kLargest);
  else if (kept >= 0)
    with_layout(inner, size, kept, [&](const auto& layout, auto some) {
      measure_in<some>(layout, weight, blocks, kept, spread, out);
    });
  for (int64_t block = 0; kept < 0 && block < blocks; block++) {
    const float magnitude = long_magnitude(weight + block * size, size);
    if (spread)
      std::fill_n(out + block * size, size, magnitude);
    else
      out[block] = magnitude;
  }
}

template <bool Some, int Size, int Inner>
void soften_in(const Layout<Size, Inner>& layout, const float* weight, int64_t blocks, int kept,
               float threshold, float* out, Shares& shares) {
  // What no threshold reaches has the largest number as its magnitude.
  const Vector free = Vector{} + (kLargest - threshold) / kLargest;
  Shares own = shares;
  for_each_group<Some>(layout, weight, blocks, kept, [&](const Tile& tile, auto& group) {
    for (int lane = 0; lane < kLanes; lane += kWide) {
      const Vector magnitude = at(group.magnitude + lane);
      const Vector over = magnitude - threshold, ratio = over / magnitude;
      Vector total = at(own.total + lane), left = at(own.kept + lane);
      for (int i = 0; i < layout.size(); i++) {
        Vector& place = at(group.weights[i] + lane);
        const Vector value = place, above = group.pick(i, lane, over, free);
        total += absolute(value);
        left += only((Mask)(above > 0.0f), absolute(value));
        // NaN stays.
        place = only(~(Mask)(above <= 0.0f), group.pick(i, lane, ratio, free) * value);
      }
      at(own.total + lane) = total;
      at(own.kept + lane) = left;
    }
    layout.store(group.weights, tile, out + tile.start);
  });
  shares = own;
}

/// Weights that share a magnitude.
void soften_long(const float* weight, int64_t size, float magnitude, float threshold, float* out,
                 Shares& shares) {
  const float over = magnitude - threshold, ratio = over / magnitude;
  float total[kLanes] = {};
  const auto take = [&](int lane, int64_t i) {
    total[lane] += std::fabs(weight[i]);
    out[i] = over <= 0.0f ? 0.0f : ratio * weight[i];
  };
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes)
    for (int lane = 0; lane < kLanes; lane++) take(lane, i + lane);
  for (int lane = 0; i + lane < size; lane++) take(lane, i + lane);
  for (int lane = 0; lane < kLanes; lane++) {
    shares.total[lane] += total[lane];
    shares.kept[lane] += over > 0.0f ? total[lane] : 0.0f;
  }
}

void soften_blocks(const float* weight, int64_t blocks, int64_t inner, int size, int kept,
                   float threshold, float* out, Shares& shares) {
  if (kept >= size) {
    soften_long(weight, blocks * inner * size, kLargest, threshold, out, shares);
  } else if (kept >= 0) {
    with_layout(inner, size, kept, [&](const auto& layout, auto some) {
      soften_in<some>(layout, weight, blocks, kept, threshold, out, shares);
    });
  } else {
    for (int64_t block = 0; block < blocks; block++, weight += size, out += size)
      soften_long(weight, size, long_magnitude(weight, size), threshold, out, shares);
  }
}

void finish(Shares& shares, int64_t size, bool rescale, float* out) {
  const float factor = rescale ? factor_of(shares.kept, shares.total, size) : 1.0f;
  for (int64_t i = 0; i < size; i++) {
    const float scaled = out[i] * factor;
    out[i] = std::fabs(scaled) < kNormal ? 0.0f : scaled;  // NaN stays
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

typedef uint32_t Word __attribute__((may_alias, aligned(1)));

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

extern const Kernels KERNELS = {
    score,   count,   left,   remaining, harden,        pass_back, gather,
    scatter, collect, soften, measure,   soften_blocks, finish,    digest};

}  // namespace st3fx::latent

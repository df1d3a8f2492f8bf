// What a training step does with latent weights: count scores, make effective weights, digest.
#pragma once

#include <cstdint>

namespace st3fx::latent {

/// Floats at a time: what a task reads stays in the nearest caches.
constexpr int64_t kPiece = 1 << 14;

/// Independent sums, which are added up in one order.
constexpr int kLanes = 64;

/// Sums over a channel's weights: of all magnitudes, and of those that are kept.
struct Shares {
  float total[kLanes] = {}, kept[kLanes] = {};
};

/// What lies around a band. Scores compare as their bits do; NaN is larger than all others.
struct Tally {
  int64_t below = 0, inside = 0;
  int32_t largest = 0;
};

/// Ends of a band as bits of floats, both included.
struct Band {
  int32_t low, high;
};

/// What a gradient rule makes of the gradient `g` of an effective weight, `m` being whether the
/// weight `w` is left, `t` the threshold.
enum class Rule : int32_t {
  scale,  ///< `g` where `m`, else `g` times the factor
  sign,   ///< `g m`; along the threshold `g m sign(w)`; without a threshold `m` is 1
  tails,  ///< `g (m + |w| s)`; along the threshold `g w s`, with DST's `s` (st3fx/methods/dst.py)
};

/// The kernels of one instruction set. All of them give the same bits.
struct Kernels {
  /// `scores[i] = |weights[i] / scale|`.
  void (*score)(const float* weights, int64_t size, float scale, float* scores);

  /// Counts magnitudes around a band.
  Tally (*count)(const float* scores, int64_t size, Band band);

  /// How many weights are above a threshold.
  int64_t (*left)(const float* weight, int64_t size, float threshold);

  /// How many are not up to a threshold: NaN is not.
  int64_t (*remaining)(const float* weight, int64_t size, float threshold);

  /// `out[i] = weights[i]` where its magnitude is above the threshold, else a positive zero.
  void (*harden)(const float* weight, int64_t size, float threshold, float* out);

  /// A gradient, for weights that share a threshold, see `Rule`. Only some rules write `along`.
  void (*pass_back)(Rule rule, const float* grad, const float* weight, int64_t size,
                    float threshold, float factor, float* out, float* along);

  /// Writes `threshold / |w|` of the weights of a piece that are left, one after another.
  void (*gather)(const float* weight, int64_t size, float threshold, float* ratios);

  /// `out[i] = weights[i]` times the next factor where it is left, else a positive zero. Reads one
  /// factor more than there are.
  void (*scatter)(const float* weight, int64_t size, float threshold, const float* factors,
                  float* out);

  /// Collects the magnitudes in a band; gives their number.
  int64_t (*collect)(const float* scores, int64_t size, Band band, float* found);

  /// One output channel's effective weight by ST-3's formula (st3fx/methods/st3.py).
  void (*soften)(const float* weight, int64_t size, float threshold, bool rescale, float* out);

  /// The magnitudes of `blocks` groups, one after another, of `size` weights each that lie `inner`
  /// floats apart, `inner` groups side by side (st3fx/sparsity/granularity.py): one for each group,
  /// or, `spread`, one for each weight. Of `kept` above 0 the group is the `size - kept` smallest,
  /// and the others' magnitude is the largest number. Below 0 groups are long, each in one piece.
  void (*measure)(const float* weight, int64_t blocks, int64_t inner, int size, int kept,
                  bool spread, float* out);

  /// As `soften`, without the rescaling, of weights in groups as for `measure`; adds to `shares`.
  void (*soften_blocks)(const float* weight, int64_t blocks, int64_t inner, int size, int kept,
                        float threshold, float* out, Shares& shares);

  /// Rescales a channel whose groups have been softened, and rounds denormal numbers to zero.
  void (*finish)(Shares& shares, int64_t size, bool rescale, float* out);

  /// A hash of bytes.
  uint64_t (*digest)(const uint8_t* bytes, int64_t size);
};

extern const Kernels baseline_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels, avx512_kernels;
#endif

}  // namespace st3fx::latent

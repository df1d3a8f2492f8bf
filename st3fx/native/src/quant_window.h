// Quantized operators that move a window over each channel by itself: QuantDepthwiseConv,
// QuantMaxPool, QuantAveragePool.
#pragma once

#include <memory>
#include <vector>

#include "kernels.h"
#include "quad_matrix.h"
#include "sized_cache.h"
#include "taps.h"

namespace st3fx {

class QuantWindowOp {
 public:
  void operator()(const Run& run) const;

 protected:
  QuantWindowOp(const NodeInfo& node, QuantWindowJob::Kind kind);

  /// Takes weights [channel][tap] in the order of `QuantWindowJob`, and biases and multipliers.
  void set_weights(const int8_t* weights, const std::vector<int32_t>& bias,
                   const std::vector<float>& multiplier);

  const QuantKernels& kernels_;
  const Kernels& moves_;
  QuantWindowJob::Kind kind_;
  int64_t channels_, quads_;
  int32_t x_zero_point_ = 0;
  WindowAttributes window_;
  bool has_residual_ = false, count_padding_ = false;
  float average_factor_ = 0;  ///< Of x's scale over y's; zero: no average.
  Requantize requantize_;
  int64_t halves_ = 1;
  std::vector<int8_t> weights_;
  std::vector<int32_t> bias_;
  std::vector<float> multiplier_;

 private:
  struct Sized;
  struct Call;

  /// A kernel of three columns has a four for each of its rows, so that its taps are neighbours.
  bool has_threes() const { return window_.kernel[1] == 3; }
  int64_t fours() const { return has_threes() ? window_.kernel[0] : (window_.taps() + 3) / 4; }
  /// Where a tap stands in the fours.
  int64_t place_of(int64_t tap) const { return has_threes() ? tap / 3 * 4 + tap % 3 : tap; }
  Sized work_out(const Images& in) const;
  void run_chunk(const Call& call, int64_t tile, int64_t begin, int64_t end) const;
  QuantWindowJob window_job(const Call& call, int64_t begin, int64_t end) const;

  std::unique_ptr<SizedCache<Sized>> sized_;
};

class QuantDepthwiseConv : public QuantWindowOp {
 public:
  explicit QuantDepthwiseConv(const NodeInfo& node);
};

class QuantMaxPool : public QuantWindowOp {
 public:
  explicit QuantMaxPool(const NodeInfo& node);
};

class QuantAveragePool : public QuantWindowOp {
 public:
  explicit QuantAveragePool(const NodeInfo& node);
};

}  // namespace st3fx

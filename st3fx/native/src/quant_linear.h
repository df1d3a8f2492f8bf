// The operator QuantLinear.
#pragma once

#include <vector>

#include "kernels.h"
#include "quad_matrix.h"

namespace st3fx {

class QuantLinear {
 public:
  explicit QuantLinear(const NodeInfo& node);
  void operator()(const Run& run) const;

 private:
  struct Call;

  Call measured(const Run& run, const float* x, int64_t vectors) const;
  void pack(const Call& call, int64_t tile, int64_t begin, int64_t end, float* taps) const;
  void run_part(const Call& call, int64_t tile, int64_t begin, int64_t end,
                const float* taps) const;

  const QuantKernels& kernels_;
  const Kernels& moves_;
  int64_t features_, rows_;
  float x_scale_;  ///< Zero: measured in each call.
  int32_t x_zero_point_;
  Activation activation_;
  std::vector<float> weight_scale_, bias_;  ///< [4 · quads]
  QuadMatrix matrix_;                       ///< Its bias for a zero point of 0.
  std::vector<int64_t> parts_;
  std::vector<QuantBlock> blocks_;
};

}  // namespace st3fx

// The operator QuantConv.
#pragma once

#include <memory>
#include <vector>

#include "kernels.h"
#include "quad_matrix.h"
#include "sized_cache.h"
#include "taps.h"

namespace st3fx {

/// Where to cut quads of rows so that the parts have about the same work: first quads, and the end.
std::vector<int64_t> cut_quads(const QuadMatrix& matrix);

/// Positions at a time for which the input that a row reads stays in the L1 cache.
int64_t chunk_for(const QuantKernels& kernels, int64_t floats_per_position);

/// What moves floats, and quads as such, for quantized operators of an instruction set.
const Kernels& moving_kernels(Isa isa);

class QuantConv {
 public:
  explicit QuantConv(const NodeInfo& node);
  void operator()(const Run& run) const;

 private:
  struct Call;
  struct Sized;

  Sized work_out(const Images& in) const;
  void pack(const Call& call, int64_t tile, int64_t begin, int64_t end, float* taps) const;
  void run_tile(const Call& call, int64_t tile, int64_t begin, int64_t end,
                const float* taps) const;

  const QuantKernels& kernels_;
  const Kernels& moves_;
  int64_t channels_, groups_, rows_;
  int32_t x_zero_point_;
  WindowAttributes window_;
  Requantize requantize_;
  bool has_residual_;
  QuadMatrix matrix_;
  std::vector<int64_t> parts_;  ///< As `cut_quads` gives them.
  std::unique_ptr<SizedCache<Sized>> sized_;
};

}  // namespace st3fx

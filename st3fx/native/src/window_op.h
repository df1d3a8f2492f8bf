// The operators that move a window over each channel by itself: DepthwiseConv, MaxPool and
// AveragePool.
#pragma once

#include <memory>
#include <vector>

#include "kernels.h"
#include "sized_cache.h"
#include "taps.h"

namespace st3fx {

class WindowOp {
 public:
  void operator()(const Run& run) const;

 protected:
  WindowOp(const NodeInfo& node, WindowJob::Kind kind);

  const Kernels* kernels_;  ///< Null for the scalar reference.
  WindowJob::Kind kind_;
  int64_t channels_;
  WindowAttributes window_;
  Layout input_layout_, output_layout_;
  Activation activation_{};
  bool count_padding_ = false;  ///< Whether averages count pixels of the padding.
  size_t residual_input_ = 0;   ///< Zero: there is none.
  std::vector<float> weights_, bias_;

 private:
  struct Sized;
  struct Call;

  Sized work_out(const Images& in) const;
  void run_chunk(const Call& call, int64_t tile, int64_t begin, int64_t end) const;
  WindowJob window_job(const Call& call, int64_t begin, int64_t end) const;

  std::unique_ptr<SizedCache<Sized>> sized_;
};

class DepthwiseConv : public WindowOp {
 public:
  explicit DepthwiseConv(const NodeInfo& node);
};

class MaxPool : public WindowOp {
 public:
  explicit MaxPool(const NodeInfo& node);
};

class AveragePool : public WindowOp {
 public:
  explicit AveragePool(const NodeInfo& node);
};

}  // namespace st3fx

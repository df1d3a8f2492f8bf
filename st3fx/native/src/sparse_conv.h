// The operator SparseConv.
#pragma once

#include <vector>

#include "kernels.h"
#include "row_pairs.h"
#include "window.h"

namespace st3fx {

class SparseConv {
 public:
  explicit SparseConv(const NodeInfo& node);
  void operator()(const Run& run) const;

 private:
  struct Call;

  /// Splits the output into tasks and runs them.
  void run_tasks(const Call& call, const Run& run) const;
  /// Parts [begin, end) of one tile; `taps` holds its whole input, or is null: then it is packed here.
  void run_tile(const Call& call, int64_t tile, int64_t begin, int64_t end, const float* taps) const;
  void pack(const Call& call, int64_t tile, int64_t channel_begin, int64_t channel_end, float* taps,
            float* patch) const;

  const Kernels* kernels_;  ///< Null for the scalar reference.
  int64_t channels_, groups_, rows_;
  WindowAttributes window_;
  Layout input_layout_, output_layout_;
  Activation activation_;
  std::vector<float> bias_;
  SparseMatrix matrix_;  ///< Kept by the scalar reference alone.
  PackedRows packed_;
};

}  // namespace st3fx

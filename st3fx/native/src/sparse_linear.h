// The operator SparseLinear.
#pragma once

#include <vector>

#include "kernels.h"
#include "layout.h"
#include "row_pairs.h"

namespace st3fx {

class SparseLinear {
 public:
  explicit SparseLinear(const NodeInfo& node);
  void operator()(const Run& run) const;

 private:
  struct Call;

  void run_vector(const Call& call, const Run& run) const;
  void run_tiles(const Call& call, const Run& run) const;
  void pack(const Call& call, int64_t tile, int64_t begin, int64_t end, float* taps) const;
  void run_part(const Call& call, int64_t tile, const RowPart& part, const float* taps) const;

  const Kernels* kernels_;  ///< Null for the scalar reference.
  int64_t features_, rows_;
  bool weights_left_;
  Activation activation_;
  std::vector<float> bias_;
  SparseMatrix matrix_;  ///< Kept by the scalar reference alone.
  PackedRows packed_;
};

}  // namespace st3fx

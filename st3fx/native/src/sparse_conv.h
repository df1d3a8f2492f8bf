// The operator SparseConv.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "kernels.h"
#include "row_pairs.h"
#include "sized_cache.h"
#include "taps.h"

namespace st3fx {

class SparseConv {
 public:
  explicit SparseConv(const NodeInfo& node);
  void operator()(const Run& run) const;

 private:
  struct Call;
  struct Sized;
  /// Rows in the order for one packing of their input, once they were needed.
  struct Packed {
    std::atomic<const PackedRows*> rows{nullptr};

    ~Packed() { delete rows.load(); }
  };
  struct PackedTwice {
    Packed gaps, per_tap;
  };

  const PackedRows& packed(Packing packing) const;
  Sized work_out(const Images& in) const;
  Packing packing_for(const Images& in) const;
  void run_tasks(const Call& call, const Run& run) const;
  void pack(const Call& call, int64_t tile, int64_t begin, int64_t end, float* taps) const;
  void run_tile(const Call& call, int64_t tile, int64_t begin, int64_t end,
                const float* taps) const;
  TileJob tile_job(const Call& call, int64_t n, int64_t t, float* stage) const;
  void run_part(const Call& call, int64_t n, int64_t t, const RowPart& part, const Segment& segment,
                TileJob job, bool staged) const;

  const Kernels* kernels_;  ///< Null for the scalar reference.
  int64_t channels_, groups_, rows_;
  WindowAttributes window_;
  Layout input_layout_, output_layout_;
  Activation activation_;
  std::vector<float> bias_;
  SparseMatrix matrix_;
  std::unique_ptr<PackedTwice> packed_;

  std::unique_ptr<SizedCache<Sized>> sized_;
};

}  // namespace st3fx

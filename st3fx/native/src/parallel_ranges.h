// Shares of an elementwise operator, on the threads of ONNX Runtime.
#pragma once

#include <algorithm>

#include "ort.h"

namespace st3fx {

constexpr int64_t kTaskFloats = 16 * 1024;  ///< A task's share.

/// Cuts `total` items of `floats` each into tasks and calls `run_range(begin, end)` for each.
template <class RunRange>
void parallel_ranges(const Run& run, int64_t total, int64_t floats, const RunRange& run_range) {
  const int64_t step = std::max<int64_t>(kTaskFloats / std::max<int64_t>(floats, 1), 1);
  if (total == 0) return;
  run.parallel_for((total + step - 1) / step, [&](int64_t task) {
    run_range(task * step, std::min((task + 1) * step, total));
  });
}

}  // namespace st3fx

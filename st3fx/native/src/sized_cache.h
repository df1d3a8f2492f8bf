// What a kernel works out for the size of its images, kept for the sizes that came last.
#pragma once

#include <array>
#include <memory>

#include "brief_lock.h"
#include "layout.h"

namespace st3fx {

/// Safe to use from several runs at once: who holds a result keeps it, and who finds the cache busy
/// works out one of its own.
///
/// A result is that of one image, so that batches of other sizes share it; `bytes()` is its size.
template <class Result>
class SizedCache {
 public:
  /// The result for these images: one that is kept if their size is the same, else `work_out()`.
  template <class WorkOut>
  std::shared_ptr<const Result> get(const Images& images, const WorkOut& work_out) {
    const Plane size = images.plane;
    if (const BriefLock lock(busy_); lock)
      for (size_t i = 0; i < kept_.size(); ++i)
        if (kept_[i].result && kept_[i].size.height == size.height &&
            kept_[i].size.width == size.width) {
          std::rotate(kept_.begin(), kept_.begin() + i, kept_.begin() + i + 1);
          return kept_[0].result;
        }
    auto made = std::make_shared<const Result>(work_out());
    std::array<Entry, kMost> dropped;  // ends behind the lock
    if (const BriefLock lock(busy_); lock) {
      std::rotate(kept_.begin(), kept_.end() - 1, kept_.end());
      std::swap(kept_[0], dropped[0]);
      kept_[0] = {size, made};
      size_t bytes = made->bytes();
      for (size_t i = 1; i < kMost; ++i) {
        if (kept_[i].result) bytes += kept_[i].result->bytes();
        if (bytes > kMostBytes) std::swap(kept_[i], dropped[i]);
      }
    }
    return made;
  }

 private:
  static constexpr size_t kMost = 4;
  static constexpr size_t kMostBytes = 4 << 20;  // of all but the last one's size alone

  struct Entry {
    Plane size;
    std::shared_ptr<const Result> result;
  };

  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
  std::array<Entry, kMost> kept_;  ///< The last one used first.
};

}  // namespace st3fx

// What a kernel works out for the size of its images, kept until another size comes.
#pragma once

#include <memory>

#include "brief_lock.h"
#include "layout.h"

namespace st3fx {

/// Safe to use from several runs at once: who holds a result keeps it, and who finds the cache busy
/// works out one of its own.
template <class Result>
class SizedCache {
 public:
  /// The result for these images: the last one if their shape is the same, else `work_out()`.
  template <class WorkOut>
  std::shared_ptr<const Result> get(const Images& images, const WorkOut& work_out) {
    const Shape shape = images.shape();
    if (const BriefLock lock(busy_); lock && last_ && shape_ == shape) return last_;
    auto made = std::make_shared<const Result>(work_out());
    if (const BriefLock lock(busy_); lock) {
      shape_ = shape;
      last_ = made;
    }
    return made;
  }

 private:
  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
  Shape shape_;
  std::shared_ptr<const Result> last_;
};

}  // namespace st3fx

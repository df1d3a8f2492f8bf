// What a kernel works out for the size of its images, kept until another size comes.
#pragma once

#include <memory>
#include <mutex>

#include "layout.h"

namespace st3fx {

/// Safe to use from several runs at once: who holds a result keeps it.
template <class Result>
class SizedCache {
 public:
  /// The result for these images: the last one if their shape is the same, else `work_out()`.
  template <class WorkOut>
  std::shared_ptr<const Result> get(const Images& images, const WorkOut& work_out) {
    const Shape shape = images.shape();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (last_ && shape_ == shape) return last_;
    }
    auto made = std::make_shared<const Result>(work_out());
    std::lock_guard<std::mutex> lock(mutex_);
    shape_ = shape;
    last_ = made;
    return made;
  }

 private:
  std::mutex mutex_;
  Shape shape_;
  std::shared_ptr<const Result> last_;
};

}  // namespace st3fx

#include "scratch.h"

#include <algorithm>
#include <new>
#include <vector>

#include "brief_lock.h"

namespace st3fx {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kSlack = 64;  // floats behind the end that whole vectors may touch

struct Buffer {
  float* data;
  size_t capacity;
};

void release(float* data) { ::operator delete(data, std::align_val_t{kAlignment}); }

/// Buffers that nobody uses now. Where the pool is busy for long, its takers do without it.
struct Pool {
  std::atomic_flag busy = ATOMIC_FLAG_INIT;
  std::vector<Buffer> free;

  ~Pool() {
    for (Buffer& buffer : free) release(buffer.data);
  }
};

Pool& pool() {
  static Pool instance;
  return instance;
}

}  // namespace

Scratch::Scratch(size_t floats) : data_(nullptr), capacity_(floats + kSlack) {
  float* too_small = nullptr;
  if (const BriefLock lock(pool().busy); lock) {
    std::vector<Buffer>& free = pool().free;
    // The smallest one that is large enough; else the largest makes room for a new one.
    auto smaller = [](const Buffer& a, const Buffer& b) { return a.capacity < b.capacity; };
    auto best = free.end();
    for (auto it = free.begin(); it != free.end(); ++it)
      if (it->capacity >= capacity_ && (best == free.end() || smaller(*it, *best))) best = it;
    if (best != free.end()) {
      data_ = best->data;
      capacity_ = best->capacity;
      free.erase(best);
      return;
    }
    auto largest = std::max_element(free.begin(), free.end(), smaller);
    if (largest != free.end()) {
      too_small = largest->data;
      free.erase(largest);
    }
  }
  if (too_small) release(too_small);
  const size_t bytes = capacity_ * sizeof(float);
  data_ = static_cast<float*>(::operator new(bytes, std::align_val_t{kAlignment}));
  std::fill(data_, data_ + capacity_, 0.0F);  // what is never written is read by whole vectors
}

Scratch::~Scratch() {
  if (const BriefLock lock(pool().busy); lock) {
    try {
      pool().free.push_back({data_, capacity_});
      return;
    } catch (const std::bad_alloc&) {
      // Then it is not kept.
    }
  }
  release(data_);
}

}  // namespace st3fx

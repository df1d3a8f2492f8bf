#include "scratch.h"

#include <algorithm>
#include <mutex>
#include <new>
#include <vector>

namespace st3fx {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kSlack = 64;  // floats behind the end that whole vectors may touch

struct Buffer {
  float* data;
  size_t capacity;
};

void release(float* data) { ::operator delete(data, std::align_val_t{kAlignment}); }

/// Buffers that nobody uses now.
struct Pool {
  std::mutex mutex;
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
  Pool& shared = pool();
  std::lock_guard<std::mutex> lock(shared.mutex);
  // The smallest one that is large enough; else the largest makes room for a new one.
  auto smaller = [](const Buffer& a, const Buffer& b) { return a.capacity < b.capacity; };
  auto best = shared.free.end();
  for (auto it = shared.free.begin(); it != shared.free.end(); ++it)
    if (it->capacity >= capacity_ && (best == shared.free.end() || smaller(*it, *best))) best = it;
  if (best != shared.free.end()) {
    data_ = best->data;
    capacity_ = best->capacity;
    shared.free.erase(best);
    return;
  }
  auto largest = std::max_element(shared.free.begin(), shared.free.end(), smaller);
  if (largest != shared.free.end()) {
    release(largest->data);
    shared.free.erase(largest);
  }
  const size_t bytes = capacity_ * sizeof(float);
  data_ = static_cast<float*>(::operator new(bytes, std::align_val_t{kAlignment}));
  std::fill(data_, data_ + capacity_, 0.0F);  // what is never written is read by whole vectors
}

Scratch::~Scratch() {
  Pool& shared = pool();
  std::lock_guard<std::mutex> lock(shared.mutex);
  try {
    shared.free.push_back({data_, capacity_});
  } catch (const std::bad_alloc&) {
    release(data_);
  }
}

}  // namespace st3fx

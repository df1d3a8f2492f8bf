#include "scratch.h"

#include <algorithm>
#include <atomic>
#include <new>
#include <vector>

#include "brief_lock.h"

namespace st3fx {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kSlack = 64;  // floats behind the end that whole vectors may touch
constexpr int kRound = 16384;  // calls: of a large model about ten runs

struct Buffer {
  float* data;
  size_t capacity;
};

bool smaller(const Buffer& a, const Buffer& b) { return a.capacity < b.capacity; }

void release(float* data) { ::operator delete(data, std::align_val_t{kAlignment}); }

/// Buffers that nobody uses now. Where the pool is busy for long, its takers do without it.
///
/// What a round of calls did not need is freed at its end: buffers larger than twice the largest
/// that was asked for, and those beyond as many as were in use at once.
struct Pool {
  std::atomic_flag busy = ATOMIC_FLAG_INIT;
  std::vector<Buffer> free;
  std::atomic<int64_t> used{0};
  int64_t most_used = 0;
  size_t largest = 0;
  int returned = 0;

  /// Notes that a buffer comes back that so much was asked of; where a round ends, gives those that
  /// are not needed to `dropped`. Under the lock.
  void note(size_t asked, std::vector<Buffer>& dropped) {
    most_used = std::max(most_used, used.load());
    largest = std::max(largest, asked);
    if (++returned < kRound) return;
    std::sort(free.begin(), free.end(), smaller);
    const auto most_free = static_cast<size_t>(std::max<int64_t>(most_used - used.load() + 1, 1));
    while (!free.empty() && (free.back().capacity > 2 * largest || free.size() > most_free)) {
      dropped.push_back(free.back());
      free.pop_back();
    }
    returned = 0;
    most_used = 0;
    largest = 0;
  }
};

/// It is never destroyed: threads may still give buffers back while the process ends.
Pool& pool() {
  static Pool& instance = *new Pool;
  return instance;
}

}  // namespace

Scratch::Scratch(size_t floats) : data_(nullptr), asked_(floats + kSlack), capacity_(asked_) {
  if (floats == 0) return;
  float* too_small = nullptr;
  if (const BriefLock lock(pool().busy); lock) {
    std::vector<Buffer>& free = pool().free;
    // The smallest one that is large enough; else the largest makes room for a new one.
    auto best = free.end();
    for (auto it = free.begin(); it != free.end(); ++it)
      if (it->capacity >= asked_ && (best == free.end() || smaller(*it, *best))) best = it;
    const bool fits = best != free.end();
    if (!fits) best = std::max_element(free.begin(), free.end(), smaller);
    if (best != free.end()) {
      (fits ? data_ : too_small) = best->data;
      if (fits) capacity_ = best->capacity;
      free.erase(best);
    }
  }
  if (too_small) release(too_small);
  if (!data_) {
    const size_t bytes = capacity_ * sizeof(float);
    data_ = static_cast<float*>(::operator new(bytes, std::align_val_t{kAlignment}));
    std::fill(data_, data_ + capacity_, 0.0F);  // what is never written is read by whole vectors
  }
  ++pool().used;
}

Scratch::~Scratch() {
  if (!data_) return;
  bool kept = false;
  std::vector<Buffer> dropped;
  if (const BriefLock lock(pool().busy); lock) {
    try {
      pool().free.push_back({data_, capacity_});
      kept = true;
      pool().note(asked_, dropped);
    } catch (const std::bad_alloc&) {
      // Then it is not kept, or others are for longer.
    }
  }
  --pool().used;
  if (!kept) release(data_);
  for (Buffer& buffer : dropped) release(buffer.data);
}

}  // namespace st3fx

// A lock for a few instructions, that nobody waits for long.
#pragma once

#include <atomic>

namespace st3fx {

/// Holds a flag as long as it lives, if it got it: who does not must do without what the flag guards.
///
/// A process may be forked while another of its threads holds the flag. In the child nobody ever gives
/// it back, so waiting for it, as a mutex does, would never end.
class BriefLock {
 public:
  explicit BriefLock(std::atomic_flag& flag) : flag_(flag) {
    for (int i = 0; i < kTries && !held_; ++i) held_ = !flag.test_and_set(std::memory_order_acquire);
  }
  ~BriefLock() {
    if (held_) flag_.clear(std::memory_order_release);
  }
  BriefLock(const BriefLock&) = delete;
  BriefLock& operator=(const BriefLock&) = delete;

  explicit operator bool() const { return held_; }

 private:
  static constexpr int kTries = 1000;
  std::atomic_flag& flag_;
  bool held_ = false;
};

}  // namespace st3fx

// Working memory of calls: taken for a while, given back, used again by later calls.
#pragma once

#include <cstddef>

namespace st3fx {

/// Aligned memory that belongs to one task of one call until it goes out of scope.
///
/// Buffers are kept for the next taker, of whatever kernel, so that a run touches no fresh pages;
/// there are never more of them than were in use at once, and after a while not more than are.
class Scratch {
 public:
  explicit Scratch(size_t floats);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  float* data() const { return data_; }  ///< Null where none was asked for.

 private:
  float* data_;
  size_t asked_, capacity_;
};

}  // namespace st3fx

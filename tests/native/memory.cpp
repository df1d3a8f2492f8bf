// What kernels keep: working memory of calls, and what is worked out for sizes of images.
//
// Compiled with scratch.cpp. Prints what is wrong; 0 where nothing is. The last thing it does is to end
// while a thread still holds and takes working memory.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "scratch.h"
#include "sized_cache.h"

namespace {

std::atomic<int64_t> held_bytes{0};

int failures = 0;

void check(bool holds, const char* what) {
  if (holds) return;
  std::printf("%s\n", what);
  ++failures;
}

void calls(int number, size_t floats) {
  for (int i = 0; i < number; ++i) {
    st3fx::Scratch scratch(floats);
    scratch.data()[floats - 1] = 1;
  }
}

void scratch_shrinks() {
  constexpr size_t large = 1 << 22, small = 1 << 10;
  calls(1, large);
  calls(100, small);
  check(held_bytes >= int64_t{4} * large, "a buffer is not kept for the next call");
  calls(40'000, small);
  check(held_bytes < int64_t{4} * large, "a buffer that nothing needs is never freed");
  const int64_t before = held_bytes;
  calls(100, small);
  check(held_bytes == before, "calls alike take new memory");
  check(st3fx::Scratch(0).data() == nullptr, "nothing takes memory");
}

struct Worked {
  size_t size;

  size_t bytes() const { return size; }
};

/// How often sizes are worked out, one image after the other.
int worked(const std::vector<int64_t>& heights, size_t bytes) {
  st3fx::SizedCache<Worked> cache;
  int count = 0;
  for (int64_t height : heights) {
    const st3fx::Images images{st3fx::Layout::blocked, height % 3 + 1, 8, {height, 5}};
    cache.get(images, [&] { return ++count, Worked{bytes}; });
  }
  return count;
}

void sizes_are_kept() {
  check(worked({3, 4, 3, 4, 3, 4}, 100) == 2, "two sizes in turn are worked out again");
  check(worked({3, 4, 5, 6, 3, 4, 5, 6}, 100) == 4, "four sizes in turn are worked out again");
  check(worked({3, 4, 5, 6, 7, 3}, 100) == 6, "more than four sizes are kept");
  check(worked({3, 4, 3}, size_t{3} << 20) == 3, "more memory is kept than the bound");
  check(worked({3, 3}, size_t{1} << 40) == 1, "the last size is not kept, whatever it takes");
  st3fx::SizedCache<Worked> cache;
  int count = 0;
  for (int64_t batch : {1, 8, 1, 8}) {
    const st3fx::Images images{st3fx::Layout::blocked, batch, 8, {7, 5}};
    cache.get(images, [&] { return ++count, Worked{1}; });
  }
  check(count == 1, "batches of other sizes are worked out again");
}

}  // namespace

void* operator new(size_t bytes, std::align_val_t alignment) {
  const auto step = static_cast<size_t>(alignment);
  auto* memory = static_cast<size_t*>(std::aligned_alloc(step, (bytes + step) / step * step + step));
  held_bytes += static_cast<int64_t>(bytes);
  *memory = bytes;
  return reinterpret_cast<char*>(memory) + step;
}

void operator delete(void* pointer, std::align_val_t alignment) noexcept {
  char* memory = static_cast<char*>(pointer) - static_cast<size_t>(alignment);
  held_bytes -= static_cast<int64_t>(*reinterpret_cast<size_t*>(memory));
  std::free(memory);
}

int main() {
  scratch_shrinks();
  sizes_are_kept();
  if (failures) return 1;
  std::thread([] {
    for (size_t i = 1;; ++i) st3fx::Scratch(i % 5000 + 1).data()[0] = 1;
  }).detach();
  std::atexit([] { std::this_thread::sleep_for(std::chrono::milliseconds(50)); });
  return 0;
}

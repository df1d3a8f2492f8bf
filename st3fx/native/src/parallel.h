// Tasks on the threads of an OpenMP runtime that the process has already.
#pragma once

#include <atomic>
#include <cstdint>

namespace st3fx {

/// `GOMP_parallel` of GCC's ABI, which LLVM's and Intel's runtimes offer as well.
using Parallel = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

/// Calls `work(i)` for each `i < tasks`, on up to `threads` threads; without `parallel` on this one.
///
/// Threads of our own would compete with those of torch, which spin for a while after each operator.
template <class Work>
void for_each(int64_t tasks, Parallel parallel, unsigned threads, const Work& work) {
  struct State {
    const Work& work;
    const int64_t tasks;
    std::atomic<int64_t> next{0};
  } state{work, tasks};
  const auto body = [](void* data) {
    auto& shared = *static_cast<State*>(data);
    for (int64_t i; (i = shared.next.fetch_add(1)) < shared.tasks;) shared.work(i);
  };
  if (parallel && threads > 1 && tasks > 1)
    parallel(body, &state, threads, 0);
  else
    body(&state);
}

}  // namespace st3fx

// Threads for the C++ of a CPU: those of torch's OpenMP, whose functions native.py hands over when it loads the code.
//
// Between two of torch's own parallel regions its threads spin for milliseconds. A thread that is started beside them waits for its
// turn on a core that seems busy: a dropout of 0.16 ms on one thread took 0.9 on two. Where torch has no OpenMP to lend,
// threads are started anew.

#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

struct OpenMp {
  void (*parallel)(void (*region)(void*), void* data, unsigned threads, unsigned flags) = nullptr;
  int (*thread_num)() = nullptr;
  int (*num_threads)() = nullptr;
};

OpenMp openmp;

// Calls work(thread, threads) on each of so many threads, or on fewer where OpenMP has no more to give.
template <typename Work>
void on_threads(int64_t threads, const Work& work) {
  if (threads <= 1) return work(int64_t(0), int64_t(1));
  if (openmp.parallel != nullptr) {
    const auto region = [](void* data) {
      (*static_cast<const Work*>(data))(int64_t(openmp.thread_num()), int64_t(openmp.num_threads()));
    };
    return openmp.parallel(region, const_cast<Work*>(&work), unsigned(threads), 0);
  }
  std::vector<std::thread> others;
  for (int64_t thread = 1; thread < threads; ++thread)
    others.emplace_back([&work, thread, threads] { work(thread, threads); });
  work(int64_t(0), threads);
  for (auto& other : others) other.join();
}

// Shares rows out over threads; each gets a range.
template <typename Work>
void over_rows(int64_t rows, int64_t threads, const Work& work) {
  on_threads(std::min(rows, threads), [&](int64_t thread, int64_t of) {
    const int64_t each = (rows + of - 1) / of;
    const int64_t start = thread * each;
    if (start < rows) work(start, std::min(rows, start + each));
  });
}

}  // namespace

extern "C" void use_openmp(decltype(OpenMp::parallel) parallel, decltype(OpenMp::thread_num) thread_num,
                           decltype(OpenMp::num_threads) num_threads) {
  openmp = {parallel, thread_num, num_threads};
}

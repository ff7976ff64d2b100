// Threads that run one function together, stage by stage.
//
//     team.run([&] { team.each(n, first); team.each(m, second); });
//
// Every thread calls the function; each() deals out numbers until none is left, and ends for all threads at once. A stage
// takes microseconds, so waiting means spinning; whoever has spun for long lets other programs have the processor, which
// may be what the others wait for. Between two runs the threads sleep.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include <sched.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace headrace {

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

class Team {
 public:
  explicit Team(int size) : size_(size) {
    try {
      for (int i = 1; i < size; ++i) threads_.emplace_back([this] { serve(); });
    } catch (...) {  // the system gives no more threads: those that there are must end before they are forgotten
      end();
      throw;
    }
  }

  ~Team() { end(); }

  int size() const { return size_; }

  // Called by one thread, which takes part.
  void run(const std::function<void()>& together) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      together_ = &together;
      runs_.fetch_add(1, std::memory_order_release);
    }
    begun_.notify_all();
    together();
    wait_for_all();  // nobody uses `together` any more
  }

  // Called by all threads of a run. f(i) once for each i < n, by whichever thread is free.
  template <typename Function>
  void each(int n, Function f) {
    for (int i = next_.fetch_add(1, std::memory_order_relaxed); i < n; i = next_.fetch_add(1, std::memory_order_relaxed)) f(i);
    wait_for_all();
  }

  // The same with several i in a row.
  template <typename Function>
  void each_of(int n, int in_a_row, Function f) {
    each((n + in_a_row - 1) / in_a_row, [&](int chunk) {
      const int end = chunk * in_a_row + in_a_row < n ? chunk * in_a_row + in_a_row : n;
      for (int i = chunk * in_a_row; i < end; ++i) f(i);
    });
  }

 private:
  static constexpr int SPINS = 4000;        // of a pause each, before the processor is offered to others
  static constexpr int SPINS_ASLEEP = 400;  // before a thread sleeps until the next run

  void end() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      ended_ = true;
      runs_.fetch_add(1, std::memory_order_release);
    }
    begun_.notify_all();
    for (std::thread& each : threads_) each.join();
  }

  void wait_for_all() {
    const unsigned stage = stage_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      next_.store(0, std::memory_order_relaxed);
      arrived_.store(0, std::memory_order_relaxed);
      stage_.store(stage + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; stage_.load(std::memory_order_acquire) == stage; ++spins) {
      if (spins < SPINS)
        pause();
      else
        sched_yield();
    }
  }

  void serve() {
    unsigned seen = 0;
    while (true) {
      for (int spins = 0; spins < SPINS_ASLEEP && runs_.load(std::memory_order_acquire) == seen; ++spins) pause();
      if (runs_.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        begun_.wait(lock, [&] { return runs_.load(std::memory_order_acquire) != seen; });
      }
      ++seen;
      if (ended_) return;
      (*together_)();
      wait_for_all();
    }
  }

  const int size_;
  const std::function<void()>* together_ = nullptr;
  bool ended_ = false;
  std::mutex mutex_;
  std::condition_variable begun_;
  alignas(64) std::atomic<unsigned> runs_{0};
  alignas(64) std::atomic<int> next_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> stage_{0};
  std::vector<std::thread> threads_;
};

}  // namespace headrace

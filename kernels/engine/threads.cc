#include "kernels/engine/threads.h"

#include <algorithm>
#include <chrono>
#include <system_error>

#include <pthread.h>
#include <time.h>

#include "kernels/cpu/phases.h"
#include "kernels/engine/error.h"

namespace edgellm {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kAwakeFor = std::chrono::milliseconds(1);  // more than Python needs between two tokens
constexpr int kLooks = 64;                                // between two looks at the clock

double seconds_of(clockid_t clock) {
  timespec at{};
  clock_gettime(clock, &at);
  return double(at.tv_sec) + 1e-9 * double(at.tv_nsec);
}

}  // namespace

Threads::Threads(int count) : crowd_(count), active_(count) {
  try {
    for (int i = 1; i < count; ++i) {
      workers_.push_back(std::make_unique<Worker>());
      Worker& worker = *workers_.back();
      worker.thread = std::thread([this, &worker] { serve(worker); });
    }
  } catch (const std::system_error&) {
    workers_.pop_back();  // the one without a thread
    stop();
    throw Error(EDGELLM_FAILED, "the system gives no " + std::to_string(count) + " threads", "Ask for fewer threads.");
  }
}

Threads::~Threads() { stop(); }

void Threads::stop() {
  stopping_ = true;
  for (const auto& worker : workers_) call(*worker);
  for (const auto& worker : workers_) worker->thread.join();
}

Pool Threads::pool() {
  return {this, [](void* self, void (*task)(void*, size_t), size_t count, void* data) {
            static_cast<Threads*>(self)->run(task, count, data);
          }};
}

void Threads::call(Worker& worker) {
  worker.ticket.store(number_.load(std::memory_order_relaxed) | 1);
  if (!worker.asleep.load()) return;
  { const std::lock_guard<std::mutex> lock(worker.mutex); }
  worker.wake.notify_one();
}

void Threads::take_tasks() {
  for (size_t i; (i = job_.next.fetch_add(1, std::memory_order_relaxed)) < job_.count;) job_.task(job_.data, i);
}

void Threads::run(void (*task)(void*, size_t), size_t count, void* data) {
  const int others = std::min<int>(active_ - 1, int(std::min<size_t>(count, size_t(workers_.size()) + 1)) - 1);
  if (others < 1) {
    for (size_t i = 0; i < count; ++i) task(data, i);
    return;
  }
  job_.task = task, job_.count = count, job_.data = data;
  job_.next.store(0, std::memory_order_relaxed);
  number_.fetch_add(1);  // open: whoever sees it sees the job
  for (int i = 0; i < others; ++i) call(*workers_[size_t(i)]);
  take_tasks();
  number_.fetch_add(1);  // closed: who comes now finds nothing, who came before is waited for
  for (int looks = 0; inside_.load() > 0; ++looks) looks < kAwake ? rest() : std::this_thread::yield();
}

void Threads::serve(Worker& worker) {
  uint32_t served = 0;
  const auto called = [&] { return worker.ticket.load() != served; };
  for (;;) {
    const Clock::time_point until = Clock::now() + kAwakeFor;
    while (!called()) {
      for (int looks = 0; looks < kLooks && !called(); ++looks) edgellm::rest();
      if (called() || Clock::now() < until) continue;
      std::unique_lock<std::mutex> lock(worker.mutex);
      worker.asleep = true;
      worker.wake.wait(lock, called);
      worker.asleep = false;
    }
    served = worker.ticket.load();
    if (stopping_) return;
    inside_.fetch_add(1);
    if (number_.load() % 2) take_tasks();
    inside_.fetch_sub(1, std::memory_order_release);
  }
}

// Seconds that the threads in use have run so far, together.
double Threads::ran() const {
  double sum = seconds_of(CLOCK_THREAD_CPUTIME_ID);
  for (int i = 0; i + 1 < active_; ++i) {
    clockid_t clock;
    if (pthread_getcpuclockid(workers_[size_t(i)]->thread.native_handle(), &clock) == 0) sum += seconds_of(clock);
  }
  return sum;
}

Threads::Watch::Watch(Threads& threads) : threads_(threads) {
  if (threads.workers_.empty()) return;
  begin_ = seconds_of(CLOCK_MONOTONIC);
  threads.active_ = threads.crowd_.threads(begin_);
  ran_ = threads.ran();
}

Threads::Watch::~Watch() {
  if (threads_.workers_.empty()) return;
  const double end = seconds_of(CLOCK_MONOTONIC), wall = end - begin_;
  threads_.crowd_.saw(wall, wall * threads_.active_ - (threads_.ran() - ran_), end);
}

}  // namespace edgellm

// The threads that operators run on where ONNX Runtime is not there to lend its own.
//
// A thread that has nothing to do stays awake for a moment, then sleeps. Nobody waits for one that has not come: whoever
// is there takes its tasks. How many are asked to come is the crowd's to say (crowd.h).
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/cpu/parallel.h"
#include "kernels/engine/crowd.h"

namespace edgellm {

class Threads {
 public:
  // count: the calling thread and count - 1 more. Throws Error where the system gives no threads.
  explicit Threads(int count);
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;
  ~Threads();

  // For operators; not to be used by two callers at once.
  Pool pool();

  // Around a piece of work in which all threads are busy all the time: what they were kept from decides how many the next
  // one gets.
  class Watch {
   public:
    explicit Watch(Threads& threads);
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;
    ~Watch();

   private:
    Threads& threads_;
    double begin_ = 0, ran_ = 0;  // seconds
  };

 private:
  struct Worker {
    std::atomic<uint32_t> ticket{0};  // the last job it was called to
    std::atomic<bool> asleep{false};
    std::mutex mutex;
    std::condition_variable wake;
    std::thread thread;
  };
  struct Job {
    void (*task)(void* data, size_t index);
    size_t count;
    void* data;
    std::atomic<size_t> next{0};
  };

  void run(void (*task)(void*, size_t), size_t count, void* data);
  void take_tasks();
  void serve(Worker& worker);
  void call(Worker& worker);
  void stop();
  double ran() const;

  std::vector<std::unique_ptr<Worker>> workers_;
  Job job_;
  std::atomic<uint32_t> number_{0};  // of the job; odd while it is open
  std::atomic<int> inside_{0};       // workers that may be looking at it
  std::atomic<bool> stopping_{false};
  Crowd crowd_;
  int active_;
};

}  // namespace edgellm

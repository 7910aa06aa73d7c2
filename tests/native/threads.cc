// The engine's threads: every task once, phases one after the other, and how many threads a crowd leaves. Prints what failed;
// exit code 1 then. Built with ThreadSanitizer by tests/kernels/test_threads.py.
#include <chrono>
#include <cstdio>
#include <vector>

#include "kernels/cpu/phases.h"
#include "kernels/engine/threads.h"

using namespace edgellm;

namespace {

int failures = 0;

void expect(bool condition, const char* what) {
  if (!condition) std::printf("failed: %s\n", what), ++failures;
}

void every_task_runs_once(int count) {
  Threads threads(count);
  for (size_t job = 0; job < 600; ++job) {
    std::vector<int> runs(job % 23);
    const Threads::Watch watch(threads);
    auto task = [&](size_t i) { ++runs[i]; };
    parallel(threads.pool(), runs.size(), task);
    for (int times : runs) expect(times == 1, "a task ran another number of times than once");
    if (job % 100 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));  // they fall asleep
  }
}

// Each phase sums up what all parts of the last one wrote.
struct Chain {
  static constexpr int64_t kParts = 37;
  std::vector<int64_t> last = std::vector<int64_t>(kParts, 1), next = std::vector<int64_t>(kParts);
  int64_t begin(int phase) {
    if (phase) last.swap(next);
    return phase % 3 == 2 ? 0 : kParts;  // some have nothing to do
  }
  void part(int, int64_t i) {
    int64_t sum = 0;
    for (int64_t value : last) sum += value % 1009;
    next[size_t(i)] = sum + i;
  }
  Soon soon(int, int64_t, int64_t) const { return {nullptr, 0}; }
};

void phases_follow_each_other(int count) {
  Threads threads(count);
  for (int time = 0; time < 100; ++time) {
    Chain chain, expected;
    in_phases(threads.pool(), 8, chain);
    in_phases(kCaller, 8, expected);
    expect(chain.next == expected.next && chain.last == expected.last, "phases met");
  }
}

// Two threads for `seconds`: pieces of work that take so long with two threads and with one, of which two lose `lost`.
// Returns the share of the time that two were used.
double share_of_two(Crowd& crowd, double& time, double seconds, double two, double one, double lost) {
  const double begin = time;
  double with_two = 0;
  while (time < begin + seconds) {
    const int threads = crowd.threads(time);
    const double wall = threads == 2 ? two : one;
    time += wall, with_two += threads == 2 ? wall : 0;
    crowd.saw(wall, threads == 2 ? lost * wall : 0, time);
  }
  return with_two / (time - begin);
}

void a_crowd() {
  Crowd crowd(2);
  double time = 5;
  expect(share_of_two(crowd, time, 10, 0.004, 0.007, 0.02) > 0.999, "alone, both threads work");
  expect(share_of_two(crowd, time, 10, 0.010, 0.007, 0.6) < 0.15, "where one is faster alone, it stays alone");
  expect(share_of_two(crowd, time, 5, 0.004, 0.007, 0.02) > 0.15, "when the neighbour has gone, both work again");
  expect(share_of_two(crowd, time, 10, 0.004, 0.007, 0.02) > 0.999, "and go on");
  expect(share_of_two(crowd, time, 20, 0.006, 0.007, 0.3) > 0.9, "where two are faster though held up, they are used");
  Crowd one(1);
  expect(one.threads(0) == 1, "one thread stays one");
  for (int i = 0; i < 100; ++i) one.saw(0.01, 0.01, 0.01 * i);
  expect(one.threads(1) == 1, "one thread stays one in a crowd");
}

}  // namespace

int main() {
  for (int count : {1, 2, 3, 8}) every_task_runs_once(count), phases_follow_each_other(count);
  a_crowd();
  return failures ? 1 : 0;
}

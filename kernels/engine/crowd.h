// How many threads to use where other programs want the cores too.
//
// Threads that share work wait for one another. One that a busy neighbour puts off its core in the middle of a task holds up
// all for a time slice, thousands of times what the task takes; without it the others may be faster. Whether they are is tried:
// when threads lose more than a little of their time, a window of work is done with one thread fewer, and the faster of
// both is kept for a while, longer each time it is found again.
#pragma once
#include <algorithm>

namespace edgellm {

class Crowd {
 public:
  // most: threads there are.
  explicit Crowd(int most) : most_(most), now_(most) {}

  // How many the next piece of work gets, at `time` in seconds from anywhere.
  int threads(double time) {
    if (now_ < most_ && !trying_ && time >= until_) ++now_;
    return now_;
  }

  // A piece of work that took `wall` seconds, during which its threads were kept from running for `lost`, added up.
  void saw(double wall, double lost, double time) {
    wall_ += wall, lost_ += std::max(0.0, lost), ++pieces_;
    if (wall_ < kWindow) return;
    const double pace = wall_ / pieces_;
    const bool held_up = lost_ > kHeldUp * wall_;
    wall_ = lost_ = 0, pieces_ = 0;
    if (trying_) {
      trying_ = false;
      if (pace > before_) ++now_;
      until_ = time + rest_;
      rest_ = std::min(kLongest, 2 * rest_);
    } else if (held_up && now_ > 1 && time >= until_) {
      trying_ = true, before_ = pace, --now_;
    } else if (!held_up && now_ == most_) {
      rest_ = std::max(kShortest, rest_ / 2);
    }
  }

 private:
  static constexpr double kWindow = 0.03;   // seconds of work judged together
  static constexpr double kHeldUp = 0.15;   // of a window: less may be chance, and is what a thread would be worth
  static constexpr double kShortest = 0.25, kLongest = 4;  // seconds until it is tried again

  const int most_;
  int now_, pieces_ = 0;
  bool trying_ = false;
  double wall_ = 0, lost_ = 0, before_ = 0, until_ = 0, rest_ = kShortest;
};

}  // namespace edgellm

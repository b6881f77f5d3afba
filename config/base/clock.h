// Time as a dependency, so that scheduling, deadlines and rate limits are tested without sleeping.
#pragma once

#include <cstdint>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace longstride {

class Clock {
 public:
  virtual ~Clock() = default;
  // Wall-clock time; deadlines and log lines.
  virtual absl::Time Now() const = 0;
  // Nanoseconds of a monotonic clock with an arbitrary origin; durations.
  virtual int64_t MonotonicNanos() const = 0;

  // The machine's clock. Never null; lives for the whole process.
  static const Clock* Real();
};

// A clock that moves only when told to. Not thread-safe.
class FakeClock : public Clock {
 public:
  explicit FakeClock(absl::Time start = absl::UnixEpoch() + absl::Hours(24 * 365 * 50))
      : start_(start) {}
  absl::Time Now() const override { return start_ + absl::Nanoseconds(elapsed_nanos_); }
  int64_t MonotonicNanos() const override { return elapsed_nanos_; }
  void Advance(absl::Duration d) { elapsed_nanos_ += absl::ToInt64Nanoseconds(d); }

 private:
  absl::Time start_;
  int64_t elapsed_nanos_ = 0;
};

}  // namespace longstride

// An append-only file of what was asked and answered (audit_chain.h has its form). One thread
// writes the records that have gathered, in one piece, and syncs once; who waits for a record
// learns when it is on disk.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "config/base/clock.h"
#include "config/base/status.h"
#include "server/frontend/audit_chain.h"
#include "server/frontend/observer.h"

namespace longstride::frontend {

struct AuditOptions {
  std::string file;
  bool text = false;               // record prompts and answers as text
  bool refuse_on_failure = true;   // new requests, while records cannot be written
  int64_t queue_bytes = 64 << 20;  // of records that may wait for the file
};

// Thread-safe.
class AuditLog {
 public:
  // Continues the file's chain, or begins one. INVALID_ARGUMENT: it is no regular file, cannot be
  // opened, another process holds it, its last record was changed, or it cannot be written now.
  // A line that a crash cut off is closed and reported in the log.
  static absl::StatusOr<std::unique_ptr<AuditLog>> Open(AuditOptions options, const Clock* clock,
                                                        FrontendObserver* observer);
  // Ends the log with a record of kind "stop", if the file takes it.
  ~AuditLog();
  AuditLog(const AuditLog&) = delete;
  AuditLog& operator=(const AuditLog&) = delete;

  // `data`: a JSON object. `done` is called once, from the writing thread: when the record is on
  // disk, or when it turned out that it cannot be for now. Records of kind "request" beyond
  // queue_bytes are lost; how many, a record of kind "gap" says as soon as one can be written.
  void Append(std::string_view kind, std::string data, std::function<void()> done = nullptr);
  // UNAVAILABLE while records cannot be written and requests are to be refused for it.
  absl::Status Accepting() const;
  bool text() const { return options_.text; }

 private:
  struct Entry {
    absl::Time time;
    std::string kind;
    std::string data;
    std::function<void()> done;
  };

  AuditLog(AuditOptions options, int fd, const Clock* clock, FrontendObserver* observer)
      : options_(std::move(options)), fd_(fd), clock_(clock), observer_(observer) {}
  // Finds the chain's end and closes a line that was cut off.
  absl::Status Continue();
  void Run();
  // Moves what waits into buffer_. Needs the lock.
  void EncodeQueue();
  // Writes and syncs the buffer. The writing thread alone.
  absl::Status Flush();
  // Takes the outcome of a flush. Needs the lock.
  void Judge(const absl::Status& status, double seconds);

  const AuditOptions options_;
  const int fd_;
  const Clock* const clock_;
  FrontendObserver* const observer_;

  // The writing thread's.
  AuditTail tail_;
  int64_t size_ = 0;         // the file's, as far as this process wrote it
  std::string buffer_;       // lines under way
  std::size_t written_ = 0;  // of the buffer
  absl::Status broken_;      // what no retry mends

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Entry> queue_;
  int64_t queued_bytes_ = 0;  // of the queue and the buffer
  int64_t buffered_records_ = 0;
  int64_t lost_ = 0;
  absl::Status failure_;  // of the last attempt
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace longstride::frontend

#include "server/frontend/audit_log.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <utility>

#include "config/base/logging.h"
#include "server/frontend/error_mapping.h"

namespace longstride::frontend {
namespace {

constexpr std::string_view kRequest = "request";
constexpr auto kRetry = std::chrono::seconds(1);
constexpr int64_t kEntryBytes = 300;  // of a line, around its data

absl::Status Errno(std::string_view what) {
  return absl::UnavailableError(StrCat(what, ": ", std::strerror(errno)));
}

absl::Status Refused(const AuditOptions& options, std::string_view why) {
  return absl::InvalidArgumentError(StrCat("audit.file \"", options.file, "\" ", why));
}

// A file that was created is there after a crash only once its folder is on disk.
absl::Status SyncFolder(const std::string& file) {
  const std::string folder = std::filesystem::absolute(file).parent_path().string();
  const int fd = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return Errno("its folder cannot be opened");
  const bool synced = fsync(fd) == 0;
  const absl::Status status = synced ? absl::OkStatus() : Errno("its folder cannot be synced");
  close(fd);
  return status;
}

// The file's last bytes: at least one whole line and what follows it, or all.
absl::StatusOr<std::string> ReadEnd(int fd, int64_t size) {
  for (int64_t count = 64 << 10;; count *= 4) {
    const int64_t begin = std::max<int64_t>(0, size - count);
    std::string text(static_cast<std::size_t>(size - begin), '\0');
    std::size_t have = 0;
    while (have < text.size()) {
      const ssize_t got =
          pread(fd, text.data() + have, text.size() - have, begin + static_cast<int64_t>(have));
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) return Errno("it cannot be read");
      have += static_cast<std::size_t>(got);
    }
    const std::size_t last = text.rfind('\n');
    const bool whole =
        last != std::string::npos && last > 0 && text.rfind('\n', last - 1) != std::string::npos;
    if (begin == 0 || whole) return text;
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<AuditLog>> AuditLog::Open(AuditOptions options, const Clock* clock,
                                                         FrontendObserver* observer) {
  const int fd = open(options.file.c_str(), O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC | O_NONBLOCK,
                      S_IRUSR | S_IWUSR | S_IRGRP);
  if (fd < 0) return Refused(options, StrCat("cannot be opened: ", std::strerror(errno)));
  std::unique_ptr<AuditLog> log(new AuditLog(std::move(options), fd, clock, observer));
  struct stat facts {};
  if (fstat(fd, &facts) != 0 || !S_ISREG(facts.st_mode)) {
    return Refused(log->options_,
                   "is no regular file; name one, it is created where it is not there");
  }
  if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    return Refused(log->options_,
                   "is held by another process; every server needs a file of its own");
  }
  log->size_ = facts.st_size;
  RETURN_IF_ERROR(log->Continue());
  log->thread_ = std::thread([raw = log.get()] { raw->Run(); });
  return log;
}

absl::Status AuditLog::Continue() {
  auto end = ReadEnd(fd_, size_);
  if (!end.ok()) return Refused(options_, ToStd(end.status().message()));
  const std::size_t newline = end->rfind('\n');
  const std::string cut_off = newline == std::string::npos ? *end : end->substr(newline + 1);
  if (newline != std::string::npos) {
    const std::size_t before = newline == 0 ? std::string::npos : end->rfind('\n', newline - 1);
    const std::size_t begin = before == std::string::npos ? 0 : before + 1;
    const auto last = ReadAuditLine(std::string_view(*end).substr(begin, newline - begin));
    if (!last.has_value()) {
      return Refused(options_,
                     "ends with a line that is no audit record or was changed; `longstride audit "
                     "verify` says more, and a server continues only a chain that is whole: move "
                     "the file away to begin a new one");
    }
    tail_ = {.seq = last->seq, .hash = last->hash};
  }
  if (!cut_off.empty()) {
    const auto whole = ReadAuditLine(cut_off);
    if (whole.has_value() && whole->prev == tail_.hash) {
      tail_ = {.seq = whole->seq, .hash = whole->hash};
      buffer_.push_back('\n');
    } else {
      buffer_ = AuditSeal(cut_off, &tail_);
      Log(LogLevel::kWarning, "the audit log's last line was cut off; it stays, closed as torn",
          {{"line", tail_.seq}, {"bytes", static_cast<int64_t>(cut_off.size())}});
    }
  }
  const absl::Status written = Flush();
  if (!written.ok()) return Refused(options_, ToStd(written.message()));
  const absl::Status synced = SyncFolder(options_.file);
  return synced.ok() ? synced : Refused(options_, ToStd(synced.message()));
}

AuditLog::~AuditLog() {
  if (thread_.joinable()) {
    Append("stop", "{}");
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    thread_.join();
    if (const int64_t left = buffered_records_ + lost_; left > 0) {
      Log(LogLevel::kError, "records of the audit log were never written", {{"records", left}});
    }
  }
  close(fd_);
}

void AuditLog::Append(std::string_view kind, std::string data, std::function<void()> done) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const int64_t bytes = static_cast<int64_t>(data.size()) + kEntryBytes;
    const bool fits =
        kind != kRequest || queued_bytes_ == 0 || queued_bytes_ + bytes <= options_.queue_bytes;
    if (fits) {
      queued_bytes_ += bytes;
    } else {
      ++lost_;
      observer_->AuditLost(1);
    }
    // A record that is lost still has its turn: somebody waits for it.
    queue_.push_back({clock_->Now(), fits ? std::string(kind) : std::string(),
                      fits ? std::move(data) : std::string(), std::move(done)});
  }
  wake_.notify_all();
}

absl::Status AuditLog::Accepting() const {
  std::lock_guard<std::mutex> lock(mutex_);
  if (failure_.ok() || !options_.refuse_on_failure) return absl::OkStatus();
  return WithRetryAfter(
      absl::UnavailableError("the audit log cannot be written, and this server answers only what "
                             "it can record; retry on another replica"),
      5);
}

void AuditLog::EncodeQueue() {
  const auto add = [&](absl::Time time, std::string_view kind, std::string_view data) {
    buffer_ += AuditLine(time, kind, data, &tail_);
    ++buffered_records_;
  };
  const auto add_gap = [&] {
    if (lost_ > 0) add(clock_->Now(), "gap", StrCat("{\"lost\":", std::exchange(lost_, 0), "}"));
  };
  for (const Entry& entry : queue_) {
    if (entry.kind != kRequest) add_gap();
    add(entry.time, entry.kind, entry.data);
  }
  queue_.clear();
  add_gap();
}

absl::Status AuditLog::Flush() {
  RETURN_IF_ERROR(broken_);
  struct stat facts {};
  if (fstat(fd_, &facts) != 0) return Errno("it cannot be looked at");
  if (facts.st_nlink == 0) {
    return broken_ = absl::UnavailableError("it was deleted; restart the server to begin another");
  }
  if (facts.st_size != size_) {
    return broken_ = absl::UnavailableError(
               "its size changed by another hand; restart the server to go on at its end");
  }
  while (written_ < buffer_.size()) {
    const ssize_t count = write(fd_, buffer_.data() + written_, buffer_.size() - written_);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return Errno("it cannot be written");
    written_ += static_cast<std::size_t>(count);
    size_ += count;
  }
  // After a failed sync the kernel may forget what was not written: a later success says nothing.
  if (fdatasync(fd_) != 0) return broken_ = Errno("it cannot be synced; restart the server");
  buffer_.clear();
  written_ = 0;
  return absl::OkStatus();
}

void AuditLog::Judge(const absl::Status& status, double seconds) {
  if (status.ok()) {
    if (!failure_.ok()) Log(LogLevel::kWarning, "the audit log can be written again");
    observer_->AuditCommitted(buffered_records_, seconds);
    buffered_records_ = 0;
    queued_bytes_ = 0;
    for (const Entry& entry : queue_) {
      queued_bytes_ += static_cast<int64_t>(entry.data.size()) + kEntryBytes;
    }
  } else {
    observer_->AuditFailed();
    if (failure_.ok()) {
      Log(LogLevel::kError, "the audit log cannot be written",
          {{"why", ToStd(status.message())},
           {"new_requests", options_.refuse_on_failure ? "refused" : "served"}});
    }
  }
  failure_ = status;
}

void AuditLog::Run() {
  std::unique_lock<std::mutex> lock(mutex_);
  auto retry_at = std::chrono::steady_clock::now();
  for (bool last = false; !last;) {
    // While nothing can be written, records wait, but nobody waits for them.
    const auto due = [&] {
      if (stop_) return true;
      for (const Entry& entry : queue_) {
        if (failure_.ok() || entry.done != nullptr || entry.kind.empty()) return true;
      }
      return false;
    };
    if (failure_.ok()) {
      wake_.wait(lock, due);
    } else {
      wake_.wait_until(lock, retry_at, due);
    }
    last = stop_;
    std::vector<std::function<void()>> done;
    for (Entry& entry : queue_) {
      if (entry.done != nullptr) done.push_back(std::exchange(entry.done, nullptr));
    }
    std::erase_if(queue_, [](const Entry& entry) { return entry.kind.empty(); });
    if (failure_.ok() || last || std::chrono::steady_clock::now() >= retry_at) {
      EncodeQueue();
      lock.unlock();
      const int64_t start = Clock::Real()->MonotonicNanos();
      const absl::Status status = Flush();
      const double seconds = static_cast<double>(Clock::Real()->MonotonicNanos() - start) * 1e-9;
      lock.lock();
      Judge(status, seconds);
      retry_at = std::chrono::steady_clock::now() + kRetry;
    }
    observer_->AuditPending(buffered_records_ + static_cast<int64_t>(queue_.size()));
    lock.unlock();
    for (const auto& call : done) call();
    lock.lock();
  }
}

}  // namespace longstride::frontend

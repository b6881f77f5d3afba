// The lines of an audit log. Record N is line N:
//
//   {"seq":N,"time":"2026-11-26T23:12:02.123456Z","kind":"request","data":{…},"prev":"P","hash":"H"}
//
// P is the hash of line N-1 (64 zeros for the first), H the SHA-256 of the line up to `,"hash"`:
// who changes, removes or reorders a line must write all that follow anew, and then the last hash
// is not the one that was noted elsewhere. Bytes that a crash cut off stay as they are and are
// closed by
// `,"torn":N,"prev":"P","hash":"H"}`, the only lines that may be no JSON.
#pragma once

#include <cstdint>
#include <istream>
#include <optional>
#include <string>
#include <string_view>

#include "absl/time/time.h"
#include "config/base/status.h"

namespace longstride::frontend {

// Where a chain ends.
struct AuditTail {
  int64_t seq = 0;
  std::string hash = std::string(64, '0');
};

// The line that follows `tail`, newline included; `tail` moves to it. `data`: a JSON object.
std::string AuditLine(absl::Time time, std::string_view kind, std::string_view data,
                      AuditTail* tail);
// What closes a line that was cut off, newline included; `tail` moves to it.
std::string AuditSeal(std::string_view cut_off, AuditTail* tail);

struct AuditLink {
  int64_t seq = 0;
  std::string prev;
  std::string hash;
  bool torn = false;
};
// Of a line (without its newline) that has the form of a record and the hash of its bytes.
std::optional<AuditLink> ReadAuditLine(std::string_view line);

struct AuditSummary {
  AuditTail tail;
  int64_t torn = 0;        // lines that were cut off and closed
  int64_t after_head = 0;  // records behind the one with the hash asked for
};
// DATA_LOSS names the first line that is not as it was written, or says that no record has the hash
// `head` ("": not asked for).
absl::StatusOr<AuditSummary> VerifyAuditLog(std::istream& in, std::string_view head = "");

}  // namespace longstride::frontend

#include "server/frontend/audit_chain.h"

#include <charconv>

#include "model/sparsity/hash.h"
#include "server/frontend/json_writer.h"

namespace longstride::frontend {
namespace {

constexpr std::string_view kHash = ",\"hash\":\"";
constexpr std::string_view kPrev = ",\"prev\":\"";
constexpr std::string_view kTorn = ",\"torn\":";
constexpr std::string_view kSeq = "{\"seq\":";
constexpr std::size_t kHexDigits = 64;

// Appends prev and hash to what `line` holds of the record, and moves the tail.
void Close(std::string* line, AuditTail* tail) {
  StrAppend(line, kPrev, tail->hash, "\"");
  tail->hash = model::Sha256Hex(*line);
  ++tail->seq;
  StrAppend(line, kHash, tail->hash, "\"}\n");
}

// Takes `mark`, 64 digits and `end` from the back of `text`.
std::optional<std::string> TakeDigest(std::string_view mark, std::string_view end,
                                      std::string_view* text) {
  const std::size_t size = mark.size() + kHexDigits + end.size();
  if (text->size() < size || !text->ends_with(end)) return std::nullopt;
  const std::string_view taken = text->substr(text->size() - size);
  if (!taken.starts_with(mark)) return std::nullopt;
  text->remove_suffix(size);
  return std::string(taken.substr(mark.size(), kHexDigits));
}

// A whole number at the front of `text`, which nothing or `end` follows.
std::optional<int64_t> ReadNumber(std::string_view text, std::string_view end) {
  int64_t number = 0;
  const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc()) return std::nullopt;
  text.remove_prefix(static_cast<std::size_t>(rest - text.data()));
  if (end.empty() ? !text.empty() : !text.starts_with(end)) return std::nullopt;
  return number;
}

absl::Status Broken(int64_t line, std::string_view what) {
  return absl::DataLossError(StrCat("line ", line, " ", what));
}

}  // namespace

std::string AuditLine(absl::Time time, std::string_view kind, std::string_view data,
                      AuditTail* tail) {
  std::string line =
      StrCat(kSeq, tail->seq + 1, ",\"time\":\"",
             absl::FormatTime("%Y-%m-%dT%H:%M:%E6SZ", time, absl::UTCTimeZone()), "\",\"kind\":");
  AppendJsonString(kind, &line);
  StrAppend(&line, ",\"data\":", data);
  Close(&line, tail);
  return line;
}

std::string AuditSeal(std::string_view cut_off, AuditTail* tail) {
  std::string line = StrCat(cut_off, kTorn, tail->seq + 1);
  Close(&line, tail);
  return line.substr(cut_off.size());
}

std::optional<AuditLink> ReadAuditLine(std::string_view line) {
  AuditLink link;
  const auto hash = TakeDigest(kHash, "\"}", &line);
  if (!hash.has_value() || model::Sha256Hex(line) != *hash) return std::nullopt;
  const auto prev = TakeDigest(kPrev, "\"", &line);
  if (!prev.has_value()) return std::nullopt;
  // Data ends with a brace: no other line ends with the number of a torn one.
  const std::size_t torn = line.rfind(kTorn);
  std::optional<int64_t> seq;
  if (torn != std::string_view::npos) seq = ReadNumber(line.substr(torn + kTorn.size()), "");
  link.torn = seq.has_value();
  if (!seq.has_value() && line.starts_with(kSeq)) seq = ReadNumber(line.substr(kSeq.size()), ",");
  if (!seq.has_value()) return std::nullopt;
  link.seq = *seq;
  link.prev = *prev;
  link.hash = *hash;
  return link;
}

absl::StatusOr<AuditSummary> VerifyAuditLog(std::istream& in, std::string_view head) {
  AuditSummary summary;
  bool head_found = head.empty() || head == summary.tail.hash;
  std::string line;
  while (std::getline(in, line)) {
    const int64_t number = summary.tail.seq + 1;
    if (in.eof()) {
      return Broken(number,
                    "is cut off: the server ended while it wrote it, or its end was removed");
    }
    const auto link = ReadAuditLine(line);
    if (!link.has_value()) return Broken(number, "was changed: it has not the hash of its bytes");
    if (link->prev != summary.tail.hash) {
      return Broken(number, number == 1
                                ? "is not the first of a log: lines before it were removed"
                                : "does not follow the line before it: lines were removed, put in "
                                  "or reordered, or the line before was written anew");
    }
    if (link->seq != number) {
      return Broken(number, StrCat("has the sequence number ", link->seq));
    }
    if (head_found && !head.empty()) ++summary.after_head;
    if (link->hash == head) head_found = true;
    summary.torn += link->torn ? 1 : 0;
    summary.tail = {.seq = link->seq, .hash = link->hash};
  }
  if (in.bad()) return absl::DataLossError("it could not be read to its end");
  if (!head_found) {
    return absl::DataLossError(StrCat("its ", summary.tail.seq,
                                      " records are a whole chain, but none has the hash ", head,
                                      ": its end was removed, or all of it was written anew"));
  }
  return summary;
}

}  // namespace longstride::frontend

// Structured logging over spdlog, which stays behind this header (nvcc cannot compile it, and it
// costs seconds a translation unit).
//
//   Log(LogLevel::kInfo, "request finished", {{"request_id", id}, {"tokens", 12}});
//
// Human format:  2026-01-02T03:04:05.678Z INFO  request finished request_id=r-1 tokens=12
// JSON format:   {"time":"…","level":"info","message":"request finished","request_id":"r-1",…}
//
// Prompts and completions are never passed to Log unless `log.prompts` is on.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <variant>

namespace longstride {

enum class LogLevel { kDebug, kInfo, kWarning, kError };
enum class LogFormat { kHuman, kJson };

struct LogField {
  std::string_view name;
  std::variant<std::string, int64_t, double, bool> value;

  LogField(std::string_view n, std::string_view v) : name(n), value(std::string(v)) {}
  LogField(std::string_view n, const std::string& v) : name(n), value(v) {}
  LogField(std::string_view n, const char* v) : name(n), value(std::string(v)) {}
  LogField(std::string_view n, bool v) : name(n), value(v) {}
  LogField(std::string_view n, double v) : name(n), value(v) {}
  LogField(std::string_view n, int v) : name(n), value(static_cast<int64_t>(v)) {}
  LogField(std::string_view n, int64_t v) : name(n), value(v) {}
  LogField(std::string_view n, uint64_t v) : name(n), value(static_cast<int64_t>(v)) {}
};

// Sets level and format for the process (writes to stderr). Call once, from main.
void InitLogging(LogLevel level, LogFormat format);

// Thread-safe; never throws; control characters in values are escaped.
void Log(LogLevel level, std::string_view message, std::initializer_list<LogField> fields = {});

}  // namespace longstride

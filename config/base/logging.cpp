#include "config/base/logging.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace longstride {
namespace {

std::atomic<LogFormat> g_format{LogFormat::kHuman};

spdlog::logger& Logger() {
  static const std::shared_ptr<spdlog::logger> logger = [] {
    auto made = std::make_shared<spdlog::logger>(
        "longstride", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_pattern("%v");
    made->flush_on(spdlog::level::info);
    return made;
  }();
  return *logger;
}

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug: return spdlog::level::debug;
    case LogLevel::kInfo: return spdlog::level::info;
    case LogLevel::kWarning: return spdlog::level::warn;
    case LogLevel::kError: return spdlog::level::err;
  }
  return spdlog::level::info;
}

const char* LevelName(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug: return "debug";
    case LogLevel::kInfo: return "info";
    case LogLevel::kWarning: return "warning";
    case LogLevel::kError: return "error";
  }
  return "info";
}

nlohmann::ordered_json ToJson(const LogField& field) {
  return std::visit([](const auto& v) { return nlohmann::ordered_json(v); }, field.value);
}

std::string Dump(const nlohmann::ordered_json& value) {
  return value.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

// Values with blanks, quotes or control characters are written as JSON strings.
std::string HumanValue(const LogField& field) {
  const auto* text = std::get_if<std::string>(&field.value);
  if (text == nullptr) return Dump(ToJson(field));
  for (unsigned char c : *text) {
    if (c <= ' ' || c == '"' || c == 0x7f) return Dump(ToJson(field));
  }
  return *text;
}

}  // namespace

void InitLogging(LogLevel level, LogFormat format) {
  g_format = format;
  Logger().set_level(ToSpdlog(level));
}

void Log(LogLevel level, std::string_view message, std::initializer_list<LogField> fields) {
  if (!Logger().should_log(ToSpdlog(level))) return;
  const std::string time =
      absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(), absl::UTCTimeZone());
  std::string line;
  if (g_format == LogFormat::kJson) {
    nlohmann::ordered_json object;
    object["time"] = time;
    object["level"] = LevelName(level);
    object["message"] = std::string(message);
    for (const LogField& field : fields) object[std::string(field.name)] = ToJson(field);
    line = Dump(object);
  } else {
    line = absl::StrFormat("%s %-7s %s", time, LevelName(level), message);
    for (const LogField& field : fields) {
      absl::StrAppend(&line, " ", std::string(field.name), "=", HumanValue(field));
    }
  }
  Logger().log(ToSpdlog(level), line);
}

}  // namespace longstride

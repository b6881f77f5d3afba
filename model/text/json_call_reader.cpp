#include "model/text/json_call_reader.h"

#include <nlohmann/json.hpp>
#include <utility>

namespace longstride::model {
namespace {

bool IsBlank(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }

// The text that a JSON string stands for; nullopt for other values.
std::optional<std::string> StringOf(std::string_view json) {
  const auto parsed = nlohmann::json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_string()) return std::nullopt;
  return parsed.get<std::string>();
}

}  // namespace

std::string JsonCallReader::TakeArguments() { return std::exchange(arguments_, std::string()); }

JsonCallReader::State JsonCallReader::EndOfObject() {
  if (!name_.has_value() || name_->empty()) return State::kBad;
  if (!has_arguments_) {
    has_arguments_ = true;
    arguments_ = "{}";
  }
  return State::kDone;
}

// `key_` and `value_` are complete.
JsonCallReader::State JsonCallReader::EndOfValue() {
  at_ = At::kCommaOrEnd;
  const std::string key = StringOf(key_).value_or("");
  const bool is_arguments = key == "arguments" || key == "parameters";
  if (streaming_) {
    streaming_ = false;
    return State::kMore;
  }
  if (key == "name" || key == "tool_name") {
    if (name_.has_value()) return State::kBad;
    name_ = StringOf(value_);
    return name_.has_value() ? State::kMore : State::kBad;
  }
  if (key == "id" || key == "tool_call_id") {
    id_ = StringOf(value_).value_or(value_);
  } else if (is_arguments) {
    if (has_arguments_) return State::kBad;
    if (value_ == "null") return State::kMore;
    const std::optional<std::string> text = StringOf(value_);
    const auto parsed = nlohmann::json::parse(text.value_or(""), nullptr, /*allow_exceptions=*/false);
    if (!parsed.is_object()) return State::kBad;
    has_arguments_ = true;
    arguments_ = *text;
  }
  return State::kMore;
}

JsonCallReader::State JsonCallReader::Feed(char c) {
  switch (at_) {
    case At::kStart:
      if (IsBlank(c)) return State::kMore;
      if (c != '{') return State::kBad;
      at_ = At::kKeyOrEnd;
      return State::kMore;
    case At::kKeyOrEnd:
    case At::kKey:
      if (IsBlank(c)) return State::kMore;
      if (c == '}' && at_ == At::kKeyOrEnd) return EndOfObject();
      if (c != '"') return State::kBad;
      key_.clear();
      scanner_ = JsonScanner();
      at_ = At::kInKey;
      [[fallthrough]];
    case At::kInKey: {
      const JsonScanner::State state = scanner_.Feed(c);
      if (state == JsonScanner::State::kBad) return State::kBad;
      key_ += c;
      if (state == JsonScanner::State::kDone) at_ = At::kColon;
      return State::kMore;
    }
    case At::kColon:
      if (IsBlank(c)) return State::kMore;
      if (c != ':') return State::kBad;
      at_ = At::kValue;
      return State::kMore;
    case At::kValue: {
      if (IsBlank(c)) return State::kMore;
      const std::string key = StringOf(key_).value_or("");
      if ((key == "arguments" || key == "parameters") && c == '{') {
        if (has_arguments_) return State::kBad;
        has_arguments_ = streaming_ = true;
      }
      value_.clear();
      scanner_ = JsonScanner();
      at_ = At::kInValue;
      [[fallthrough]];
    }
    case At::kInValue: {
      const JsonScanner::State state = scanner_.Feed(c);
      if (state == JsonScanner::State::kBad) return State::kBad;
      if (state == JsonScanner::State::kDoneBefore) {
        if (EndOfValue() == State::kBad) return State::kBad;
        return Feed(c);
      }
      (streaming_ ? arguments_ : value_) += c;
      return state == JsonScanner::State::kDone ? EndOfValue() : State::kMore;
    }
    case At::kCommaOrEnd:
      if (IsBlank(c)) return State::kMore;
      if (c == '}') return EndOfObject();
      if (c != ',') return State::kBad;
      at_ = At::kKey;
      return State::kMore;
  }
  return State::kBad;
}

}  // namespace longstride::model

#include "model/text/jinja/json_value.h"

#include <nlohmann/json.hpp>

#include "config/base/status.h"

namespace longstride::model::jinja {
namespace {

using Json = nlohmann::json;
constexpr size_t kMaxJsonDepth = 64;

// Receives the events of nlohmann's reader, which does not recurse.
class Builder {
 public:
  explicit Builder(Origin origin) : origin_(origin) {}

  Value Take() { return std::move(result_); }
  const std::string& error() const { return error_; }

  bool null() { return Add(Value(None{})); }
  bool boolean(bool value) { return Add(Value(value)); }
  bool number_integer(int64_t value) { return Add(Value(value)); }
  bool number_unsigned(uint64_t value) {
    return value <= INT64_MAX ? Add(Value(static_cast<int64_t>(value)))
                              : Add(Value(static_cast<double>(value)));
  }
  bool number_float(double value, const std::string&) { return Add(Value(value)); }
  bool string(std::string& value) { return Add(Value(Text(std::move(value), origin_))); }
  bool binary(Json::binary_t&) { return false; }
  bool start_object(size_t) { return Open(true); }
  bool key(std::string& value) {
    open_.back().key = Value(Text(std::move(value), origin_));
    return true;
  }
  bool end_object() { return Close(); }
  bool start_array(size_t) { return Open(false); }
  bool end_array() { return Close(); }
  bool parse_error(size_t position, const std::string&, const Json::exception&) {
    error_ = StrCat("invalid JSON at byte ", position);
    return false;
  }

 private:
  struct Container {
    bool is_object;
    Value key;
    Dict dict;
    std::vector<Value> items;
  };
  bool Add(Value value) {
    if (open_.empty()) {
      result_ = std::move(value);
    } else if (open_.back().is_object) {
      open_.back().dict.Set(std::move(open_.back().key), std::move(value));
    } else {
      open_.back().items.push_back(std::move(value));
    }
    return true;
  }
  bool Open(bool is_object) {
    if (open_.size() >= kMaxJsonDepth) {
      error_ = StrCat("JSON nested deeper than ", kMaxJsonDepth, " levels");
      return false;
    }
    open_.push_back({is_object, Value(), Dict(), {}});
    return true;
  }
  bool Close() {
    Container done = std::move(open_.back());
    open_.pop_back();
    absl::StatusOr<Value> value = done.is_object ? Value::MakeDict(std::move(done.dict))
                                                 : Value::MakeList(std::move(done.items));
    if (!value.ok()) {
      error_ = std::string(value.status().message());
      return false;
    }
    return Add(*std::move(value));
  }

  Origin origin_;
  std::vector<Container> open_;
  Value result_;
  std::string error_;
};

}  // namespace

absl::StatusOr<Value> ParseJson(std::string_view json, Origin origin, std::string_view what) {
  Builder builder(origin);
  if (!Json::sax_parse(json, &builder)) {
    return absl::InvalidArgumentError(StrCat(what, ": ", builder.error()));
  }
  return builder.Take();
}

}  // namespace longstride::model::jinja

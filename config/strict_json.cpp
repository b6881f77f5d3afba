#include "config/strict_json.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "config/nearest_name.h"

namespace longstride {
namespace {

using nlohmann::json;

// "line 3, column 7" of a byte offset.
std::string PlaceOf(std::string_view text, size_t offset) {
  offset = std::min(offset, text.size());
  const std::string_view before = text.substr(0, offset);
  const auto line = std::count(before.begin(), before.end(), '\n') + 1;
  const size_t newline = before.rfind('\n');
  const size_t column = newline == std::string_view::npos ? offset : offset - newline - 1;
  return StrCat("line ", line, ", column ", std::max<size_t>(column, 1));
}

// Builds the document while checking what nlohmann's own builder lets pass.
class Builder : public nlohmann::json_sax<json> {
 public:
  Builder(std::string_view text, std::string_view what, int max_depth)
      : text_(text), what_(what), max_depth_(max_depth) {}

  json Take() { return std::move(root_); }
  const absl::Status& status() const { return status_; }

  bool null() override { return Put(nullptr); }
  bool boolean(bool value) override { return Put(value); }
  bool number_integer(number_integer_t value) override { return Put(value); }
  bool number_unsigned(number_unsigned_t value) override { return Put(value); }
  bool number_float(number_float_t value, const string_t& text) override {
    // Integers beyond 64 bits arrive here; they would silently lose digits.
    if (text.find_first_of(".eE") == std::string::npos) {
      return Fail(StrCat("the number ", Quoted(text), " does not fit 64 bits"));
    }
    return Put(value);
  }
  bool string(string_t& value) override { return Put(std::move(value)); }
  bool binary(binary_t&) override { return Fail("binary values are not JSON"); }
  bool start_object(size_t) override { return Open(json::object()); }
  bool end_object() override { return Close(); }
  bool start_array(size_t) override { return Open(json::array()); }
  bool end_array() override { return Close(); }
  bool key(string_t& name) override {
    json& object = *open_.back();
    if (object.contains(name)) {
      return Fail(StrCat("the key ", Quoted(name), " appears twice in one object; keep one"));
    }
    key_ = name;
    return true;
  }
  bool parse_error(size_t position, const std::string& token,
                   const nlohmann::detail::exception&) override {
    const std::string near = token.empty() ? "" : StrCat(" near ", Quoted(token));
    return Fail(StrCat("not valid JSON at ", PlaceOf(text_, position), near));
  }

 private:
  bool Fail(const std::string& message) {
    if (status_.ok()) status_ = absl::InvalidArgumentError(StrCat(what_, ": ", message, "."));
    return false;
  }

  json* Place(json value) {
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    json& parent = *open_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    return &(parent[key_] = std::move(value));
  }
  bool Put(json value) {
    Place(std::move(value));
    return true;
  }
  bool Open(json container) {
    if (static_cast<int>(open_.size()) >= max_depth_) {
      return Fail(StrCat("nested deeper than ", max_depth_, " levels"));
    }
    open_.push_back(Place(std::move(container)));
    return true;
  }
  bool Close() {
    open_.pop_back();
    return true;
  }

  std::string_view text_;
  std::string_view what_;
  int max_depth_;
  json root_;
  std::vector<json*> open_;  // containers being filled, innermost last
  std::string key_;
  absl::Status status_;
};

}  // namespace

absl::StatusOr<json> ParseStrictJson(std::string_view text, std::string_view what,
                                     const StrictJsonLimits& limits) {
  if (static_cast<int64_t>(text.size()) > limits.max_bytes) {
    return absl::InvalidArgumentError(
        StrCat(what, ": ", text.size(), " bytes; at most ", limits.max_bytes, " are read."));
  }
  Builder builder(text, what, limits.max_depth);
  const bool parsed = json::sax_parse(text.begin(), text.end(), &builder,
                                      json::input_format_t::json, /*strict=*/true,
                                      /*ignore_comments=*/true);
  if (!parsed) {
    if (!builder.status().ok()) return builder.status();
    return absl::InvalidArgumentError(StrCat(what, ": not valid JSON."));
  }
  return builder.Take();
}

}  // namespace longstride

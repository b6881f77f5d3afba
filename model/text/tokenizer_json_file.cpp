#include "model/text/tokenizer_json_file.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "config/base/status.h"

namespace longstride::model {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxJsonBytes = size_t{512} << 20;
constexpr int kMaxDepth = 64;

// A score as Hugging Face reads it: all digits as one 64-bit integer, scaled by a power of ten, without
// the last correction. Segmentations of equal score differ in this rounding alone, so it decides them.
// `text` is a valid JSON number.
double ReadScore(const std::string& text) {
  uint64_t digits = 0;
  int exponent = 0;
  size_t i = text[0] == '-' ? 1 : 0;
  bool fraction = false, full = false;
  for (; i < text.size() && text[i] != 'e' && text[i] != 'E'; ++i) {
    if (text[i] == '.') {
      fraction = true;
      continue;
    }
    const auto digit = static_cast<uint64_t>(text[i] - '0');
    full = full || digits > (UINT64_MAX - digit) / 10;
    if (full) {
      exponent += fraction ? 0 : 1;
      continue;
    }
    digits = digits * 10 + digit;
    exponent -= fraction ? 1 : 0;
  }
  // Far beyond the range of a double, and far from overflowing where the digits' share is added.
  constexpr long kMaxExponent = 1'000'000;
  if (i < text.size()) {
    exponent += static_cast<int>(
        std::clamp(std::strtol(text.c_str() + i + 1, nullptr, 10), -kMaxExponent, kMaxExponent));
  }
  auto value = static_cast<double>(digits);
  if (exponent < -308) {
    value = value / 1e308;
    exponent += 308;
  }
  const double scale = std::pow(10.0, std::min(std::abs(exponent), 308));
  value = exponent < 0 ? value / scale : value * scale;
  return text[0] == '-' ? -value : value;
}

// Receives the events of nlohmann's reader. Returning false stops it, error_ says why.
class Reader {
 public:
  explicit Reader(TokenizerJsonFile* file) : file_(*file), tree_(file->rest, /*exceptions=*/false) {}

  const std::string& error() const { return error_; }

  bool null() { return table_ == kNone ? tree_.null() : Fail("null"); }
  bool boolean(bool value) { return table_ == kNone ? tree_.boolean(value) : Fail("a boolean"); }
  bool number_integer(int64_t value) {
    return table_ == kNone ? tree_.number_integer(value) : Number(value, static_cast<double>(value));
  }
  bool number_unsigned(uint64_t value) {
    if (table_ == kNone) return tree_.number_unsigned(value);
    return Number(value > INT32_MAX ? -1 : static_cast<int64_t>(value), static_cast<double>(value));
  }
  bool number_float(double value, const std::string& text) {
    if (table_ == kNone) return tree_.number_float(value, text);
    return table_ == kUnigram ? Number(-1, ReadScore(text)) : Fail("a fraction");
  }
  bool string(std::string& value) {
    if (table_ == kNone) return tree_.string(value);
    if (table_ == kMerges && depth_ == table_depth_) return SpacedMerge(value);
    if (table_ == kVocab || depth_ != table_depth_ + 1) return Fail("a string");
    if (fields_ == 0) {
      first_ = std::move(value);
    } else if (table_ == kMerges && fields_ == 1) {
      second_ = std::move(value);
    } else {
      return Fail("a string");
    }
    ++fields_;
    return true;
  }
  bool binary(Json::binary_t&) { return Fail("binary data"); }

  bool start_object(size_t size) {
    if (!Deeper()) return false;
    if (table_ != kNone) return Fail("an object");
    if (depth_ == 3 && in_model_ && key_ == "vocab") return Enter(kVocab);
    if (depth_ == 2) in_model_ = key_ == "model";
    return tree_.start_object(size);
  }
  bool key(std::string& value) {
    if (table_ == kVocab) {
      first_ = std::move(value);
      return true;
    }
    key_ = value;
    return tree_.key(value);
  }
  bool end_object() {
    if (table_ == kVocab) return Leave();
    --depth_;
    if (depth_ == 1) in_model_ = false;
    return tree_.end_object();
  }
  bool start_array(size_t size) {
    if (!Deeper()) return false;
    if (table_ == kNone && depth_ == 3 && in_model_ && key_ == "vocab") return Enter(kUnigram);
    if (table_ == kNone && depth_ == 3 && in_model_ && key_ == "merges") return Enter(kMerges);
    if (table_ == kNone) return tree_.start_array(size);
    fields_ = 0;
    return depth_ == table_depth_ + 1 && table_ != kVocab ? true : Fail("an array");
  }
  bool end_array() {
    if (table_ != kNone && depth_ == table_depth_) return Leave();
    --depth_;
    if (table_ == kNone) return tree_.end_array();
    if (fields_ != 2) return Fail("an entry that is not a pair");
    if (table_ == kMerges) file_.merges.emplace_back(std::move(first_), std::move(second_));
    return true;
  }
  bool parse_error(size_t position, const std::string&, const Json::exception&) {
    error_ = StrCat("invalid JSON at byte ", position);
    return false;
  }

 private:
  enum Table { kNone, kVocab, kUnigram, kMerges };

  bool Fail(std::string_view got) {
    error_ = StrCat(table_ == kMerges ? "model.merges" : "model.vocab", " holds ", got,
                          " where it may not");
    return false;
  }
  bool Deeper() {
    if (++depth_ <= kMaxDepth) return true;
    error_ = StrCat("nested deeper than ", kMaxDepth, " levels");
    return false;
  }
  bool Enter(Table table) {
    table_ = table;
    table_depth_ = depth_;
    return true;
  }
  bool Leave() {
    table_ = kNone;
    --depth_;
    return tree_.null();
  }
  bool Number(int64_t integer, double real) {
    if (table_ == kVocab) {
      file_.vocab.emplace_back(std::move(first_), integer);
      return true;
    }
    if (table_ != kUnigram || depth_ != table_depth_ + 1 || fields_ != 1) return Fail("a number");
    file_.unigram.emplace_back(std::move(first_), real);
    ++fields_;
    return true;
  }
  bool SpacedMerge(const std::string& text) {
    if (text.starts_with("#version")) return true;
    const size_t blank = text.find(' ');
    if (blank == std::string::npos || text.find(' ', blank + 1) != std::string::npos) {
      return Fail("a rule that is not two tokens with one blank between");
    }
    file_.merges.emplace_back(text.substr(0, blank), text.substr(blank + 1));
    return true;
  }

  TokenizerJsonFile& file_;
  nlohmann::detail::json_sax_dom_parser<Json> tree_;
  std::string error_;
  std::string key_, first_, second_;
  Table table_ = kNone;
  int depth_ = 0;
  int table_depth_ = 0;
  int fields_ = 0;
  bool in_model_ = false;
};

}  // namespace

absl::StatusOr<TokenizerJsonFile> ParseTokenizerJson(std::string_view json) {
  if (json.size() > kMaxJsonBytes) {
    return absl::InvalidArgumentError(StrCat("tokenizer.json has ", json.size(),
                                                   " bytes; at most ", kMaxJsonBytes,
                                                   " are allowed"));
  }
  TokenizerJsonFile file;
  Reader reader(&file);
  if (!Json::sax_parse(json, &reader)) {
    return absl::InvalidArgumentError(StrCat("tokenizer.json: ", reader.error()));
  }
  if (!file.rest.is_object()) {
    return absl::InvalidArgumentError("tokenizer.json: the top level is not an object");
  }
  return file;
}

}  // namespace longstride::model

#define PCRE2_CODE_UNIT_WIDTH 8
#include "model/text/regex.h"

#include <pcre2.h>

#include "config/base/status.h"
#include "model/text/unicode.h"

namespace longstride::model {
namespace {

constexpr size_t kMaxPatternBytes = 64 * 1024;
constexpr uint32_t kMatchLimit = 50'000'000;
constexpr uint32_t kDepthLimit = 100'000;
constexpr uint32_t kHeapLimitKib = 256 * 1024;
constexpr size_t kJitStackMaxBytes = 16 * 1024 * 1024;

absl::Status Unsupported(std::string_view construct) {
  return absl::UnimplementedError(
      StrCat("the tokenizer's regular expression uses ", construct,
                   ", which is not supported; expressions of letters, numbers, marks, blanks, "
                   "groups, look-ahead and (?i:...) are"));
}

// Refuses constructs whose meaning differs between the engines.
absl::Status CheckPortable(std::string_view p) {
  bool in_class = false;
  for (size_t i = 0; i < p.size(); ++i) {
    if (p[i] == '\\' && i + 1 < p.size()) {
      const char c = p[++i];
      if (std::string_view("wWbBhHRXZGKQE").find(c) != std::string_view::npos) {
        return Unsupported(StrCat("\\", std::string(1, c)));
      }
      if ((c == 'p' || c == 'P') && i + 1 < p.size() && p[i + 1] == '{') {
        const size_t close = p.find('}', i);
        if (close == std::string_view::npos) return Unsupported("an unclosed \\p{");
        const std::string_view name = p.substr(i + 2, close - i - 2);
        if (name.empty() || name.size() > 2) return Unsupported(StrCat("\\p{", name, "}"));
        i = close;
      }
    } else if (in_class) {
      if (p[i] == ']') in_class = false;
      if (p[i] == '[') return Unsupported("a class inside a class");
      if (p.substr(i, 2) == "&&") return Unsupported("&& in a class");
    } else if (p[i] == '[') {
      in_class = true;
      if (i + 1 < p.size() && p[i + 1] == '^') ++i;
    } else if (p.substr(i, 2) == "(?") {
      const std::string_view rest = p.substr(i + 2);
      const bool known = rest.substr(0, 1) == ":" || rest.substr(0, 1) == "=" ||
                         rest.substr(0, 1) == "!" || rest.substr(0, 1) == ">" ||
                         rest.substr(0, 2) == "<=" || rest.substr(0, 2) == "<!" ||
                         rest.substr(0, 2) == "i:";
      if (!known) return Unsupported(StrCat("the group (?", rest.substr(0, 2)));
    } else if (p[i] == '}' && i + 1 < p.size() && p[i + 1] == '+') {
      return Unsupported("a quantifier on {n,m}");
    }
  }
  return absl::OkStatus();
}

struct MatchData {
  explicit MatchData(const pcre2_code* code)
      : data(pcre2_match_data_create_from_pattern(code, nullptr)),
        context(pcre2_match_context_create(nullptr)) {
    if (context != nullptr) {
      pcre2_set_match_limit(context, kMatchLimit);
      pcre2_set_depth_limit(context, kDepthLimit);
      pcre2_set_heap_limit(context, kHeapLimitKib);
    }
  }
  ~MatchData() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    if (stack != nullptr) pcre2_jit_stack_free(stack);
  }
  MatchData(const MatchData&) = delete;
  MatchData& operator=(const MatchData&) = delete;

  pcre2_match_data* data;
  pcre2_match_context* context;
  pcre2_jit_stack* stack = nullptr;
};

}  // namespace

struct Regex::Code {
  pcre2_code* code = nullptr;
  ~Code() { pcre2_code_free(code); }
};

Regex::Regex(std::unique_ptr<Code> code) : code_(std::move(code)) {}
Regex::~Regex() = default;

absl::StatusOr<std::unique_ptr<Regex>> Regex::Compile(std::string_view pattern) {
  if (pattern.size() > kMaxPatternBytes) {
    return absl::InvalidArgumentError(
        StrCat("the tokenizer's regular expression has ", pattern.size(), " bytes; at most ",
                     kMaxPatternBytes, " are allowed"));
  }
  if (FirstInvalidUtf8(pattern) != std::string_view::npos) {
    return absl::InvalidArgumentError("the tokenizer's regular expression is not valid UTF-8");
  }
  RETURN_IF_ERROR(CheckPortable(pattern));
  auto code = std::make_unique<Code>();
  pcre2_compile_context* context = pcre2_compile_context_create(nullptr);
  if (context == nullptr) return absl::ResourceExhaustedError("out of memory");
  pcre2_set_newline(context, PCRE2_NEWLINE_LF);
  pcre2_set_parens_nest_limit(context, 100);
  int error = 0;
  PCRE2_SIZE offset = 0;
  // MULTILINE: ^ and $ of Oniguruma's Ruby syntax match at every line.
  code->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                             PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &error, &offset, context);
  pcre2_compile_context_free(context);
  if (code->code == nullptr) {
    PCRE2_UCHAR message[256];
    pcre2_get_error_message(error, message, sizeof message);
    return absl::InvalidArgumentError(StrCat("the tokenizer's regular expression is invalid at byte ",
                                                   offset, ": ",
                                                   reinterpret_cast<const char*>(message)));
  }
  // Where executable memory is refused the interpreter runs instead, three times slower.
  (void)pcre2_jit_compile(code->code, PCRE2_JIT_COMPLETE);
  return std::unique_ptr<Regex>(new Regex(std::move(code)));
}

absl::Status Regex::Split(std::string_view subject, std::vector<RegexPiece>* pieces) const {
  MatchData match(code_->code);
  if (match.data == nullptr || match.context == nullptr) {
    return absl::ResourceExhaustedError("out of memory");
  }
  const auto* data = reinterpret_cast<PCRE2_SPTR>(subject.data());
  size_t from = 0;      // where the next search starts
  size_t boundary = 0;  // end of the last piece
  size_t last_end = std::string_view::npos;
  while (from <= subject.size()) {
    int rc = pcre2_match(code_->code, data, subject.size(), from, PCRE2_NO_UTF_CHECK, match.data,
                         match.context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT && match.stack == nullptr) {
      match.stack = pcre2_jit_stack_create(32 * 1024, kJitStackMaxBytes, nullptr);
      if (match.stack == nullptr) return absl::ResourceExhaustedError("out of memory");
      pcre2_jit_stack_assign(match.context, nullptr, match.stack);
      continue;
    }
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
      rc = pcre2_match(code_->code, data, subject.size(), from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                       match.data, match.context);
    }
    if (rc == PCRE2_ERROR_NOMATCH) break;
    if (rc < 0) {
      return absl::ResourceExhaustedError(
          StrCat("splitting the text for the tokenizer exceeded the limits of the regular "
                       "expression engine (code ", rc, "); shorten runs of one kind of character"));
    }
    const PCRE2_SIZE* span = pcre2_get_ovector_pointer(match.data);
    const size_t begin = span[0], end = span[1];
    if (begin == end && last_end == end) {  // an empty match right behind a match does not count
      if (from >= subject.size()) break;
      (void)DecodeUtf8(subject, &from);
      last_end = std::string_view::npos;
      continue;
    }
    if (boundary < begin) pieces->push_back({boundary, begin, false});
    if (begin < end) pieces->push_back({begin, end, true});
    boundary = from = end;
    last_end = end;
  }
  if (boundary < subject.size()) pieces->push_back({boundary, subject.size(), false});
  return absl::OkStatus();
}

}  // namespace longstride::model

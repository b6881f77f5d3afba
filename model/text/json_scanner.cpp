#include "model/text/json_scanner.h"

namespace longstride::model {
namespace {

bool IsBlank(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }
bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsHex(char c) { return IsDigit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }

}  // namespace

JsonScanner::State JsonScanner::EndValue() {
  expect_ = Expect::kCommaOrEnd;
  return open_.empty() ? State::kDone : State::kMore;
}

JsonScanner::State JsonScanner::Close(char c) {
  if (open_.empty() || open_.back() != c) return State::kBad;
  open_.pop_back();
  return EndValue();
}

JsonScanner::State JsonScanner::BeginValue(char c) {
  if (c == '{' || c == '[') {
    if (open_.size() >= kMaxDepth) return State::kBad;
    open_.push_back(c == '{' ? '}' : ']');
    expect_ = c == '{' ? Expect::kKeyOrEnd : Expect::kValueOrEnd;
    return State::kMore;
  }
  if (c == '"') {
    key_ = false;
    expect_ = Expect::kString;
    return State::kMore;
  }
  if (c == 't' || c == 'f' || c == 'n') {
    literal_ = c == 't' ? "rue" : c == 'f' ? "alse" : "ull";
    expect_ = Expect::kLiteral;
    return State::kMore;
  }
  if (c == '-') {
    expect_ = Expect::kMinus;
    return State::kMore;
  }
  if (!IsDigit(c)) return State::kBad;
  expect_ = c == '0' ? Expect::kZero : Expect::kInteger;
  return State::kMore;
}

JsonScanner::State JsonScanner::Structure(char c) {
  if (IsBlank(c)) return State::kMore;
  switch (expect_) {
    case Expect::kValueOrEnd:
      if (c == ']') return Close(c);
      return BeginValue(c);
    case Expect::kKeyOrEnd:
      if (c == '}') return Close(c);
      [[fallthrough]];
    case Expect::kKey:
      if (c != '"') return State::kBad;
      key_ = true;
      expect_ = Expect::kString;
      return State::kMore;
    case Expect::kColon:
      if (c != ':') return State::kBad;
      expect_ = Expect::kValue;
      return State::kMore;
    case Expect::kCommaOrEnd:
      if (c == '}' || c == ']') return Close(c);
      if (c != ',' || open_.empty()) return State::kBad;
      expect_ = open_.back() == '}' ? Expect::kKey : Expect::kValue;
      return State::kMore;
    default: return BeginValue(c);
  }
}

JsonScanner::State JsonScanner::Number(char c) {
  switch (expect_) {
    case Expect::kMinus:
      if (!IsDigit(c)) return State::kBad;
      expect_ = c == '0' ? Expect::kZero : Expect::kInteger;
      return State::kMore;
    case Expect::kPoint:
    case Expect::kFraction:
      if (IsDigit(c)) {
        expect_ = Expect::kFraction;
        return State::kMore;
      }
      if (expect_ == Expect::kPoint) return State::kBad;
      break;
    case Expect::kExponent:
      if (c == '+' || c == '-') {
        expect_ = Expect::kExponentSign;
        return State::kMore;
      }
      [[fallthrough]];
    case Expect::kExponentSign:
      if (!IsDigit(c)) return State::kBad;
      expect_ = Expect::kExponentDigits;
      return State::kMore;
    case Expect::kExponentDigits:
      if (IsDigit(c)) return State::kMore;
      break;
    case Expect::kInteger:
      if (IsDigit(c)) return State::kMore;
      [[fallthrough]];
    default:  // kZero
      if (c == '.') {
        expect_ = Expect::kPoint;
        return State::kMore;
      }
  }
  if ((c == 'e' || c == 'E') && expect_ != Expect::kExponentDigits) {
    expect_ = Expect::kExponent;
    return State::kMore;
  }
  if (EndValue() == State::kDone) return State::kDoneBefore;
  return Structure(c);
}

JsonScanner::State JsonScanner::Feed(char c) {
  switch (expect_) {
    case Expect::kString:
      if (c == '\\') {
        expect_ = Expect::kEscape;
      } else if (c == '"') {
        if (!key_) return EndValue();
        expect_ = Expect::kColon;
      } else if (static_cast<unsigned char>(c) < 0x20) {
        return State::kBad;
      }
      return State::kMore;
    case Expect::kEscape:
      if (c == 'u') {
        expect_ = Expect::kHex;
        hex_left_ = 4;
        return State::kMore;
      }
      expect_ = Expect::kString;
      return std::string_view("\"\\/bfnrt").find(c) != std::string_view::npos ? State::kMore : State::kBad;
    case Expect::kHex:
      if (!IsHex(c)) return State::kBad;
      if (--hex_left_ == 0) expect_ = Expect::kString;
      return State::kMore;
    case Expect::kLiteral:
      if (c != literal_[0]) return State::kBad;
      literal_.remove_prefix(1);
      return literal_.empty() ? EndValue() : State::kMore;
    case Expect::kMinus:
    case Expect::kZero:
    case Expect::kInteger:
    case Expect::kPoint:
    case Expect::kFraction:
    case Expect::kExponent:
    case Expect::kExponentSign:
    case Expect::kExponentDigits: return Number(c);
    default: return Structure(c);
  }
}

}  // namespace longstride::model

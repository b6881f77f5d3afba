// Follows JSON byte by byte. Internal to model/text.
#pragma once

#include <string>
#include <string_view>

namespace longstride::model {

// Accepts exactly one JSON value (RFC 8259), nested at most kMaxDepth deep. A number at the end of
// the input is only known to be complete when something else follows, so values that end by
// themselves (objects, arrays, strings, literals) are what this is for.
class JsonScanner {
 public:
  static constexpr size_t kMaxDepth = 64;
  enum class State {
    kMore,       // a valid start
    kDone,       // `c` was the last byte of the value
    kDoneBefore,  // the value, a number, ended before `c`, which was not taken
    kBad,        // `c` cannot stand here
  };
  State Feed(char c);

 private:
  enum class Expect {
    kValue, kValueOrEnd, kKeyOrEnd, kKey, kColon, kCommaOrEnd,  // structure
    kString, kEscape, kHex, kLiteral,                           // inside a token
    kMinus, kZero, kInteger, kPoint, kFraction, kExponent, kExponentSign, kExponentDigits,
  };
  State Structure(char c);
  State BeginValue(char c);
  State Number(char c);
  State EndValue();
  State Close(char c);

  Expect expect_ = Expect::kValue;
  std::string open_;  // the closing brackets that are due
  bool key_ = false;  // the string is a key
  int hex_left_ = 0;
  std::string_view literal_;
};

}  // namespace longstride::model

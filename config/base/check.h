// LS_CHECK: programmer errors only (broken invariants of our own code). Never for user input,
// files or devices: those return absl::Status.
#pragma once

#include <sstream>
#include <string>

namespace longstride::internal {

// Prints "file:line: check failed: condition (operands)" and aborts.
[[noreturn]] void CheckFailed(const char* file, int line, const char* condition,
                              const std::string& operands);

template <typename A, typename B>
std::string CheckOperands(const A& a, const B& b) {
  std::ostringstream out;
  out << a << " vs. " << b;
  return out.str();
}

}  // namespace longstride::internal

#define LS_CHECK(condition)                                                             \
  do {                                                                                  \
    if (!(condition)) [[unlikely]]                                                      \
      ::longstride::internal::CheckFailed(__FILE__, __LINE__, #condition, std::string()); \
  } while (false)

#define LS_CHECK_OP_(a, op, b)                                                    \
  do {                                                                            \
    const auto& ls_a_ = (a);                                                      \
    const auto& ls_b_ = (b);                                                      \
    if (!(ls_a_ op ls_b_)) [[unlikely]]                                           \
      ::longstride::internal::CheckFailed(                                        \
          __FILE__, __LINE__, #a " " #op " " #b,                                  \
          ::longstride::internal::CheckOperands(ls_a_, ls_b_));                   \
  } while (false)

#define LS_CHECK_EQ(a, b) LS_CHECK_OP_(a, ==, b)
#define LS_CHECK_NE(a, b) LS_CHECK_OP_(a, !=, b)
#define LS_CHECK_LT(a, b) LS_CHECK_OP_(a, <, b)
#define LS_CHECK_LE(a, b) LS_CHECK_OP_(a, <=, b)
#define LS_CHECK_GT(a, b) LS_CHECK_OP_(a, >, b)
#define LS_CHECK_GE(a, b) LS_CHECK_OP_(a, >=, b)

// StrCat and StrAppend for std::string_view. Debian 12 builds Abseil with a string_view of its own,
// so that absl::StrCat does not take std::string_view there; later releases alias the two.
#pragma once

#include <string>
#include <string_view>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace longstride {

inline std::string_view ToStd(absl::string_view s) { return {s.data(), s.size()}; }
inline absl::string_view ToAbsl(std::string_view s) { return {s.data(), s.size()}; }

namespace internal {

template <typename T>
decltype(auto) StrArg(const T& value) {
  if constexpr (std::is_same_v<T, std::string_view>) {
    return ToAbsl(value);
  } else {
    return (value);
  }
}

}  // namespace internal

template <typename... T>
std::string StrCat(const T&... args) {
  return absl::StrCat(internal::StrArg(args)...);
}

template <typename... T>
void StrAppend(std::string* out, const T&... args) {
  absl::StrAppend(out, internal::StrArg(args)...);
}

}  // namespace longstride

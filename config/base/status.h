// Expected failures travel as absl::Status / absl::StatusOr, whose codes are gRPC's.
//
// Message convention: what is wrong, what was got, what is allowed, what to do. One sentence or
// two, no paths of the server, no prompt text.
#pragma once

#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "config/base/strings.h"

#define LS_STATUS_CONCAT_INNER_(a, b) a##b
#define LS_STATUS_CONCAT_(a, b) LS_STATUS_CONCAT_INNER_(a, b)

// Returns from the calling function if `expr` is not OK.
#define RETURN_IF_ERROR(expr)                       \
  do {                                              \
    absl::Status ls_status_ = (expr);               \
    if (!ls_status_.ok()) return ls_status_;        \
  } while (false)

// ASSIGN_OR_RETURN(auto x, MakeX()); declares or assigns x, or returns the error.
#define ASSIGN_OR_RETURN(lhs, expr) \
  LS_ASSIGN_OR_RETURN_IMPL_(LS_STATUS_CONCAT_(ls_statusor_, __LINE__), lhs, expr)
#define LS_ASSIGN_OR_RETURN_IMPL_(statusor, lhs, expr)      \
  auto statusor = (expr);                                   \
  if (!statusor.ok()) return std::move(statusor).status();  \
  lhs = *std::move(statusor)

namespace longstride {

// The same code with `context` put before the message.
inline absl::Status Annotate(const absl::Status& status, std::string_view context) {
  if (status.ok()) return status;
  return absl::Status(status.code(), StrCat(context, ": ", status.message()));
}

}  // namespace longstride

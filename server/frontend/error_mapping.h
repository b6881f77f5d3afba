// The one table from absl::Status to gRPC codes, HTTP codes and OpenAI error bodies.
//
// OpenAI's SDKs retry 408, 409, 429 and everything from 500 up, so a request that is at fault
// itself never maps there: even UNIMPLEMENTED (a known field that is not supported) is a 400.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "config/base/status.h"

namespace longstride::frontend {

// Details travel with a status as payloads. Each returns `status` with the detail added.
absl::Status WithParam(absl::Status status, std::string_view param);  // "messages[3].role"
absl::Status WithErrorCode(absl::Status status, std::string_view code);
absl::Status WithRetryAfter(absl::Status status, int32_t seconds);
// INVALID_ARGUMENT about one parameter of the request.
absl::Status InvalidParam(std::string_view param, std::string_view message);
// UNIMPLEMENTED: a known parameter or value that this server does not support.
absl::Status UnsupportedParam(std::string_view param, std::string_view message);

struct ApiError {
  int32_t http_status = 500;
  int32_t grpc_code = 13;
  std::string message;
  std::string type;   // "invalid_request_error"
  std::string param;  // empty: null in the body
  std::string code;   // empty: null in the body
  std::optional<int32_t> retry_after_seconds;
};

// REQUIRES: !status.ok().
ApiError ToApiError(const absl::Status& status);
// An error that is known by its HTTP status alone (405, 413, 431, ...).
ApiError HttpError(int32_t http_status, std::string_view message);
// {"error":{"message":…,"type":…,"param":…,"code":…}}
std::string ErrorBody(const ApiError& error);

}  // namespace longstride::frontend

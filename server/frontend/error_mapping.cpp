#include "server/frontend/error_mapping.h"

#include <charconv>

#include "absl/strings/cord.h"
#include "config/base/check.h"
#include "server/frontend/json_writer.h"

namespace longstride::frontend {
namespace {

constexpr std::string_view kParamUrl = "longstride/param";
constexpr std::string_view kCodeUrl = "longstride/code";
constexpr std::string_view kRetryUrl = "longstride/retry-after";

struct Row {
  absl::StatusCode code;
  int32_t http_status;
  std::string_view type;
  std::string_view error_code;  // default of `code`
  int32_t retry_after;          // seconds; 0: no header
};

constexpr Row kTable[] = {
    {absl::StatusCode::kInvalidArgument, 400, "invalid_request_error", "", 0},
    {absl::StatusCode::kOutOfRange, 400, "invalid_request_error", "", 0},
    {absl::StatusCode::kFailedPrecondition, 400, "invalid_request_error", "", 0},
    {absl::StatusCode::kUnimplemented, 400, "invalid_request_error", "unsupported_parameter", 0},
    {absl::StatusCode::kUnauthenticated, 401, "authentication_error", "invalid_api_key", 0},
    {absl::StatusCode::kPermissionDenied, 403, "permission_error", "", 0},
    {absl::StatusCode::kNotFound, 404, "not_found_error", "not_found", 0},
    {absl::StatusCode::kAlreadyExists, 400, "invalid_request_error", "", 0},
    {absl::StatusCode::kResourceExhausted, 429, "rate_limit_error", "queue_full", 1},
    {absl::StatusCode::kCancelled, 499, "cancelled", "cancelled", 0},
    {absl::StatusCode::kAborted, 503, "server_error", "aborted", 1},
    {absl::StatusCode::kUnavailable, 503, "server_error", "unavailable", 2},
    {absl::StatusCode::kDeadlineExceeded, 504, "timeout_error", "deadline_exceeded", 0},
    {absl::StatusCode::kInternal, 500, "server_error", "internal_error", 0},
    {absl::StatusCode::kDataLoss, 500, "server_error", "internal_error", 0},
    {absl::StatusCode::kUnknown, 500, "server_error", "internal_error", 0},
};

const Row& Lookup(absl::StatusCode code) {
  for (const Row& row : kTable) {
    if (row.code == code) return row;
  }
  return kTable[std::size(kTable) - 1];
}

std::string Payload(const absl::Status& status, std::string_view url) {
  const auto payload = status.GetPayload(ToAbsl(url));
  return payload.has_value() ? std::string(*payload) : std::string();
}

absl::Status With(absl::Status status, std::string_view url, std::string_view value) {
  if (!status.ok()) status.SetPayload(ToAbsl(url), absl::Cord(ToAbsl(value)));
  return status;
}

}  // namespace

absl::Status WithParam(absl::Status status, std::string_view param) {
  return With(std::move(status), kParamUrl, param);
}

absl::Status WithErrorCode(absl::Status status, std::string_view code) {
  return With(std::move(status), kCodeUrl, code);
}

absl::Status WithRetryAfter(absl::Status status, int32_t seconds) {
  return With(std::move(status), kRetryUrl, StrCat(seconds));
}

absl::Status InvalidParam(std::string_view param, std::string_view message) {
  return WithParam(absl::InvalidArgumentError(ToAbsl(message)), param);
}

absl::Status UnsupportedParam(std::string_view param, std::string_view message) {
  return WithParam(absl::UnimplementedError(ToAbsl(message)), param);
}

ApiError ToApiError(const absl::Status& status) {
  LS_CHECK(!status.ok());
  const Row& row = Lookup(status.code());
  ApiError error;
  error.http_status = row.http_status;
  error.grpc_code = static_cast<int32_t>(status.code());
  error.message = std::string(status.message());
  error.type = row.type;
  error.param = Payload(status, kParamUrl);
  error.code = Payload(status, kCodeUrl);
  if (error.code.empty()) error.code = row.error_code;
  const std::string retry = Payload(status, kRetryUrl);
  int32_t seconds = row.retry_after;
  std::from_chars(retry.data(), retry.data() + retry.size(), seconds);
  if (seconds > 0) error.retry_after_seconds = seconds;
  return error;
}

ApiError HttpError(int32_t http_status, std::string_view message) {
  ApiError error;
  error.http_status = http_status;
  error.message = std::string(message);
  error.type = http_status >= 500 ? "server_error" : "invalid_request_error";
  if (http_status == 503) error.retry_after_seconds = 1;
  return error;
}

std::string ErrorBody(const ApiError& error) {
  std::string body;
  JsonWriter json(&body);
  json.BeginObject();
  json.Key("error");
  json.BeginObject();
  json.Field("message", error.message);
  json.Field("type", error.type);
  json.Key("param");
  error.param.empty() ? json.Null() : json.String(error.param);
  json.Key("code");
  error.code.empty() ? json.Null() : json.String(error.code);
  json.EndObject();
  json.EndObject();
  return body;
}

}  // namespace longstride::frontend

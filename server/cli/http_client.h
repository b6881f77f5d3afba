// A small blocking HTTP/1.1 client for `bench`: one request a connection, answers read as they
// come.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "absl/time/time.h"
#include "config/base/status.h"

namespace longstride::cli {

struct ServerUrl {
  std::string host;
  std::string port;
  // "http://host:port"; INVALID_ARGUMENT for anything else, https included.
  static absl::StatusOr<ServerUrl> Parse(const std::string& text);
};

struct HttpCall {
  ServerUrl url;
  std::string method = "GET";
  std::string path;
  std::string body;                            // JSON
  std::string authorization = {};                   // "Bearer …" or empty
  absl::Duration timeout = absl::Minutes(30);  // between two pieces of the answer
};

struct HttpAnswer {
  int status = 0;
  std::string body;  // where no `on_data` was given
};

// Calls `on_data` with each piece of a 200 answer's body, or collects the body where it is null.
// UNAVAILABLE: cannot connect, or the connection broke before the answer was complete.
absl::StatusOr<HttpAnswer> Fetch(const HttpCall& call,
                                 const std::function<void(std::string_view)>& on_data = nullptr);

}  // namespace longstride::cli

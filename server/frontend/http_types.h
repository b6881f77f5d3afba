// The plain interface between the HTTP machinery (Beast and Asio, in http_session.cpp and
// http_transport.cpp alone) and the API above it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/time/time.h"

namespace longstride::frontend {

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

struct HttpRequest {
  std::string method;   // "GET"
  std::string path;     // decoded target without query: "/v1/models"
  std::string query;    // raw, without '?'
  HttpHeaders headers;  // names in lower case; trailers are dropped
  std::string body;
  std::string remote_address;  // without port
  absl::Time received;

  // Set by HttpHandler::Admit for itself and for the report.
  std::string_view route = "other";  // static storage
  std::string client;                // who asks, for fairness
  std::string request_id;

  // First value of a header (lower-case name) or nullptr.
  const std::string* Header(std::string_view name) const {
    for (const auto& [key, value] : headers) {
      if (key == name) return &value;
    }
    return nullptr;
  }
};

struct HttpResponse {
  int32_t status = 200;
  std::string content_type = "application/json";
  HttpHeaders headers;
  std::string body;
};

// Produces the body of a streamed answer. Owned by the connection: destroyed when the answer is
// complete or the client is gone, which is what cancels the work behind it.
class StreamSource {
 public:
  virtual ~StreamSource() = default;
  // Appends the bytes that are ready; false when nothing will follow them. Called on the
  // connection's executor, first at once and then after each wake-up, and only while the socket can
  // take more: a slow reader is not pulled for.
  virtual bool Pull(std::string* out) = 0;
};

struct StreamOptions {
  absl::Duration ping_interval = absl::InfiniteDuration();
  std::string ping;  // written after ping_interval without other bytes
};

// The answer to one request. Thread-safe. Exactly one of Respond and Stream is called, once.
class ResponseSink {
 public:
  virtual ~ResponseSink() = default;
  virtual void Respond(HttpResponse response) = 0;
  virtual void Stream(HttpResponse head, std::unique_ptr<StreamSource> source,
                      StreamOptions options) = 0;
  // The source has something to pull. Returns at once; cheap when called again before the pull.
  virtual void Wake() = 0;
  // `cancel` runs once, on the connection's executor, if the client leaves before the answer; at
  // once if it has left already.
  virtual void OnGone(std::function<void()> cancel) = 0;
  virtual bool gone() const = 0;
};

class HttpHandler {
 public:
  virtual ~HttpHandler() = default;
  // Looks at the header before a byte of the body is read: fills in route, client and request_id,
  // and may refuse (unknown path, wrong method, no valid key). Called on an I/O thread.
  virtual std::optional<HttpResponse> Admit(HttpRequest* head) = 0;
  // Must return at once (hand work to a pool). A sink that is dropped unanswered sends a 500.
  virtual void Handle(std::unique_ptr<HttpRequest> request, std::shared_ptr<ResponseSink> sink) = 0;
  // Answers a request that broke the protocol or a limit of the connection.
  virtual HttpResponse Refusal(int32_t status, std::string_view message) = 0;
};

}  // namespace longstride::frontend

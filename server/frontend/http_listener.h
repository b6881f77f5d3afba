// An HTTP/1.1 server over one HttpHandler: sockets, framing, limits and time-outs. No routes, no
// JSON.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "config/base/status.h"
#include "server/frontend/http_types.h"
#include "server/frontend/observer.h"

namespace longstride::frontend {

struct HttpLimits {
  int32_t max_connections = 4096;
  int64_t max_header_bytes = 32 << 10;
  int64_t max_body_bytes = int64_t{64} << 20;
  int64_t max_total_body_bytes = int64_t{1} << 30;  // of all bodies being received or handled
  int64_t max_pipelined_bytes = 64 << 10;           // read ahead while an answer is under way
  int32_t listen_backlog = 4096;
  int32_t send_buffer_bytes = 64 << 10;               // SO_SNDBUF: how far a slow reader may lag
  absl::Duration header_timeout = absl::Seconds(10);  // first to last byte of a header, absolute
  absl::Duration body_timeout = absl::Seconds(60);    // without progress
  absl::Duration idle_timeout = absl::Seconds(75);    // between requests of a connection
  absl::Duration write_timeout = absl::Seconds(60);   // without progress
};

struct HttpListenerOptions {
  std::string host = "127.0.0.1";
  int32_t port = 8080;  // 0: any free one
  int32_t threads = 2;
  std::string tls_cert;  // PEM files; both or none
  std::string tls_key;
  HttpLimits limits;
};

class HttpListener {
 public:
  virtual ~HttpListener() = default;  // Stop(0)
  virtual int32_t port() const = 0;
  // Keep-alive ends after the current answer; new connections are still served, so that probes see
  // what the handler says about readiness.
  virtual void BeginDrain() = 0;
  // Closes the listening socket and idle connections, waits up to `grace` for answers under way,
  // cuts the rest and joins the threads. Idempotent.
  virtual void Stop(absl::Duration grace) = 0;
  virtual int32_t active_connections() const = 0;
};

// `handler` and `observer` must outlive the listener. INVALID_ARGUMENT: bad host, port or TLS
// files. UNAVAILABLE: the port is in use.
absl::StatusOr<std::unique_ptr<HttpListener>> StartHttpListener(const HttpListenerOptions& options,
                                                                HttpHandler* handler,
                                                                FrontendObserver* observer);

}  // namespace longstride::frontend

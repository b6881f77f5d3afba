// The REST server: HTTP listener, routes and keys put together.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "config/base/status.h"
#include "server/frontend/http_listener.h"
#include "server/frontend/inference_service.h"
#include "server/frontend/observer.h"
#include "server/frontend/rest_api.h"

namespace longstride::frontend {

struct HttpServerOptions {
  std::string host = "127.0.0.1";
  int32_t port = 8000;   // 0: any free one
  int32_t threads = 2;   // I/O threads; parsing and tokenising run on the service's workers
  std::string tls_cert;  // PEM files; both or none
  std::string tls_key;
  std::string api_key_file;  // lines `name:sha256hex`; empty: everybody may call
  HttpLimits limits;
  RestOptions rest;
};

class HttpServer {
 public:
  virtual ~HttpServer() = default;  // Stop(0)
  virtual int32_t port() const = 0;
  // Connections end after their current answer. Probes and new requests are still answered; what
  // they are told is the service's state (InferenceService::BeginDrain).
  virtual void BeginDrain() = 0;
  // Waits up to `grace` for answers under way, cuts the rest, joins all threads. Idempotent.
  virtual void Stop(absl::Duration grace) = 0;
  virtual int32_t active_connections() const = 0;
};

// Starts listening at once; until the service has a model, requests get 503. Pointers must outlive
// the server. `metrics_text` gives the Prometheus text of /metrics. INVALID_ARGUMENT: bad host,
// port, TLS or key file. UNAVAILABLE: the port is in use.
absl::StatusOr<std::unique_ptr<HttpServer>> StartHttpServer(
    const HttpServerOptions& options, InferenceService* service,
    std::function<std::string()> metrics_text, FrontendObserver* observer);

}  // namespace longstride::frontend

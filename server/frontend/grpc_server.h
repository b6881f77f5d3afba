// The gRPC server: longstride.v1.Inference, health and reflection over one InferenceService.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "config/base/status.h"
#include "server/frontend/inference_service.h"
#include "server/frontend/observer.h"

namespace longstride::frontend {

struct GrpcServerOptions {
  std::string host = "127.0.0.1";
  int32_t port = 8001;   // 0: any free one
  std::string tls_cert;  // PEM files; both or none
  std::string tls_key;
  std::string api_key_file;  // as for HTTP; with keys, reflection is off
  bool reflection = true;
  std::string version;  // "0.1.0"
  int32_t max_receive_bytes = 64 << 20;
  int32_t max_send_bytes = 64 << 20;
  int32_t max_metadata_bytes = 32 << 10;
  int32_t max_calls = 4096;  // at a time, all connections
  int32_t max_streams_per_connection = 1024;
  absl::Duration keepalive_time = absl::Seconds(60);  // the server's own pings
  absl::Duration keepalive_timeout = absl::Seconds(20);
  absl::Duration min_ping_interval = absl::Seconds(10);      // a client that pings more is cut off
  absl::Duration max_connection_age = absl::ZeroDuration();  // 0: unlimited
  absl::Duration max_connection_age_grace = absl::Hours(1);
};

class GrpcServer {
 public:
  virtual ~GrpcServer() = default;  // Stop(0)
  virtual int32_t port() const = 0;
  // Health turns NOT_SERVING; calls under way go on.
  virtual void BeginDrain() = 0;
  // Takes no new calls, waits up to `grace` for those under way, cancels the rest. Idempotent.
  virtual void Stop(absl::Duration grace) = 0;
};

// Starts listening at once; health says NOT_SERVING until the service is ready. Pointers must
// outlive the server. INVALID_ARGUMENT: bad TLS or key file. UNAVAILABLE: the port is in use (it is
// never shared).
absl::StatusOr<std::unique_ptr<GrpcServer>> StartGrpcServer(const GrpcServerOptions& options,
                                                            InferenceService* service,
                                                            FrontendObserver* observer);

}  // namespace longstride::frontend

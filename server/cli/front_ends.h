// The REST and gRPC servers as one.
#pragma once

#include <memory>

#include "absl/time/time.h"
#include "config/server_config.h"
#include "server/frontend/grpc_server.h"
#include "server/frontend/http_server.h"
#include "server/frontend/inference_service.h"
#include "server/metrics/metrics.h"

namespace longstride::cli {

class FrontEnds {
 public:
  // Listens at once, so that probes are answered and a port in use is noticed before the model is
  // loaded. INVALID_ARGUMENT: a bad address, TLS or key file. A port in use has exit status 4.
  static absl::StatusOr<std::unique_ptr<FrontEnds>> Start(const ServerConfig& config,
                                                          frontend::InferenceService* service,
                                                          metrics::Metrics* metrics);
  int32_t http_port() const { return http_->port(); }
  int32_t grpc_port() const { return grpc_ == nullptr ? 0 : grpc_->port(); }  // 0: not served

  void BeginDrain();
  // Waits up to `grace` for answers under way, then cuts them.
  void Stop(absl::Duration grace);

 private:
  FrontEnds() = default;
  std::unique_ptr<frontend::HttpServer> http_;
  std::unique_ptr<frontend::GrpcServer> grpc_;
};

}  // namespace longstride::cli

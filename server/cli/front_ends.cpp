#include "server/cli/front_ends.h"

#include <utility>

#include "config/base/version.h"
#include "server/cli/command.h"

namespace longstride::cli {
namespace {

// A port in use, a port that needs privileges, an address that this machine does not have.
absl::Status WithAddressExit(const absl::Status& status) {
  return status.code() == absl::StatusCode::kInvalidArgument ? status
                                                             : WithExit(status, kExitAddress);
}

frontend::HttpServerOptions HttpOptions(const ServerConfig& config) {
  frontend::HttpServerOptions options;
  options.host = config.host;
  options.port = static_cast<int32_t>(config.http.port);
  options.threads = static_cast<int32_t>(config.http.threads);
  options.tls_cert = config.tls.cert;
  options.tls_key = config.tls.key;
  options.api_key_file = config.api_keys;
  options.limits.max_connections = static_cast<int32_t>(config.http.max_connections);
  options.limits.max_body_bytes = config.http.max_body;
  options.limits.header_timeout = config.http.header_timeout;
  options.limits.body_timeout = config.http.body_timeout;
  options.limits.idle_timeout = config.http.idle_timeout;
  options.limits.write_timeout = config.http.write_timeout;
  options.rest.ping_interval = config.http.ping_interval;
  options.rest.playground = config.http.playground;
  options.rest.version = Version();
  return options;
}

frontend::GrpcServerOptions GrpcOptions(const ServerConfig& config) {
  frontend::GrpcServerOptions options;
  options.host = config.host;
  options.port = static_cast<int32_t>(config.grpc.port);
  options.tls_cert = config.tls.cert;
  options.tls_key = config.tls.key;
  options.api_key_file = config.api_keys;
  options.version = Version();
  options.max_calls = static_cast<int32_t>(config.grpc.max_calls);
  options.max_connection_age = config.grpc.max_connection_age;
  options.reflection = config.grpc.reflection;
  return options;
}

}  // namespace

absl::StatusOr<std::unique_ptr<FrontEnds>> FrontEnds::Start(const ServerConfig& config,
                                                            frontend::InferenceService* service,
                                                            metrics::Metrics* metrics) {
  std::unique_ptr<FrontEnds> front_ends(new FrontEnds);
  auto http = frontend::StartHttpServer(
      HttpOptions(config), service, [metrics] { return metrics->Scrape(); }, metrics);
  if (!http.ok()) return WithAddressExit(http.status());
  front_ends->http_ = *std::move(http);
  if (config.grpc.enabled) {
    auto grpc = frontend::StartGrpcServer(GrpcOptions(config), service, metrics);
    if (!grpc.ok()) return WithAddressExit(grpc.status());
    front_ends->grpc_ = *std::move(grpc);
  }
  return front_ends;
}

void FrontEnds::BeginDrain() {
  http_->BeginDrain();
  if (grpc_ != nullptr) grpc_->BeginDrain();
}

void FrontEnds::Stop(absl::Duration grace) {
  http_->Stop(grace);
  if (grpc_ != nullptr) grpc_->Stop(grace);
}

}  // namespace longstride::cli

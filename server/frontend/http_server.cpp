#include "server/frontend/http_server.h"

#include <utility>

namespace longstride::frontend {
namespace {

class HttpServerImpl final : public HttpServer {
 public:
  explicit HttpServerImpl(std::unique_ptr<RestApi> api) : api_(std::move(api)) {}

  absl::Status Listen(const HttpServerOptions& options, FrontendObserver* observer) {
    HttpListenerOptions listen;
    listen.host = options.host;
    listen.port = options.port;
    listen.threads = options.threads;
    listen.tls_cert = options.tls_cert;
    listen.tls_key = options.tls_key;
    listen.limits = options.limits;
    ASSIGN_OR_RETURN(listener_, StartHttpListener(listen, api_.get(), observer));
    return absl::OkStatus();
  }

  int32_t port() const override { return listener_->port(); }
  void BeginDrain() override { listener_->BeginDrain(); }
  void Stop(absl::Duration grace) override { listener_->Stop(grace); }
  int32_t active_connections() const override { return listener_->active_connections(); }

 private:
  const std::unique_ptr<RestApi> api_;
  std::unique_ptr<HttpListener> listener_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<HttpServer>> StartHttpServer(
    const HttpServerOptions& options, InferenceService* service,
    std::function<std::string()> metrics_text, FrontendObserver* observer) {
  ApiKeys keys;
  if (!options.api_key_file.empty()) {
    ASSIGN_OR_RETURN(keys, ApiKeys::Load(options.api_key_file));
  }
  auto server = std::make_unique<HttpServerImpl>(std::make_unique<RestApi>(
      options.rest, std::move(keys), service, std::move(metrics_text), observer));
  RETURN_IF_ERROR(server->Listen(options, observer));
  return server;
}

}  // namespace longstride::frontend

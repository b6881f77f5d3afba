#include "server/frontend/grpc_server.h"

#include <condition_variable>
#include <fstream>
#include <mutex>
#include <sstream>
#include <thread>

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>

#include "server/frontend/grpc_calls.h"
#include "server/frontend/grpc_convert.h"

namespace longstride::frontend {
namespace {

constexpr const char* kServiceName = "longstride.v1.Inference";
constexpr auto kHealthPoll = std::chrono::milliseconds(100);

absl::StatusOr<std::string> ReadPem(const std::string& path, std::string_view what) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  if (!in || text.str().find("-----BEGIN") == std::string::npos) {
    return absl::InvalidArgumentError(
        StrCat("the TLS ", what, " cannot be read; give a PEM file that the server may read"));
  }
  return text.str();
}

class InferenceRpc final : public pb::Inference::CallbackService {
 public:
  explicit InferenceRpc(GrpcShared* shared) : shared_(shared) {}

  grpc::ServerWriteReactor<pb::GenerateEvent>* Generate(
      grpc::CallbackServerContext* context, const pb::GenerateRequest* request) override {
    return StartGenerate(context, request, shared_);
  }
  grpc::ServerUnaryReactor* GenerateOnce(grpc::CallbackServerContext* context,
                                         const pb::GenerateRequest* request,
                                         pb::GenerateResponse* response) override {
    return StartGenerateOnce(context, request, response, shared_);
  }
  grpc::ServerUnaryReactor* Embed(grpc::CallbackServerContext* context,
                                  const pb::EmbedRequest* request,
                                  pb::EmbedResponse* response) override {
    return StartEmbed(context, request, response, shared_);
  }

  grpc::ServerUnaryReactor* Classify(grpc::CallbackServerContext* context,
                                     const pb::ClassifyRequest* request,
                                     pb::ClassifyResponse* response) override {
    return StartClassify(context, request, response, shared_);
  }

  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const pb::TokenizeRequest* request,
                                     pb::TokenizeResponse* response) override {
    return StartSimple(context, "Tokenize", shared_, request, response,
                       [this](const auto& in, auto* out) { return DoTokenize(in, out); });
  }

  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const pb::DetokenizeRequest* request,
                                       pb::DetokenizeResponse* response) override {
    return StartSimple(context, "Detokenize", shared_, request, response,
                       [this](const auto& in, auto* out) { return DoDetokenize(in, out); });
  }

  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context,
                                       const pb::ListModelsRequest* request,
                                       pb::ListModelsResponse* response) override {
    return StartSimple(context, "ListModels", shared_, request, response,
                       [this](const auto&, auto* out) -> absl::Status {
                         ASSIGN_OR_RETURN(const auto model, shared_->service->FindModel(""));
                         ToProto(*model, out->add_models());
                         return absl::OkStatus();
                       });
  }

  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const pb::GetModelRequest* request,
                                     pb::Model* response) override {
    return StartSimple(context, "GetModel", shared_, request, response,
                       [this](const auto& in, auto* out) -> absl::Status {
                         ASSIGN_OR_RETURN(const auto model, shared_->service->FindModel(in.name()));
                         ToProto(*model, out);
                         return absl::OkStatus();
                       });
  }

  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* context,
                                          const pb::GetServerInfoRequest* request,
                                          pb::ServerInfo* response) override {
    return StartSimple(context, "GetServerInfo", shared_, request, response,
                       [this](const auto&, auto* out) {
                         FillServerInfo(out);
                         return absl::OkStatus();
                       });
  }

 private:
  absl::Status DoTokenize(const pb::TokenizeRequest& request, pb::TokenizeResponse* response) {
    absl::StatusOr<TokenizeResult> result;
    if (request.input_case() == pb::TokenizeRequest::kChat) {
      ASSIGN_OR_RETURN(ChatRequest chat, FromProto(request.chat()));
      chat.model = request.model();
      result = shared_->service->TokenizeChat(chat, request.with_pieces());
    } else {
      TokenizeRequest native;
      native.model = request.model();
      native.text = request.text().text();
      native.add_special_tokens = !request.text().no_special_tokens();
      native.parse_special_tokens = request.text().parse_special_tokens();
      native.with_pieces = request.with_pieces();
      result = shared_->service->Tokenize(native);
    }
    if (!result.ok()) return result.status();
    response->mutable_ids()->Assign(result->ids.begin(), result->ids.end());
    for (TokenPiece& piece : result->pieces) response->add_pieces(std::move(piece.bytes));
    response->set_max_context(result->max_context);
    return absl::OkStatus();
  }

  absl::Status DoDetokenize(const pb::DetokenizeRequest& request,
                            pb::DetokenizeResponse* response) {
    DetokenizeRequest native;
    native.model = request.model();
    native.ids.assign(request.ids().begin(), request.ids().end());
    native.skip_special_tokens = request.skip_special_tokens();
    ASSIGN_OR_RETURN(std::string text, shared_->service->Detokenize(native));
    response->set_text(std::move(text));
    return absl::OkStatus();
  }

  void FillServerInfo(pb::ServerInfo* out) const {
    const InferenceService& service = *shared_->service;
    out->set_version(shared_->version);
    switch (service.state()) {
      case ServiceState::kLoading:
        out->set_state(pb::SERVER_STATE_LOADING);
        break;
      case ServiceState::kReady:
        out->set_state(pb::SERVER_STATE_READY);
        break;
      case ServiceState::kDraining:
        out->set_state(pb::SERVER_STATE_DRAINING);
        break;
      case ServiceState::kFailed:
        out->set_state(pb::SERVER_STATE_FAILED);
        break;
    }
    const engine::EngineStatus status = service.engine_status();
    out->set_running_requests(status.running_requests);
    out->set_waiting_requests(status.waiting_requests);
    out->set_waiting_prompt_tokens(status.waiting_prompt_tokens);
    out->set_kv_utilization(status.kv_utilization);
    out->set_uptime_seconds(absl::ToDoubleSeconds(service.clock().Now() - shared_->started));
  }

  GrpcShared* const shared_;
};

class GrpcServerImpl final : public GrpcServer {
 public:
  GrpcServerImpl(InferenceService* service, FrontendObserver* observer) : rpc_(&shared_) {
    shared_.service = service;
    shared_.observer = observer;
    shared_.started = service->clock().Now();
  }

  ~GrpcServerImpl() override { Stop(absl::ZeroDuration()); }

  absl::Status Start(const GrpcServerOptions& options) {
    shared_.version = options.version;
    shared_.max_calls = options.max_calls;
    if (!options.api_key_file.empty()) {
      ASSIGN_OR_RETURN(shared_.keys, ApiKeys::Load(options.api_key_file));
    }
    ASSIGN_OR_RETURN(const auto credentials, Credentials(options));
    grpc::EnableDefaultHealthCheckService(true);
    if (options.reflection && !shared_.keys.required()) {
      grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    }
    grpc::ServerBuilder builder;
    Configure(options, &builder);
    const bool v6 = options.host.find(':') != std::string::npos;
    const std::string address = v6 ? StrCat("[", options.host, "]:", options.port)
                                   : StrCat(options.host, ":", options.port);
    int port = 0;
    builder.AddListeningPort(address, credentials, &port);
    builder.RegisterService(&rpc_);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || port == 0) {
      server_.reset();
      return absl::UnavailableError(StrCat("cannot listen on gRPC port ", options.port, " of ",
                                           options.host,
                                           ": the address is in use or not available; stop the "
                                           "other server or choose another port"));
    }
    port_ = port;
    SetServing(false);
    server_->GetHealthCheckService()->SetServingStatus("liveness", true);
    monitor_ = std::thread([this] { Monitor(); });
    return absl::OkStatus();
  }

  int32_t port() const override { return port_; }

  void BeginDrain() override {
    std::lock_guard<std::mutex> lock(mutex_);
    draining_ = true;
    SetServing(false);
    wake_.notify_all();
  }

  void Stop(absl::Duration grace) override {
    if (server_ == nullptr) return;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (stopped_) return;
      stopped_ = true;
      draining_ = true;
      SetServing(false);
      wake_.notify_all();
    }
    if (monitor_.joinable()) monitor_.join();
    server_->Shutdown(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(grace));
    server_->Wait();
  }

 private:
  absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> Credentials(
      const GrpcServerOptions& options) {
    if (options.tls_cert.empty() && options.tls_key.empty()) {
      return grpc::InsecureServerCredentials();
    }
    if (options.tls_cert.empty() || options.tls_key.empty()) {
      return absl::InvalidArgumentError(
          "TLS on the gRPC port needs both a certificate and a key; only one of them is set");
    }
    grpc::SslServerCredentialsOptions tls;
    grpc::SslServerCredentialsOptions::PemKeyCertPair pair;
    ASSIGN_OR_RETURN(pair.cert_chain, ReadPem(options.tls_cert, "certificate chain"));
    ASSIGN_OR_RETURN(pair.private_key, ReadPem(options.tls_key, "private key"));
    tls.pem_key_cert_pairs.push_back(std::move(pair));
    return grpc::SslServerCredentials(tls);
  }

  void Configure(const GrpcServerOptions& options, grpc::ServerBuilder* builder) {
    const auto ms = [](absl::Duration d) { return static_cast<int>(absl::ToInt64Milliseconds(d)); };
    builder->SetMaxReceiveMessageSize(options.max_receive_bytes);
    builder->SetMaxSendMessageSize(options.max_send_bytes);
    builder->AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, options.max_metadata_bytes);
    builder->AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS,
                                options.max_streams_per_connection);
    builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, ms(options.keepalive_time));
    builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, ms(options.keepalive_timeout));
    builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                                ms(options.min_ping_interval));
    if (options.max_connection_age > absl::ZeroDuration()) {
      builder->AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS, ms(options.max_connection_age));
      builder->AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS,
                                  ms(options.max_connection_age_grace));
    }
    // On by default in gRPC: a second server would take half of the connections without a word.
    builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  }

  void SetServing(bool serving) {
    grpc::HealthCheckServiceInterface* health = server_->GetHealthCheckService();
    for (const char* name : {"", kServiceName, "readiness"}) {
      health->SetServingStatus(name, serving);
    }
  }

  // Readiness follows the service: loading, a failed engine, recovery.
  void Monitor() {
    bool serving = false;
    std::unique_lock<std::mutex> lock(mutex_);
    while (!stopped_ && !draining_) {
      const bool ready = shared_.service->Ready().ok();
      if (ready != serving) SetServing(ready);
      serving = ready;
      wake_.wait_for(lock, kHealthPoll);
    }
  }

  GrpcShared shared_;
  InferenceRpc rpc_;
  std::unique_ptr<grpc::Server> server_;
  int32_t port_ = 0;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::thread monitor_;
  bool draining_ = false;
  bool stopped_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcServer>> StartGrpcServer(const GrpcServerOptions& options,
                                                            InferenceService* service,
                                                            FrontendObserver* observer) {
  if (options.port < 0 || options.port > 65535) {
    return absl::InvalidArgumentError(StrCat("gRPC port ", options.port, " is not in 0 to 65535"));
  }
  auto server = std::make_unique<GrpcServerImpl>(service, observer);
  RETURN_IF_ERROR(server->Start(options));
  return server;
}

}  // namespace longstride::frontend

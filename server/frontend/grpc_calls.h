// The reactors of longstride.v1.Inference. Included by grpc_*.cpp only.
//
// Rules of gRPC's callback API that they keep: one StartWrite outstanding, its message outliving
// it; Finish exactly once, also after a cancel; OnCancel may run beside other reactions; nothing
// blocks in a reaction (work goes to the service's workers); memory is given up in OnDone and
// later.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <grpcpp/grpcpp.h>
#include <longstride/v1/inference.grpc.pb.h>

#include "server/frontend/api_keys.h"
#include "server/frontend/grpc_convert.h"
#include "server/frontend/inference_service.h"
#include "server/frontend/observer.h"

namespace longstride::frontend {

// What all calls of a server share.
struct GrpcShared {
  InferenceService* service = nullptr;
  FrontendObserver* observer = nullptr;
  ApiKeys keys;
  std::string version;
  absl::Time started;
  int32_t max_calls = 0;
  std::atomic<int32_t> calls{0};
};

grpc::Status ToGrpcStatus(const absl::Status& status);

// Counts a call from its start to OnDone and reports it.
class CallScope {
 public:
  CallScope(GrpcShared* shared, std::string_view route, bool streamed);
  ~CallScope();
  void set_code(int32_t code) { code_.store(code); }
  // Before the call's work begins.
  void set_caller(const CallContext& caller) {
    request_id_ = caller.request_id;
    client_ = caller.client;
  }
  void AddRequestBytes(int64_t bytes) { request_bytes_ += bytes; }
  void AddResponseBytes(int64_t bytes) { response_bytes_ += bytes; }

 private:
  GrpcShared* const shared_;
  const std::string_view route_;
  const bool streamed_;
  const int64_t start_nanos_;
  std::string request_id_;
  std::string client_;
  std::atomic<int32_t> code_{0};
  std::atomic<int64_t> request_bytes_{0};
  std::atomic<int64_t> response_bytes_{0};
};

// Who calls, or why not: UNAUTHENTICATED without a valid key where keys are required,
// RESOURCE_EXHAUSTED over the cap of calls. Echoes the request id in the initial metadata.
absl::StatusOr<CallContext> AdmitCall(grpc::CallbackServerContext* context, GrpcShared* shared);

// Generate: events as they happen.
grpc::ServerWriteReactor<pb::GenerateEvent>* StartGenerate(grpc::CallbackServerContext* context,
                                                           const pb::GenerateRequest* request,
                                                           GrpcShared* shared);
grpc::ServerUnaryReactor* StartGenerateOnce(grpc::CallbackServerContext* context,
                                            const pb::GenerateRequest* request,
                                            pb::GenerateResponse* response, GrpcShared* shared);
grpc::ServerUnaryReactor* StartEmbed(grpc::CallbackServerContext* context,
                                     const pb::EmbedRequest* request, pb::EmbedResponse* response,
                                     GrpcShared* shared);
grpc::ServerUnaryReactor* StartClassify(grpc::CallbackServerContext* context,
                                        const pb::ClassifyRequest* request,
                                        pb::ClassifyResponse* response, GrpcShared* shared);
// A call that one function answers, on a worker. `work` returns what to do at the very end, when
// the call is known not to be cancelled (there alone may the response be written).
using SimpleWork = std::function<absl::StatusOr<std::function<void()>>()>;
grpc::ServerUnaryReactor* StartSimple(grpc::CallbackServerContext* context, std::string_view route,
                                      GrpcShared* shared, SimpleWork work);

// The same for a function of messages: it gets a copy of the request and its own response, because
// gRPC's are gone once a cancelled call is finished.
template <typename Request, typename Response, typename Function>
grpc::ServerUnaryReactor* StartSimple(grpc::CallbackServerContext* context, std::string_view route,
                                      GrpcShared* shared, const Request* request,
                                      Response* response, Function function) {
  auto copy = std::make_shared<const Request>(*request);
  return StartSimple(
      context, route, shared,
      [copy, response, function]() -> absl::StatusOr<std::function<void()>> {
        auto made = std::make_shared<Response>();
        RETURN_IF_ERROR(function(*copy, made.get()));
        return std::function<void()>([made, response] { response->Swap(made.get()); });
      });
}

}  // namespace longstride::frontend

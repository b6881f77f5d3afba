#include "server/frontend/rest_api.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_join.h"
#include "server/frontend/attention_map.h"
#include "server/frontend/error_mapping.h"
#include "server/frontend/model_json.h"
#include "server/frontend/openai_answer.h"
#include "server/frontend/openai_request.h"
#include "server/frontend/openai_stream.h"
#include "server/frontend/playground.h"

namespace longstride::frontend {
namespace {

constexpr std::size_t kMaxIdBytes = 128;

// Ids and fairness keys that clients choose end in logs, headers and scheduling tables.
bool IsIdentifier(std::string_view text) {
  return !text.empty() && text.size() <= kMaxIdBytes &&
         std::all_of(text.begin(), text.end(), [](char c) { return c > 0x20 && c < 0x7f; });
}

// The fairness key of a caller without an API key.
std::string ClientOf(const HttpRequest& request) {
  for (const std::string_view name : {"x-longstride-client", "x-llm-d-inference-fairness-id"}) {
    const std::string* value = request.Header(name);
    if (value != nullptr && IsIdentifier(*value)) return *value;
  }
  return request.remote_address;
}

}  // namespace

struct RestApi::Route {
  std::string_view path;
  std::string_view method;
  Work work;
  bool open = false;     // no API key needed
  bool inline_ = false;  // cheap: answered on the I/O thread
};

const RestApi::Route* RestApi::FindRoute(std::string_view path) {
  static constexpr Route kRoutes[] = {
      {"/v1/chat/completions", "POST", &RestApi::ChatCompletions},
      {"/v1/completions", "POST", &RestApi::Completions},
      {"/v1/embeddings", "POST", &RestApi::Embeddings},
      {"/v1/classify", "POST", &RestApi::Classify},
      {"/v1/models", "GET", &RestApi::Models},
      {"/v1/models/", "GET", &RestApi::Model},
      {"/tokenize", "POST", &RestApi::Tokenize},
      {"/detokenize", "POST", &RestApi::Detokenize},
      {"/health", "GET", &RestApi::Health, true, true},
      {"/health/ready", "GET", &RestApi::Health, true, true},
      {"/health/live", "GET", &RestApi::Live, true, true},
      {"/ping", "GET", &RestApi::Health, true, true},
      {"/version", "GET", &RestApi::Version},
      {"/metrics", "GET", &RestApi::Metrics},
      {"/longstride/attention_map", "GET", &RestApi::AttentionMap},
      // The page holds no data; what it shows it asks for with the key that the visitor types.
      {"/", "GET", &RestApi::Playground, true},
  };
  for (const Route& route : kRoutes) {
    if (route.path == path) return &route;
    const bool prefix = route.path.size() > 1 && route.path.back() == '/';
    if (prefix && path.size() > route.path.size() && path.starts_with(route.path)) return &route;
  }
  return nullptr;
}

RestApi::RestApi(RestOptions options, ApiKeys keys, InferenceService* service,
                 std::function<std::string()> metrics_text, FrontendObserver* observer)
    : options_(std::move(options)),
      keys_(std::move(keys)),
      service_(service),
      metrics_text_(std::move(metrics_text)),
      observer_(observer) {}

std::optional<HttpResponse> RestApi::Admit(HttpRequest* head) {
  const std::string* id = head->Header("x-request-id");
  head->request_id = id != nullptr && IsIdentifier(*id) ? *id : service_->NewId("req-");

  const Route* route = FindRoute(head->path);
  if (keys_.required() && (route == nullptr || !route->open)) {
    const std::string* authorization = head->Header("authorization");
    const auto name =
        authorization == nullptr ? std::nullopt : keys_.CheckAuthorization(*authorization);
    if (!name.has_value()) {
      observer_->AuthenticationFailed(Transport::kHttp);
      HttpResponse response = ErrorResponse(
          *head,
          absl::UnauthenticatedError("no valid API key; send it as 'Authorization: Bearer KEY'"));
      response.headers.emplace_back("WWW-Authenticate", "Bearer");
      return response;
    }
    head->client = *name;
  }
  if (route == nullptr) {
    return ErrorResponse(*head,
                         absl::NotFoundError("there is nothing at this path; see /v1/models, "
                                             "/v1/chat/completions or /v1/completions"));
  }
  head->route = route->path;
  if (head->client.empty()) head->client = ClientOf(*head);
  const bool allowed =
      head->method == route->method || (route->method == "GET" && head->method == "HEAD");
  if (!allowed) {
    HttpResponse response = Refusal(405, StrCat("this path takes ", route->method, " only"));
    response.headers.emplace_back("Allow", std::string(route->method));
    response.headers.emplace_back("X-Request-Id", head->request_id);
    return response;
  }
  return std::nullopt;
}

HttpResponse RestApi::Refusal(int32_t status, std::string_view message) {
  HttpResponse response;
  const ApiError error = HttpError(status, message);
  response.status = status;
  response.body = ErrorBody(error);
  if (error.retry_after_seconds.has_value()) {
    response.headers.emplace_back("Retry-After", StrCat(*error.retry_after_seconds));
  }
  return response;
}

void RestApi::Handle(std::unique_ptr<HttpRequest> request, std::shared_ptr<ResponseSink> sink) {
  const Route* route = FindRoute(request->path);
  if (route->inline_) {
    (this->*route->work)(*request, std::move(sink));
    return;
  }
  std::shared_ptr<HttpRequest> shared = std::move(request);
  service_->workers().Post([this, route, shared, sink = std::move(sink)]() mutable {
    if (sink->gone()) return;
    (this->*route->work)(*shared, std::move(sink));
  });
}

CallContext RestApi::Context(const HttpRequest& request) const {
  CallContext context;
  context.request_id = request.request_id;
  context.client = request.client;
  context.authenticated = keys_.required();
  return context;
}

HttpHeaders RestApi::AnswerHeaders(const HttpRequest& request,
                                   const std::vector<std::string>& ignored) const {
  HttpHeaders headers;
  headers.emplace_back("X-Request-Id", request.request_id);
  // Which sparsity plan the answer was computed with.
  if (const auto model = service_->model(); model != nullptr) {
    headers.emplace_back("x-longstride-plan", model->plan_digest);
  }
  std::string names;
  for (const std::string& field : ignored) {
    // A name that is no plain identifier is not repeated in a header.
    if (!IsIdentifier(field) || names.size() + field.size() > 1024) continue;
    if (!names.empty()) names += ", ";
    names += field;
  }
  if (!names.empty()) headers.emplace_back("x-longstride-ignored-fields", names);
  return headers;
}

HttpResponse RestApi::ErrorResponse(const HttpRequest& request, const absl::Status& status) const {
  const ApiError error = ToApiError(status);
  HttpResponse response;
  response.status = error.http_status;
  response.headers.emplace_back("X-Request-Id", request.request_id);
  if (error.retry_after_seconds.has_value()) {
    response.headers.emplace_back("Retry-After", StrCat(*error.retry_after_seconds));
  }
  response.body = ErrorBody(error);
  return response;
}

void RestApi::SendError(const HttpRequest& request, const absl::Status& status,
                        ResponseSink* sink) const {
  sink->Respond(ErrorResponse(request, status));
}

void RestApi::SendJson(const HttpRequest& request, std::string body,
                       const std::vector<std::string>& ignored, ResponseSink* sink) const {
  HttpResponse response;
  response.headers = AnswerHeaders(request, ignored);
  response.body = std::move(body);
  sink->Respond(std::move(response));
}

void RestApi::Live(const HttpRequest& request, std::shared_ptr<ResponseSink> sink) {
  SendJson(request, R"({"status":"live"})", {}, sink.get());
}

void RestApi::Health(const HttpRequest& request, std::shared_ptr<ResponseSink> sink) {
  const absl::Status ready = service_->Ready();
  if (!ready.ok()) return SendError(request, ready, sink.get());
  SendJson(request, R"({"status":"ready"})", {}, sink.get());
}

void RestApi::Version(const HttpRequest& request, std::shared_ptr<ResponseSink> sink) {
  std::string body;
  JsonWriter json(&body);
  json.BeginObject();
  json.Field("name", "longstride");
  json.Field("version", options_.version);
  json.EndObject();
  SendJson(request, std::move(body), {}, sink.get());
}

void RestApi::Metrics(const HttpRequest& request, std::shared_ptr<ResponseSink> sink) {
  HttpResponse response;
  response.content_type = "text/plain; version=0.0.4; charset=utf-8";
  response.headers = AnswerHeaders(request, {});
  response.body = metrics_text_();
  sink->Respond(std::move(response));
}

void RestApi::Models(const HttpRequest& request, std::shared_ptr<ResponseSink> sink) {
  const auto model = service_->FindModel("");
  if (!model.ok()) return SendError(request, model.status(), sink.get());
  SendJson(request, ModelListJson(**model), {}, sink.get());
}

void RestApi::Model(const HttpRequest& request, std::shared_ptr<ResponseSink> sink) {
  const auto model =
      service_->FindModel(request.path.substr(std::string_view("/v1/models/").size()));
  if (!model.ok()) return SendError(request, model.status(), sink.get());
  SendJson(request, ModelJson(**model), {}, sink.get());
}

void RestApi::AttentionMap(const HttpRequest& request, std::shared_ptr<ResponseSink> sink) {
  const auto model = service_->FindModel("");
  if (!model.ok()) return SendError(request, model.status(), sink.get());
  auto body = AttentionMapJson(**model, request.query);
  if (!body.ok()) return SendError(request, body.status(), sink.get());
  SendJson(request, *std::move(body), {}, sink.get());
}

void RestApi::Playground(const HttpRequest& request, std::shared_ptr<ResponseSink> sink) {
  if (!options_.playground) {
    return SendError(request, absl::NotFoundError("the playground page is switched off"),
                     sink.get());
  }
  HttpResponse response;
  response.content_type = "text/html; charset=utf-8";
  response.headers = AnswerHeaders(request, {});
  response.headers.emplace_back(
      "Content-Security-Policy",
      "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src "
      "'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'");
  response.headers.emplace_back("X-Content-Type-Options", "nosniff");
  response.headers.emplace_back("Cache-Control", "no-cache");
  response.body = PlaygroundHtml();
  sink->Respond(std::move(response));
}

void RestApi::Tokenize(const HttpRequest& request, std::shared_ptr<ResponseSink> sink) {
  const auto call = ParseTokenize(request.body);
  if (!call.ok()) return SendError(request, call.status(), sink.get());
  const auto result = call->is_chat ? service_->TokenizeChat(call->chat, call->with_pieces)
                                    : service_->Tokenize(call->text);
  if (!result.ok()) return SendError(request, result.status(), sink.get());
  SendJson(request, TokenizeJson(*result, call->llama_cpp, call->with_pieces), call->ignored_fields,
           sink.get());
}

void RestApi::Detokenize(const HttpRequest& request, std::shared_ptr<ResponseSink> sink) {
  const auto call = ParseDetokenize(request.body);
  if (!call.ok()) return SendError(request, call.status(), sink.get());
  const auto text = service_->Detokenize(*call);
  if (!text.ok()) return SendError(request, text.status(), sink.get());
  std::string body;
  JsonWriter json(&body);
  json.BeginObject();
  json.Field("prompt", *text);   // vLLM's key
  json.Field("content", *text);  // llama.cpp's
  json.EndObject();
  SendJson(request, std::move(body), {}, sink.get());
}

namespace {

// How an engine's thread reaches a stream or a collector that may be gone by then.
std::function<void()> WakeOf(const std::shared_ptr<ResponseSink>& sink) {
  return [weak = std::weak_ptr<ResponseSink>(sink)] {
    if (const auto strong = weak.lock()) strong->Wake();
  };
}

std::function<void()> NotifyOf(const std::shared_ptr<AnswerCollector>& collector) {
  return [weak = std::weak_ptr<AnswerCollector>(collector)] {
    if (const auto strong = weak.lock()) strong->Notify();
  };
}

HttpResponse StreamHead(HttpHeaders headers) {
  HttpResponse head;
  head.content_type = "text/event-stream; charset=utf-8";
  head.headers = std::move(headers);
  head.headers.emplace_back("Cache-Control", "no-cache");
  head.headers.emplace_back("X-Accel-Buffering", "no");
  return head;
}

bool KeepsTokens(const AnswerOptions& answer) { return answer.logprobs || answer.return_token_ids; }

}  // namespace

void RestApi::Completions(const HttpRequest& request, std::shared_ptr<ResponseSink> sink) {
  auto call = ParseCompletion(request.body);
  if (!call.ok()) return SendError(request, call.status(), sink.get());
  const HttpHeaders headers = AnswerHeaders(request, call->answer.ignored_fields);
  if (call->answer.stream) {
    auto generation = service_->Complete(std::move(call->request), Context(request), WakeOf(sink));
    if (!generation.ok()) return SendError(request, generation.status(), sink.get());
    auto stream = std::make_unique<OpenAiStream>(ApiKind::kCompletion, std::move(call->answer),
                                                 *std::move(generation), sink, observer_);
    sink->Stream(StreamHead(headers), std::move(stream), {options_.ping_interval, ": ping\n\n"});
    return;
  }
  auto collector =
      std::make_shared<AnswerCollector>(&service_->workers(), KeepsTokens(call->answer));
  auto generation =
      service_->Complete(std::move(call->request), Context(request), NotifyOf(collector));
  if (!generation.ok()) return SendError(request, generation.status(), sink.get());
  StartCollector(collector, *std::move(generation), headers, request, sink,
                 [answer = std::move(call->answer)](const GenerationInfo& info,
                                                    const CollectedAnswer& collected) {
                   return FormatCompletion(info, answer, collected);
                 });
}

void RestApi::ChatCompletions(const HttpRequest& request, std::shared_ptr<ResponseSink> sink) {
  auto call = ParseChat(request.body);
  if (!call.ok()) return SendError(request, call.status(), sink.get());
  const HttpHeaders headers = AnswerHeaders(request, call->answer.ignored_fields);
  if (call->answer.stream) {
    auto generation = service_->Chat(std::move(call->request), Context(request), WakeOf(sink));
    if (!generation.ok()) return SendError(request, generation.status(), sink.get());
    auto stream = std::make_unique<OpenAiStream>(ApiKind::kChat, std::move(call->answer),
                                                 *std::move(generation), sink, observer_);
    sink->Stream(StreamHead(headers), std::move(stream), {options_.ping_interval, ": ping\n\n"});
    return;
  }
  auto collector =
      std::make_shared<AnswerCollector>(&service_->workers(), KeepsTokens(call->answer));
  auto generation = service_->Chat(std::move(call->request), Context(request), NotifyOf(collector));
  if (!generation.ok()) return SendError(request, generation.status(), sink.get());
  StartCollector(collector, *std::move(generation), headers, request, sink,
                 [answer = std::move(call->answer)](const GenerationInfo& info,
                                                    const CollectedAnswer& collected) {
                   return FormatChat(info, answer, collected);
                 });
}

void RestApi::Embeddings(const HttpRequest& request, std::shared_ptr<ResponseSink> sink) {
  auto call = ParseEmbedding(request.body);
  if (!call.ok()) return SendError(request, call.status(), sink.get());
  const HttpHeaders headers = AnswerHeaders(request, call->ignored_fields);
  const bool normalize = call->request.normalize;
  auto collector = std::make_shared<AnswerCollector>(&service_->workers(), false);
  auto generation =
      service_->Embed(std::move(call->request), Context(request), NotifyOf(collector));
  if (!generation.ok()) return SendError(request, generation.status(), sink.get());
  StartCollector(
      collector, *std::move(generation), headers, request, sink,
      [normalize, base64 = call->base64](const GenerationInfo& info, CollectedAnswer& collected) {
        if (normalize) {
          for (auto& vector : collected.vectors) Normalize(&vector);
        }
        return FormatEmbeddings(info, base64, collected);
      });
}

void RestApi::Classify(const HttpRequest& request, std::shared_ptr<ResponseSink> sink) {
  auto call = ParseClassification(request.body);
  if (!call.ok()) return SendError(request, call.status(), sink.get());
  const HttpHeaders headers = AnswerHeaders(request, call->ignored_fields);
  auto collector = std::make_shared<AnswerCollector>(&service_->workers(), false);
  auto generation =
      service_->Classify(std::move(call->request), Context(request), NotifyOf(collector));
  if (!generation.ok()) return SendError(request, generation.status(), sink.get());
  StartCollector(collector, *std::move(generation), headers, request, sink,
                 [](const GenerationInfo& info, const CollectedAnswer& collected) {
                   return FormatClassification(info, collected);
                 });
}

void RestApi::StartCollector(const std::shared_ptr<AnswerCollector>& collector,
                             std::unique_ptr<Generation> generation, HttpHeaders headers,
                             const HttpRequest& request, std::shared_ptr<ResponseSink> sink,
                             BodyFormatter format) {
  sink->OnGone([collector] { collector->Cancel(); });
  collector->Start(
      std::move(generation),
      [this, sink, headers = std::move(headers), id = request.request_id,
       format = std::move(format)](const GenerationInfo& info, CollectedAnswer answer) mutable {
        if (!answer.status.ok()) {
          HttpRequest asked;
          asked.request_id = id;
          return SendError(asked, answer.status, sink.get());
        }
        HttpResponse response;
        response.headers = std::move(headers);
        response.body = format(info, answer);
        sink->Respond(std::move(response));
      });
}

}  // namespace longstride::frontend

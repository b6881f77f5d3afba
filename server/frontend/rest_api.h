// The REST routes over one InferenceService: OpenAI-compatible API, tokenizer, probes, metrics and
// the playground page.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "config/base/status.h"
#include "server/frontend/api_keys.h"
#include "server/frontend/http_types.h"
#include "server/frontend/inference_service.h"
#include "server/frontend/observer.h"
#include "server/frontend/openai_answer.h"

namespace longstride::frontend {

struct RestOptions {
  absl::Duration ping_interval = absl::Seconds(15);  // comments in streams that have nothing to say
  std::string version;                               // "0.1.0"
  bool playground = true;
};

// Every path but the probes (/health, /health/*, /ping) and the static page asks for an API key
// where keys are required.
class RestApi final : public HttpHandler {
 public:
  // Pointers must outlive the handler. `metrics_text` gives the Prometheus text; it is called on a
  // worker thread.
  RestApi(RestOptions options, ApiKeys keys, InferenceService* service,
          std::function<std::string()> metrics_text, FrontendObserver* observer);

  std::optional<HttpResponse> Admit(HttpRequest* head) override;
  void Handle(std::unique_ptr<HttpRequest> request, std::shared_ptr<ResponseSink> sink) override;
  HttpResponse Refusal(int32_t status, std::string_view message) override;

 private:
  struct Route;
  using Work = void (RestApi::*)(const HttpRequest&, std::shared_ptr<ResponseSink>);
  static const Route* FindRoute(std::string_view path);

  void Health(const HttpRequest& request, std::shared_ptr<ResponseSink> sink);
  void Live(const HttpRequest& request, std::shared_ptr<ResponseSink> sink);
  void Version(const HttpRequest& request, std::shared_ptr<ResponseSink> sink);
  void Metrics(const HttpRequest& request, std::shared_ptr<ResponseSink> sink);
  void Models(const HttpRequest& request, std::shared_ptr<ResponseSink> sink);
  void Model(const HttpRequest& request, std::shared_ptr<ResponseSink> sink);
  void Completions(const HttpRequest& request, std::shared_ptr<ResponseSink> sink);
  void ChatCompletions(const HttpRequest& request, std::shared_ptr<ResponseSink> sink);
  void Embeddings(const HttpRequest& request, std::shared_ptr<ResponseSink> sink);
  void Classify(const HttpRequest& request, std::shared_ptr<ResponseSink> sink);
  void Tokenize(const HttpRequest& request, std::shared_ptr<ResponseSink> sink);
  void Detokenize(const HttpRequest& request, std::shared_ptr<ResponseSink> sink);
  void AttentionMap(const HttpRequest& request, std::shared_ptr<ResponseSink> sink);
  void Playground(const HttpRequest& request, std::shared_ptr<ResponseSink> sink);

  CallContext Context(const HttpRequest& request) const;
  HttpHeaders AnswerHeaders(const HttpRequest& request,
                            const std::vector<std::string>& ignored) const;
  HttpResponse ErrorResponse(const HttpRequest& request, const absl::Status& status) const;
  void SendError(const HttpRequest& request, const absl::Status& status, ResponseSink* sink) const;
  void SendJson(const HttpRequest& request, std::string body,
                const std::vector<std::string>& ignored, ResponseSink* sink) const;

  using BodyFormatter = std::function<std::string(const GenerationInfo&, CollectedAnswer&)>;
  // Answers with the formatted whole once the generation is complete; cancels if the client leaves.
  void StartCollector(const std::shared_ptr<AnswerCollector>& collector,
                      std::unique_ptr<Generation> generation, HttpHeaders headers,
                      const HttpRequest& request, std::shared_ptr<ResponseSink> sink,
                      BodyFormatter format);

  const RestOptions options_;
  const ApiKeys keys_;
  InferenceService* const service_;
  const std::function<std::string()> metrics_text_;
  FrontendObserver* const observer_;
};

}  // namespace longstride::frontend

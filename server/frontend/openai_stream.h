// Server-sent events of one generation, pulled by the connection when the socket can take more.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "server/frontend/generation.h"
#include "server/frontend/http_types.h"
#include "server/frontend/observer.h"
#include "server/frontend/openai_format.h"
#include "server/frontend/openai_request.h"

namespace longstride::frontend {

// Order (the contract that SDKs rely on): role chunk per choice, deltas, a chunk with finish_reason
// per choice, the usage chunk if asked for, "[DONE]". After an error: an error chunk, then
// "[DONE]".
class OpenAiStream final : public StreamSource {
 public:
  // `sink` is kept so that wake-ups reach it while the stream lives.
  OpenAiStream(ApiKind kind, AnswerOptions answer, std::unique_ptr<Generation> generation,
               std::shared_ptr<ResponseSink> sink, FrontendObserver* observer);

  bool Pull(std::string* out) override;

 private:
  void Opening(std::string* out);
  bool Event(const GenerationEvent& event, std::string* out);
  void Delta(const GenerationEvent& event, std::string* out);
  void Finish(const GenerationEvent& event, std::string* out);
  void Progress(const GenerationEvent& event, std::string* out);
  void PromptLogprobs(const GenerationEvent& event, std::string* out);
  void Last(const GenerationEvent& event, std::string* out);
  void BeginChunk(JsonWriter* json, std::string* out) const;
  // Closes the chunk with `usage` where each chunk carries it.
  void EndChunk(JsonWriter* json, std::string* out);
  void BeginChoice(int32_t choice, JsonWriter* json) const;
  void WriteText(const GenerationEvent& event, JsonWriter* json) const;
  void Echo(std::string* out);

  const ApiKind kind_;
  const AnswerOptions answer_;
  const std::unique_ptr<Generation> generation_;
  const std::shared_ptr<ResponseSink> sink_;
  FrontendObserver* const observer_;
  const LogprobWriter logprobs_;
  std::string chunk_start_;       // `data: {"id":…,` as in every chunk
  std::vector<int64_t> offsets_;  // per choice: characters so far
  std::vector<GenerationEvent> events_;
  engine::RequestUsage usage_so_far_;
  bool opened_ = false;
  bool prompt_pending_ = false;  // an echo with logprobs waits for the prompt's
  int64_t tokens_ = 0;
};

}  // namespace longstride::frontend

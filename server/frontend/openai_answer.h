// Answers that are given whole: they collect the generation's events while the client waits.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "server/frontend/generation.h"
#include "server/frontend/http_types.h"
#include "server/frontend/openai_format.h"
#include "server/frontend/openai_request.h"
#include "server/frontend/worker_pool.h"

namespace longstride::frontend {

// One choice as it was at the end.
struct CollectedChoice {
  std::string text;
  std::string reasoning;
  std::vector<ToolCallDelta> tool_calls;  // whole calls
  std::vector<engine::TokenOutput> tokens;
  GenerationEvent finish;
};

struct CollectedAnswer {
  std::vector<CollectedChoice> choices;
  std::vector<std::vector<engine::TokenOutput>> prompt_tokens;  // per prompt, if scored
  std::vector<std::vector<float>> vectors;                      // per input
  absl::Status status;
  engine::RequestUsage usage;
};

// Drains a generation on the worker pool and hands over the whole when it is complete. Keeps itself
// alive while it works; Cancel (any thread) drops the generation.
class AnswerCollector : public std::enable_shared_from_this<AnswerCollector> {
 public:
  using Done = std::function<void(const GenerationInfo&, CollectedAnswer)>;

  AnswerCollector(WorkerPool* workers, bool keep_tokens)
      : workers_(workers), keep_tokens_(keep_tokens) {}

  // For the service's `notify`; may be called before Start.
  void Notify();
  void Start(std::unique_ptr<Generation> generation, Done done);
  void Cancel();

 private:
  void Pump();
  void Collect(GenerationEvent* event);

  WorkerPool* const workers_;
  const bool keep_tokens_;
  std::mutex mutex_;  // of everything below; never held while the engine calls Notify
  std::unique_ptr<Generation> generation_;
  Done done_;
  CollectedAnswer answer_;
  std::vector<GenerationEvent> events_;
  std::atomic<bool> scheduled_{false};
};

// The JSON documents of whole answers.
std::string FormatCompletion(const GenerationInfo& info, const AnswerOptions& options,
                             const CollectedAnswer& answer);
std::string FormatChat(const GenerationInfo& info, const AnswerOptions& options,
                       const CollectedAnswer& answer);
std::string FormatEmbeddings(const GenerationInfo& info, bool base64,
                             const CollectedAnswer& answer);

// In the form of vLLM's endpoint of that name.
std::string FormatClassification(const GenerationInfo& info, const CollectedAnswer& answer);

// The label with the highest score; of equals the first.
std::size_t BestLabel(const std::vector<float>& scores);

// Unit length; a zero vector stays zero.
void Normalize(std::vector<float>* vector);

}  // namespace longstride::frontend

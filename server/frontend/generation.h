// One client's request in flight: one engine request per prompt, their events in one stream with
// choices numbered across prompts, and model output split into content, reasoning and tool calls.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "config/base/status.h"
#include "server/engine/engine.h"
#include "server/frontend/served_model.h"

namespace longstride::frontend {

enum class FinishKind { kStop, kLength, kToolCalls };

struct ToolCallDelta {
  int32_t index = 0;      // among the choice's calls
  std::string id;         // first delta of a call only
  std::string name;       // first delta of a call only
  std::string arguments;  // fragment of a JSON text
};

// What of a choice's text is meant for whom.
struct ParsedText {
  std::string content;
  std::string reasoning;
  std::vector<ToolCallDelta> tool_calls;

  bool empty() const { return content.empty() && reasoning.empty() && tool_calls.empty(); }
};

// Follows the output of one choice in the template's dialect. One thread.
class OutputParser {
 public:
  virtual ~OutputParser() = default;
  virtual void Push(std::string_view text, ParsedText* out) = 0;
  // The choice ended: what was held back comes out.
  virtual void Finish(ParsedText* out) = 0;
};

struct GenerationEvent {
  enum class Kind {
    kProgress,        // of `prompt`
    kPromptLogprobs,  // of `prompt`
    kDelta,
    kChoiceFinished,
    kVector,  // of `prompt`
    kFinished,   // last; `status` says whether all of it is well
  };
  Kind kind = Kind::kDelta;
  int32_t prompt = 0;
  int32_t choice = 0;  // prompt * n + the engine's number
  ParsedText text;
  std::vector<engine::TokenOutput> tokens;
  FinishKind finish = FinishKind::kStop;
  std::string stop_string;
  std::optional<int32_t> stop_token;
  int32_t processed_tokens = 0;
  std::vector<float> vector;  // kVector: an embedding, or the labels' scores
  absl::Status status;
  engine::RequestUsage usage;  // kProgress: of the prompt so far; kFinished: all prompts together
};

// Facts that answers repeat.
struct GenerationInfo {
  std::string id;  // "cmpl-…", "chatcmpl-…"
  absl::Time created;
  std::shared_ptr<const ServedModel> model;
  std::vector<std::vector<int32_t>> prompts;  // kept only where the answer needs the ids
  std::vector<int32_t> prompt_lengths;
  int32_t num_choices = 1;  // per prompt
};

// Dropping it cancels. Drain from one thread at a time; the rest is thread-safe.
class Generation {
 public:
  virtual ~Generation() = default;
  virtual const GenerationInfo& info() const = 0;
  // Moves what is there to the back of `events`; false if kFinished is among it or was before: nothing
  // follows, and nobody is notified again.
  virtual bool Drain(std::vector<GenerationEvent>* events) = 0;
  virtual void Cancel() = 0;
};

using OutputParserFactory = std::function<std::unique_ptr<OutputParser>()>;

// `handles`: one per prompt, in order. A null factory passes text through as content.
std::unique_ptr<Generation> MakeGeneration(
    GenerationInfo info, std::vector<std::unique_ptr<engine::RequestHandle>> handles,
    const OutputParserFactory& make_parser);

}  // namespace longstride::frontend

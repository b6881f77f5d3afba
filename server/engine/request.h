// What a client asks of the engine and what comes back, in native types: JSON and protobuf end in
// the front end.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "config/base/status.h"
#include "model/sampler.h"

namespace longstride::engine {

// The last two give one vector for the prompt and generate nothing.
enum class RequestKind { kGenerate, kEmbed, kClassify };

struct GenerationRequest {
  RequestKind kind = RequestKind::kGenerate;
  std::string id;         // unique in the process; chosen by the front end
  std::string client;     // fairness key: the API key's name, or the fairness header
  std::string cache_salt; // prefixes are shared only between equal salts
  int32_t priority = 0;   // lower first
  std::optional<absl::Time> deadline;

  std::vector<int32_t> prompt;  // at least one token, all ids in the vocabulary
  model::SamplingParams sampling;
  int32_t num_choices = 1;
  int32_t max_tokens = 16;      // per choice; 0: only score the prompt
  int32_t min_tokens = 0;
  std::vector<std::string> stop;         // stop strings
  std::vector<int32_t> stop_token_ids;
  std::vector<int32_t> eos_token_ids;    // end the choice unless ignore_eos
  bool ignore_eos = false;
  bool include_stop_in_output = false;
  bool skip_special_tokens = true;
  // Special tokens that stay in the text all the same (marks of tool calls and reasoning).
  std::vector<int32_t> keep_special_token_ids;
  int32_t num_logprobs = -1;         // -1: none; 0: the sampled token's; k: and the k best
  int32_t num_prompt_logprobs = -1;  // same for the prompt's tokens
  bool use_prefix_cache = true;
  int32_t progress_interval_tokens = 0;  // 0: no progress events
};

enum class FinishReason {
  kStop,       // end token, stop token or stop string
  kLength,     // max_tokens, or the context is full
  kCancelled,  // handle dropped or Cancel()
  kDeadline,
  kError,
};

struct TokenOutput {
  int32_t token = 0;
  std::string text{};  // bytes that this token completed; may be empty
  float logprob = 0.0f;
  std::vector<model::TokenLogprob> top{};
};

// Counts of one request, final in the last event.
struct RequestUsage {
  int32_t prompt_tokens = 0;
  int32_t cached_tokens = 0;     // of the prompt, found in the prefix cache
  int32_t generated_tokens = 0;  // over all choices
  int64_t kv_tokens_total = 0;     // keys dense attention would have read, mean over layers
  int64_t kv_tokens_attended = 0;  // keys really visible, mean over layers
  int64_t kv_bytes_peak = 0;
  int32_t preemptions = 0;
  double queue_seconds = 0;
  double prefill_seconds = 0;   // admission to first token
  double decode_seconds = 0;
};

struct OutputEvent {
  enum class Kind {
    kProgress,        // prompt tokens processed so far
    kPromptLogprobs,  // once, before the first delta, if asked for
    kDelta,           // new text of one choice
    kChoiceFinished,  // last event of one choice
    kVector,          // of kEmbed and kClassify
    kFinished,        // last event of the request: `status` and `usage`
  };
  Kind kind = Kind::kDelta;
  int32_t choice = 0;
  std::string text{};                // kDelta: valid UTF-8, never half a character
  std::vector<TokenOutput> tokens{}; // kDelta; kPromptLogprobs: one per prompt token, first has none
  FinishReason reason = FinishReason::kStop;  // kChoiceFinished
  std::string stop_string{};         // kChoiceFinished: which stop string or empty
  std::optional<int32_t> stop_token{};  // kChoiceFinished: which stop token
  int32_t processed_tokens = 0;      // kProgress
  std::vector<float> vector{};       // kVector: the embedding, not normalised, or a score a label
  absl::Status status{};             // kFinished: why, where reason is kError/kDeadline/kCancelled
  RequestUsage usage{};              // kProgress (so far), kFinished
};

}  // namespace longstride::engine

// One choice's tokens to the text that its client sees: incremental detokenisation, stop strings and
// stop tokens.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "model/sampler.h"
#include "server/engine/request.h"
#include "server/engine/stop_matcher.h"

namespace longstride::engine {

// Token ids to text as they come, whole characters only (model::StreamDecoder).
class TextStream {
 public:
  virtual ~TextStream() = default;
  virtual std::string Push(int32_t token) = 0;
  virtual std::string Flush() = 0;
};

class TextStreamFactory {
 public:
  virtual ~TextStreamFactory() = default;
  // `at_text_start`: the tokens begin a text; else they go on from a prompt. Thread-safe.
  // `keep`: special tokens that are not skipped all the same.
  virtual std::unique_ptr<TextStream> NewStream(bool skip_special, bool at_text_start,
                                                const std::vector<int32_t>& keep) const = 0;
};

// What the choices of one request have in common.
struct OutputRules {
  explicit OutputRules(const GenerationRequest& request);
  bool EndsAt(int32_t token) const;

  int32_t max_tokens;
  int32_t min_tokens;
  bool include_stop;
  std::vector<int32_t> stop_tokens;  // ascending; end tokens too, unless they are ignored
  StopMatcher::Table stops;
};

class OutputProcessor {
 public:
  struct Ending {
    FinishReason reason = FinishReason::kStop;
    std::string stop_string{};
    std::optional<int32_t> stop_token{};
  };

  OutputProcessor(const OutputRules* rules, std::unique_ptr<TextStream> stream);

  // The next token; the choice's end if this was the last one. Nothing may follow then.
  std::optional<Ending> Push(const model::SampledToken& token);
  // What can be shown now, at the granularity of tokens: text that a stop string may still claim
  // stays back, with its tokens. The text is that of the tokens together.
  void Take(std::string* text, std::vector<TokenOutput>* tokens);
  // The choice was ended from outside: nothing is held back any more.
  void Abandon() { ended_ = true; }

  int32_t num_tokens() const { return num_tokens_; }

 private:
  struct Pending {
    TokenOutput output;
    int64_t begin = 0;  // offsets into the choice's text
    int64_t end = 0;
  };
  void Append(const model::SampledToken& token, std::string text);
  void Cut(int64_t end);
  std::optional<Ending> FlushStream();

  const OutputRules* rules_;
  std::unique_ptr<TextStream> stream_;
  StopMatcher matcher_;
  std::deque<Pending> pending_;
  std::string tail_;  // text of the unfinished character at the end, where its token was taken
  int64_t length_ = 0;
  int32_t num_tokens_ = 0;
  bool ended_ = false;
};

}  // namespace longstride::engine

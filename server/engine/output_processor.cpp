#include "server/engine/output_processor.h"

#include <algorithm>
#include <utility>

namespace longstride::engine {

OutputRules::OutputRules(const GenerationRequest& request)
    : max_tokens(request.max_tokens),
      min_tokens(request.min_tokens),
      include_stop(request.include_stop_in_output),
      stop_tokens(request.stop_token_ids),
      stops(request.stop) {
  if (!request.ignore_eos) {
    stop_tokens.insert(stop_tokens.end(), request.eos_token_ids.begin(),
                       request.eos_token_ids.end());
  }
  std::sort(stop_tokens.begin(), stop_tokens.end());
}

bool OutputRules::EndsAt(int32_t token) const {
  return std::binary_search(stop_tokens.begin(), stop_tokens.end(), token);
}

OutputProcessor::OutputProcessor(const OutputRules* rules, std::unique_ptr<TextStream> stream)
    : rules_(rules), stream_(std::move(stream)), matcher_(&rules->stops) {}

void OutputProcessor::Append(const model::SampledToken& token, std::string text) {
  Pending pending;
  pending.begin = length_;
  length_ += static_cast<int64_t>(text.size());
  pending.end = length_;
  pending.output = {.token = token.token, .text = std::move(text), .logprob = token.logprob,
                    .top = token.top};
  pending_.push_back(std::move(pending));
}

// Ends the text at `end`: later tokens go, the one it lies in is shortened.
void OutputProcessor::Cut(int64_t end) {
  while (!pending_.empty() && pending_.back().begin >= end) pending_.pop_back();
  if (!pending_.empty() && pending_.back().end > end) {
    Pending& last = pending_.back();
    last.output.text.resize(static_cast<size_t>(end - last.begin));
    last.end = end;
  }
  length_ = end;
}

std::optional<OutputProcessor::Ending> OutputProcessor::Push(const model::SampledToken& token) {
  ++num_tokens_;
  const bool may_end = num_tokens_ > rules_->min_tokens;
  if (may_end && rules_->EndsAt(token.token)) {
    if (rules_->include_stop) Append(token, stream_->Push(token.token));
    ended_ = true;
    if (auto ending = FlushStream()) return ending;
    return Ending{.stop_token = token.token};
  }
  std::string text = stream_->Push(token.token);
  if (!may_end) {
    matcher_.Skip(text.size());
    Append(token, std::move(text));
  } else {
    const auto hit = matcher_.Push(text);
    Append(token, std::move(text));
    if (hit) {
      ended_ = true;
      Cut(rules_->include_stop ? hit->end : hit->begin);
      return Ending{.stop_string = rules_->stops.stops()[static_cast<size_t>(hit->index)]};
    }
  }
  if (num_tokens_ < rules_->max_tokens) return std::nullopt;
  ended_ = true;
  if (auto ending = FlushStream()) return ending;
  return Ending{.reason = FinishReason::kLength};
}

// The replacement of an unfinished character counts as text: it may even complete a stop string.
std::optional<OutputProcessor::Ending> OutputProcessor::FlushStream() {
  std::string text = stream_->Flush();
  if (text.empty()) return std::nullopt;
  const bool may_end = num_tokens_ > rules_->min_tokens;
  const auto hit = may_end ? matcher_.Push(text) : std::nullopt;
  const auto size = static_cast<int64_t>(text.size());
  if (pending_.empty()) {
    tail_ = std::move(text);
  } else {
    pending_.back().output.text += text;
    pending_.back().end += size;
  }
  length_ += size;
  if (!hit) return std::nullopt;
  const int64_t end = rules_->include_stop ? hit->end : hit->begin;
  tail_.resize(std::min(tail_.size(), static_cast<size_t>(std::max<int64_t>(
                                          0, end - (length_ - static_cast<int64_t>(tail_.size()))))));
  Cut(end);
  return Ending{.stop_string = rules_->stops.stops()[static_cast<size_t>(hit->index)]};
}

void OutputProcessor::Take(std::string* text, std::vector<TokenOutput>* tokens) {
  const int64_t safe = ended_ ? length_ : matcher_.safe_end();
  while (!pending_.empty() && pending_.front().end <= safe) {
    *text += pending_.front().output.text;
    tokens->push_back(std::move(pending_.front().output));
    pending_.pop_front();
  }
  if (ended_) *text += std::exchange(tail_, {});
}

}  // namespace longstride::engine

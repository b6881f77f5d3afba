#include "server/frontend/openai_answer.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/escaping.h"
#include "config/base/strings.h"

namespace longstride::frontend {

void AnswerCollector::Notify() {
  if (scheduled_.exchange(true, std::memory_order_acq_rel)) return;
  workers_->Post([self = shared_from_this()] { self->Pump(); });
}

void AnswerCollector::Start(std::unique_ptr<Generation> generation, Done done) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const GenerationInfo& info = generation->info();
    answer_.choices.resize(info.prompt_lengths.size() * info.num_choices);
    answer_.prompt_tokens.resize(info.prompt_lengths.size());
    answer_.vectors.resize(info.prompt_lengths.size());
    generation_ = std::move(generation);
    done_ = std::move(done);
  }
  Notify();
}

void AnswerCollector::Cancel() {
  std::unique_ptr<Generation> generation;
  Done done;
  std::lock_guard<std::mutex> lock(mutex_);
  generation = std::move(generation_);
  done = std::move(done_);
}

void AnswerCollector::Pump() {
  scheduled_.store(false, std::memory_order_release);
  std::unique_ptr<Generation> generation;
  Done done;
  CollectedAnswer answer;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (generation_ == nullptr) return;
    events_.clear();
    generation_->Drain(&events_);
    bool finished = false;
    for (GenerationEvent& event : events_) {
      finished = finished || event.kind == GenerationEvent::Kind::kFinished;
      Collect(&event);
    }
    if (!finished) return;
    generation = std::move(generation_);
    done = std::move(done_);
    answer = std::move(answer_);
  }
  done(generation->info(), std::move(answer));
}

void AnswerCollector::Collect(GenerationEvent* event) {
  switch (event->kind) {
    case GenerationEvent::Kind::kProgress:
      return;
    case GenerationEvent::Kind::kPromptLogprobs:
      answer_.prompt_tokens[event->prompt] = std::move(event->tokens);
      return;
    case GenerationEvent::Kind::kVector:
      answer_.vectors[event->prompt] = std::move(event->vector);
      return;
    case GenerationEvent::Kind::kFinished:
      answer_.status = std::move(event->status);
      answer_.usage = event->usage;
      return;
    case GenerationEvent::Kind::kChoiceFinished:
      answer_.choices[event->choice].finish = std::move(*event);
      return;
    case GenerationEvent::Kind::kDelta:
      break;
  }
  CollectedChoice& choice = answer_.choices[event->choice];
  choice.text += event->text.content;
  choice.reasoning += event->text.reasoning;
  for (ToolCallDelta& call : event->text.tool_calls) {
    if (choice.tool_calls.size() <= static_cast<std::size_t>(call.index)) {
      choice.tool_calls.resize(call.index + 1);
    }
    ToolCallDelta& whole = choice.tool_calls[call.index];
    if (!call.id.empty()) whole.id = std::move(call.id);
    if (!call.name.empty()) whole.name = std::move(call.name);
    whole.arguments += call.arguments;
  }
  if (!keep_tokens_) return;
  for (engine::TokenOutput& token : event->tokens) choice.tokens.push_back(std::move(token));
}

namespace {

void WriteTail(const AnswerOptions& options, const CollectedAnswer& answer, JsonWriter* json) {
  json->Key("usage");
  WriteUsage(answer.usage, json);
  if (options.timings) {
    json->Key("timings");
    WriteTimings(answer.usage, json);
  }
}

void WriteTokenIds(const CollectedChoice& choice, JsonWriter* json) {
  json->Key("token_ids");
  json->BeginArray();
  for (const engine::TokenOutput& token : choice.tokens) json->Int(token.token);
  json->EndArray();
}

}  // namespace

std::string FormatCompletion(const GenerationInfo& info, const AnswerOptions& options,
                             const CollectedAnswer& answer) {
  std::string body;
  JsonWriter json(&body);
  const LogprobWriter logprobs(*info.model->tokenizer, options.tokens_as_ids);
  json.BeginObject();
  WriteHeader(info, "text_completion", &json);
  json.Key("choices");
  json.BeginArray();
  for (std::size_t i = 0; i < answer.choices.size(); ++i) {
    const CollectedChoice& choice = answer.choices[i];
    const std::size_t prompt = i / info.num_choices;
    json.BeginObject();
    json.Field("index", static_cast<int64_t>(i));
    std::string text = choice.text;
    if (options.echo) {
      const auto prompt_text = info.model->tokenizer->Decode(info.prompts[prompt], true);
      if (prompt_text.ok()) text = *prompt_text + text;
    }
    json.Field("text", text);
    json.Key("logprobs");
    if (options.logprobs) {
      std::vector<engine::TokenOutput> tokens;
      if (options.echo) tokens = answer.prompt_tokens[prompt];
      const std::size_t without = tokens.empty() ? 0 : 1;
      tokens.insert(tokens.end(), choice.tokens.begin(), choice.tokens.end());
      int64_t offset = 0;
      logprobs.WriteCompletion(tokens, without, &offset, &json);
    } else {
      json.Null();
    }
    json.Field("finish_reason", FinishName(choice.finish.finish));
    WriteStopReason(choice.finish, &json);
    if (options.prompt_logprobs) {
      json.Key("prompt_logprobs");
      logprobs.WritePrompt(answer.prompt_tokens[prompt], &json);
    }
    if (options.return_token_ids) {
      json.Key("prompt_token_ids");
      WriteIds(info.prompts[prompt], &json);
      WriteTokenIds(choice, &json);
    }
    json.EndObject();
  }
  json.EndArray();
  WriteTail(options, answer, &json);
  json.EndObject();
  return body;
}

std::string FormatChat(const GenerationInfo& info, const AnswerOptions& options,
                       const CollectedAnswer& answer) {
  std::string body;
  JsonWriter json(&body);
  const LogprobWriter logprobs(*info.model->tokenizer, options.tokens_as_ids);
  json.BeginObject();
  WriteHeader(info, "chat.completion", &json);
  json.Key("choices");
  json.BeginArray();
  for (std::size_t i = 0; i < answer.choices.size(); ++i) {
    const CollectedChoice& choice = answer.choices[i];
    json.BeginObject();
    json.Field("index", static_cast<int64_t>(i));
    json.Key("message");
    json.BeginObject();
    json.Field("role", "assistant");
    json.Key("content");
    if (choice.text.empty() && !choice.tool_calls.empty()) {
      json.Null();
    } else {
      json.String(choice.text);
    }
    if (!choice.reasoning.empty()) json.Field("reasoning_content", choice.reasoning);
    if (!choice.tool_calls.empty()) {
      json.Key("tool_calls");
      json.BeginArray();
      for (const ToolCallDelta& call : choice.tool_calls) WriteToolCallDelta(call, false, &json);
      json.EndArray();
    }
    json.Key("refusal");
    json.Null();
    json.EndObject();
    json.Key("logprobs");
    if (options.logprobs) {
      logprobs.WriteChat(choice.tokens, &json);
    } else {
      json.Null();
    }
    json.Field("finish_reason", FinishName(choice.finish.finish));
    WriteStopReason(choice.finish, &json);
    if (options.return_token_ids) WriteTokenIds(choice, &json);
    json.EndObject();
  }
  json.EndArray();
  if (options.prompt_logprobs) {
    json.Key("prompt_logprobs");
    logprobs.WritePrompt(answer.prompt_tokens.front(), &json);
  }
  if (options.return_token_ids) {
    json.Key("prompt_token_ids");
    WriteIds(info.prompts.front(), &json);
  }
  WriteTail(options, answer, &json);
  json.EndObject();
  return body;
}

namespace {

// The usage of what generates nothing.
void WriteInputUsage(const CollectedAnswer& answer, JsonWriter* json) {
  json->Key("usage");
  json->BeginObject();
  json->Field("prompt_tokens", answer.usage.prompt_tokens);
  json->Field("total_tokens", answer.usage.prompt_tokens);
  json->EndObject();
}

}  // namespace

std::string FormatEmbeddings(const GenerationInfo& info, bool base64,
                             const CollectedAnswer& answer) {
  std::string body;
  JsonWriter json(&body);
  json.BeginObject();
  json.Field("object", "list");
  json.Key("data");
  json.BeginArray();
  for (std::size_t i = 0; i < answer.vectors.size(); ++i) {
    const std::vector<float>& vector = answer.vectors[i];
    json.BeginObject();
    json.Field("object", "embedding");
    json.Field("index", static_cast<int64_t>(i));
    json.Key("embedding");
    if (base64) {
      static_assert(std::endian::native == std::endian::little, "the wire format is little-endian");
      json.String(absl::Base64Escape(absl::string_view(reinterpret_cast<const char*>(vector.data()),
                                                       vector.size() * sizeof(float))));
    } else {
      json.BeginArray();
      for (const float value : vector) json.Float(value);
      json.EndArray();
    }
    json.EndObject();
  }
  json.EndArray();
  json.Field("model", info.model->name);
  WriteInputUsage(answer, &json);
  json.EndObject();
  return body;
}

std::string FormatClassification(const GenerationInfo& info, const CollectedAnswer& answer) {
  std::string body;
  JsonWriter json(&body);
  json.BeginObject();
  json.Field("id", info.id);
  json.Field("object", "list");
  json.Field("created", absl::ToUnixSeconds(info.created));
  json.Field("model", info.model->name);
  json.Key("data");
  json.BeginArray();
  for (std::size_t i = 0; i < answer.vectors.size(); ++i) {
    const std::vector<float>& scores = answer.vectors[i];
    json.BeginObject();
    json.Field("index", static_cast<int64_t>(i));
    json.Field("label", info.model->labels[BestLabel(scores)]);
    json.Key("probs");
    json.BeginArray();
    for (const float score : scores) json.Float(score);
    json.EndArray();
    json.Field("num_classes", static_cast<int64_t>(scores.size()));
    json.EndObject();
  }
  json.EndArray();
  WriteInputUsage(answer, &json);
  json.EndObject();
  return body;
}

std::size_t BestLabel(const std::vector<float>& scores) {
  return static_cast<std::size_t>(std::max_element(scores.begin(), scores.end()) - scores.begin());
}

void Normalize(std::vector<float>* vector) {
  double sum = 0;
  for (const float value : *vector) sum += static_cast<double>(value) * value;
  if (sum <= 0 || !std::isfinite(sum)) return;
  const double scale = 1.0 / std::sqrt(sum);
  for (float& value : *vector) value = static_cast<float>(value * scale);
}

}  // namespace longstride::frontend

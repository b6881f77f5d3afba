#include "server/frontend/openai_stream.h"

#include <chrono>
#include <utility>

#include "server/frontend/error_mapping.h"

namespace longstride::frontend {
namespace {

int64_t Nanos() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

OpenAiStream::OpenAiStream(ApiKind kind, AnswerOptions answer,
                           std::unique_ptr<Generation> generation,
                           std::shared_ptr<ResponseSink> sink, FrontendObserver* observer)
    : kind_(kind),
      answer_(std::move(answer)),
      generation_(std::move(generation)),
      sink_(std::move(sink)),
      observer_(observer),
      logprobs_(*generation_->info().model->tokenizer, answer_.tokens_as_ids) {
  chunk_start_ = "data: ";
  JsonWriter json(&chunk_start_);
  json.BeginObject();
  WriteHeader(generation_->info(),
              kind_ == ApiKind::kChat ? "chat.completion.chunk" : "text_completion", &json);
  const GenerationInfo& info = generation_->info();
  offsets_.resize(info.prompt_lengths.size() * info.num_choices, 0);
  for (const int32_t length : info.prompt_lengths) usage_so_far_.prompt_tokens += length;
}

bool OpenAiStream::Pull(std::string* out) {
  const int64_t start = Nanos();
  const int64_t tokens_before = tokens_;
  if (!opened_) {
    opened_ = true;
    Opening(out);
  }
  events_.clear();
  generation_->Drain(&events_);
  bool more = true;
  for (const GenerationEvent& event : events_) more = Event(event, out) && more;
  if (tokens_ > tokens_before) {
    observer_->TokensWritten(Transport::kHttp, tokens_ - tokens_before, Nanos() - start);
  }
  return more;
}

void OpenAiStream::BeginChunk(JsonWriter* json, std::string* out) const {
  *out += chunk_start_;
  out->push_back(',');
  json->Key("choices");
  json->BeginArray();
}

void OpenAiStream::EndChunk(JsonWriter* json, std::string* out) {
  json->EndArray();
  if (answer_.include_usage) {
    json->Key("usage");
    answer_.continuous_usage ? WriteUsage(usage_so_far_, json) : json->Null();
  }
  json->EndObject();
  *out += "\n\n";
}

void OpenAiStream::BeginChoice(int32_t choice, JsonWriter* json) const {
  json->BeginObject();
  json->Field("index", choice);
}

void OpenAiStream::Opening(std::string* out) {
  if (kind_ == ApiKind::kCompletion) {
    if (!answer_.echo) return;
    if (answer_.logprobs) {
      prompt_pending_ = true;
    } else {
      Echo(out);
    }
    return;
  }
  for (int32_t choice = 0; choice < static_cast<int32_t>(offsets_.size()); ++choice) {
    JsonWriter json(out);
    BeginChunk(&json, out);
    BeginChoice(choice, &json);
    json.Key("delta");
    json.BeginObject();
    json.Field("role", "assistant");
    json.Field("content", "");
    json.EndObject();
    json.Key("logprobs");
    json.Null();
    json.Key("finish_reason");
    json.Null();
    json.EndObject();
    json.EndArray();
    if (answer_.return_token_ids) {
      json.Key("prompt_token_ids");
      WriteIds(generation_->info().prompts.front(), &json);
    }
    if (answer_.include_usage) {
      json.Key("usage");
      answer_.continuous_usage ? WriteUsage(usage_so_far_, &json) : json.Null();
    }
    json.EndObject();
    *out += "\n\n";
  }
}

// The prompts themselves, for echo without log-probabilities.
void OpenAiStream::Echo(std::string* out) {
  const GenerationInfo& info = generation_->info();
  for (int32_t choice = 0; choice < static_cast<int32_t>(offsets_.size()); ++choice) {
    const auto& prompt = info.prompts[choice / info.num_choices];
    const auto text = info.model->tokenizer->Decode(prompt, true);
    JsonWriter json(out);
    BeginChunk(&json, out);
    BeginChoice(choice, &json);
    json.Field("text", text.ok() ? *text : std::string());
    json.Key("logprobs");
    json.Null();
    json.Key("finish_reason");
    json.Null();
    json.EndObject();
    EndChunk(&json, out);
  }
}

void OpenAiStream::PromptLogprobs(const GenerationEvent& event, std::string* out) {
  const GenerationInfo& info = generation_->info();
  for (int32_t i = 0; i < info.num_choices; ++i) {
    const int32_t choice = event.prompt * info.num_choices + i;
    JsonWriter json(out);
    BeginChunk(&json, out);
    BeginChoice(choice, &json);
    if (prompt_pending_) {
      const auto text = info.model->tokenizer->Decode(info.prompts[event.prompt], true);
      json.Field("text", text.ok() ? *text : std::string());
      json.Key("logprobs");
      logprobs_.WriteCompletion(event.tokens, 1, &offsets_[choice], &json);
    } else if (kind_ == ApiKind::kCompletion) {
      json.Field("text", "");
    } else {
      json.Key("delta");
      json.BeginObject();
      json.EndObject();
    }
    json.Key("finish_reason");
    json.Null();
    if (answer_.prompt_logprobs) {
      json.Key("prompt_logprobs");
      logprobs_.WritePrompt(event.tokens, &json);
    }
    json.EndObject();
    EndChunk(&json, out);
  }
}

bool OpenAiStream::Event(const GenerationEvent& event, std::string* out) {
  switch (event.kind) {
    case GenerationEvent::Kind::kProgress:
      Progress(event, out);
      return true;
    case GenerationEvent::Kind::kPromptLogprobs:
      PromptLogprobs(event, out);
      return true;
    case GenerationEvent::Kind::kDelta:
      Delta(event, out);
      return true;
    case GenerationEvent::Kind::kChoiceFinished:
      Finish(event, out);
      return true;
    case GenerationEvent::Kind::kVector:
      return true;
    case GenerationEvent::Kind::kFinished:
      Last(event, out);
      return false;
  }
  return true;
}

void OpenAiStream::WriteText(const GenerationEvent& event, JsonWriter* json) const {
  if (kind_ == ApiKind::kCompletion) {
    json->Field("text", event.text.content);
    return;
  }
  json->Key("delta");
  json->BeginObject();
  if (!event.text.reasoning.empty()) json->Field("reasoning_content", event.text.reasoning);
  if (!event.text.content.empty()) json->Field("content", event.text.content);
  if (!event.text.tool_calls.empty()) {
    json->Key("tool_calls");
    json->BeginArray();
    for (const ToolCallDelta& call : event.text.tool_calls) WriteToolCallDelta(call, true, json);
    json->EndArray();
  }
  json->EndObject();
}

void OpenAiStream::Delta(const GenerationEvent& event, std::string* out) {
  tokens_ += static_cast<int64_t>(event.tokens.size());
  usage_so_far_.generated_tokens += static_cast<int32_t>(event.tokens.size());
  const bool carries_tokens =
      !event.tokens.empty() && (answer_.logprobs || answer_.return_token_ids);
  if (event.text.empty() && !carries_tokens) return;
  JsonWriter json(out);
  BeginChunk(&json, out);
  BeginChoice(event.choice, &json);
  WriteText(event, &json);
  json.Key("logprobs");
  if (!answer_.logprobs) {
    json.Null();
  } else if (kind_ == ApiKind::kChat) {
    logprobs_.WriteChat(event.tokens, &json);
  } else {
    logprobs_.WriteCompletion(event.tokens, 0, &offsets_[event.choice], &json);
  }
  json.Key("finish_reason");
  json.Null();
  if (answer_.return_token_ids) {
    json.Key("token_ids");
    json.BeginArray();
    for (const engine::TokenOutput& token : event.tokens) json.Int(token.token);
    json.EndArray();
  }
  json.EndObject();
  EndChunk(&json, out);
}

void OpenAiStream::Finish(const GenerationEvent& event, std::string* out) {
  JsonWriter json(out);
  BeginChunk(&json, out);
  BeginChoice(event.choice, &json);
  WriteText(event, &json);
  json.Key("logprobs");
  json.Null();
  json.Field("finish_reason", FinishName(event.finish));
  WriteStopReason(event, &json);
  json.EndObject();
  EndChunk(&json, out);
}

void OpenAiStream::Progress(const GenerationEvent& event, std::string* out) {
  if (!answer_.progress) return;
  JsonWriter json(out);
  BeginChunk(&json, out);
  json.EndArray();
  json.Key("prompt_progress");
  json.BeginObject();
  json.Field("total", generation_->info().prompt_lengths[event.prompt]);
  json.Field("cache", event.usage.cached_tokens);
  json.Field("processed", event.processed_tokens);
  json.Field("time_ms", event.usage.prefill_seconds * 1e3);
  json.Field("queue_ms", event.usage.queue_seconds * 1e3);
  json.Field("index", event.prompt);
  json.EndObject();
  json.EndObject();
  *out += "\n\n";
}

void OpenAiStream::Last(const GenerationEvent& event, std::string* out) {
  if (!event.status.ok()) {
    const ApiError error = ToApiError(event.status);
    observer_->StreamError(Transport::kHttp, error.http_status);
    *out += "data: ";
    *out += ErrorBody(error);
    *out += "\n\n";
  } else if (answer_.include_usage || answer_.timings) {
    JsonWriter json(out);
    BeginChunk(&json, out);
    json.EndArray();
    if (answer_.include_usage) {
      json.Key("usage");
      WriteUsage(event.usage, &json);
    }
    if (answer_.timings) {
      json.Key("timings");
      WriteTimings(event.usage, &json);
    }
    json.EndObject();
    *out += "\n\n";
  }
  *out += "data: [DONE]\n\n";
}

}  // namespace longstride::frontend

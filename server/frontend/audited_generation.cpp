#include "server/frontend/audited_generation.h"

#include <atomic>
#include <cstdint>
#include <utility>
#include <vector>

#include "config/base/version.h"
#include "model/sparsity/hash.h"
#include "server/frontend/json_writer.h"
#include "server/frontend/openai_format.h"

namespace longstride::frontend {
namespace {

// "1,15,22": what is hashed of tokens, so that a few lines of any language find the hash again.
void AppendIds(std::span<const int32_t> ids, std::string* out) {
  for (std::size_t i = 0; i < ids.size(); ++i) StrAppend(out, i == 0 ? "" : ",", ids[i]);
}

void WriteSampling(const engine::GenerationRequest& request, bool text, JsonWriter* json) {
  const model::SamplingParams& sampling = request.sampling;
  json->BeginObject();
  json->Field("n", request.num_choices);
  json->Field("max_tokens", request.max_tokens);
  json->Field("min_tokens", request.min_tokens);
  const std::pair<std::string_view, float> numbers[] = {
      {"temperature", sampling.temperature},
      {"top_p", sampling.top_p},
      {"min_p", sampling.min_p},
      {"typical_p", sampling.typical_p},
      {"repetition_penalty", sampling.repetition_penalty},
      {"presence_penalty", sampling.presence_penalty},
      {"frequency_penalty", sampling.frequency_penalty}};
  for (const auto& [name, value] : numbers) {
    json->Key(name);
    json->Float(value);
  }
  json->Field("top_k", sampling.top_k);
  json->Field("seed", StrCat(sampling.seed));  // 64 bits: more than JSON's readers keep of a number
  json->Field("ignore_eos", request.ignore_eos);
  json->Field("stop", static_cast<int64_t>(request.stop.size()));
  json->Field("stop_token_ids", static_cast<int64_t>(request.stop_token_ids.size()));
  json->Field("logit_bias", static_cast<int64_t>(sampling.logit_bias.size()));
  json->Field("allowed_token_ids", static_cast<int64_t>(sampling.allowed_token_ids.size()));
  json->Field("banned_token_ids", static_cast<int64_t>(sampling.banned_token_ids.size()));
  if (text) {
    json->Key("stop_strings");
    json->BeginArray();
    for (const std::string& stop : request.stop) json->String(stop);
    json->EndArray();
  }
  json->EndObject();
}

class AuditedGeneration final : public Generation {
 public:
  AuditedGeneration(std::unique_ptr<Generation> inner, std::string request, AuditLog* log,
                    std::function<void()> notify)
      : inner_(std::move(inner)),
        request_(std::move(request)),
        log_(log),
        notify_(std::move(notify)) {}

  ~AuditedGeneration() override {
    if (recorded_) return;
    GenerationEvent end;
    end.status = absl::CancelledError("");
    for (const int32_t length : info().prompt_lengths) end.usage.prompt_tokens += length;
    for (const Choice& choice : choices_) end.usage.generated_tokens += choice.num_tokens;
    log_->Append("request", Data(end));
  }

  const GenerationInfo& info() const override { return inner_->info(); }
  void Cancel() override { inner_->Cancel(); }

  bool Drain(std::vector<GenerationEvent>* events) override {
    if (!recorded_) {
      const std::size_t before = events->size();
      const bool more = inner_->Drain(events);
      for (std::size_t i = before; i < events->size(); ++i) Note((*events)[i]);
      if (more) return true;
      end_ = std::move(events->back());
      events->pop_back();
      recorded_ = true;
      log_->Append("request", Data(end_), [written = written_, notify = notify_] {
        written->store(true);
        notify();
      });
    }
    if (handed_out_) return false;
    if (!written_->load()) return true;
    handed_out_ = true;
    events->push_back(std::move(end_));
    return false;
  }

 private:
  struct Choice {
    std::string ids;
    int32_t num_tokens = 0;
    std::string text;
    std::string_view finish;  // "" while it goes on
  };

  void Note(const GenerationEvent& event) {
    if (event.kind != GenerationEvent::Kind::kDelta &&
        event.kind != GenerationEvent::Kind::kChoiceFinished) {
      return;
    }
    const auto c = static_cast<std::size_t>(event.choice);
    if (choices_.size() <= c) choices_.resize(c + 1);
    Choice& choice = choices_[c];
    if (event.kind == GenerationEvent::Kind::kChoiceFinished) {
      choice.finish = FinishName(event.finish);
      return;
    }
    for (const engine::TokenOutput& token : event.tokens) {
      StrAppend(&choice.ids, choice.num_tokens++ == 0 ? "" : ",", token.token);
      if (log_->text()) choice.text += token.text;
    }
  }

  std::string Data(const GenerationEvent& end) const {
    std::string ids, outcome;
    JsonWriter json(&outcome);
    json.BeginObject();
    json.Field("status", std::string(absl::StatusCodeToString(end.status.code())));
    json.Key("finish");
    json.BeginArray();
    for (const Choice& choice : choices_) {
      if (choice.finish.empty()) {
        json.Null();
      } else {
        json.String(choice.finish);
      }
      StrAppend(&ids, &choice == choices_.data() ? "" : ";", choice.ids);
    }
    json.EndArray();
    json.Field("prompt_tokens", end.usage.prompt_tokens);
    json.Field("cached_tokens", end.usage.cached_tokens);
    json.Field("generated_tokens", end.usage.generated_tokens);
    if (!choices_.empty()) json.Field("output_sha256", model::Sha256Hex(ids));
    if (!choices_.empty() && log_->text()) {
      json.Key("outputs");
      json.BeginArray();
      for (const Choice& choice : choices_) json.String(choice.text);
      json.EndArray();
    }
    json.EndObject();
    return StrCat(request_, ",\"outcome\":", outcome, "}");
  }

  const std::unique_ptr<Generation> inner_;
  const std::string request_;
  AuditLog* const log_;
  const std::function<void()> notify_;
  const std::shared_ptr<std::atomic<bool>> written_ = std::make_shared<std::atomic<bool>>(false);
  std::vector<Choice> choices_;
  GenerationEvent end_;  // held back until it is recorded
  bool recorded_ = false;
  bool handed_out_ = false;
};

}  // namespace

std::string AuditStart(const ServedModel& model) {
  std::string data;
  JsonWriter json(&data);
  json.BeginObject();
  json.Field("version", Version());
  json.Field("commit", BuildCommit());
  json.Field("model", model.name);
  json.Field("family", model.family);
  json.Field("weights_type", model.weights_type);
  json.Field("model_digest", model.model_digest);
  json.Field("plan", model.plan_name);
  json.Field("plan_digest", model.plan_digest);
  json.Field("kv_dtype", model.kv_dtype);
  json.Field("device", model.device);
  json.Field("max_context", model.max_context);
  json.EndObject();
  return data;
}

std::string AuditRequest(std::string_view api, const GenerationInfo& info,
                         const CallContext& context,
                         std::span<const engine::GenerationRequest> requests, bool text) {
  std::string ids;
  for (const engine::GenerationRequest& request : requests) {
    if (!ids.empty()) ids += ";";
    AppendIds(request.prompt, &ids);
  }
  std::string data;
  JsonWriter json(&data);
  json.BeginObject();
  json.Field("api", api);
  json.Field("id", info.id);
  json.Field("request_id", context.request_id);
  // Other names are what clients say of themselves, or their addresses.
  json.Field("client", context.authenticated ? context.client : "");
  json.Field("model", info.model->name);
  json.Field("model_digest", info.model->model_digest);
  json.Field("plan_digest", info.model->plan_digest);
  json.Field("prompts", static_cast<int64_t>(requests.size()));
  json.Field("prompt_sha256", model::Sha256Hex(ids));
  if (requests[0].kind == engine::RequestKind::kGenerate) {
    json.Key("sampling");
    WriteSampling(requests[0], text, &json);
  }
  if (text) {
    json.Key("prompt_texts");
    json.BeginArray();
    for (const engine::GenerationRequest& request : requests) {
      json.String(
          info.model->tokenizer->Decode(request.prompt, /*skip_special=*/false).value_or(""));
    }
    json.EndArray();
  }
  return data;
}

std::unique_ptr<Generation> AuditGeneration(std::unique_ptr<Generation> inner, std::string request,
                                            AuditLog* log, std::function<void()> notify) {
  return std::make_unique<AuditedGeneration>(std::move(inner), std::move(request), log,
                                             std::move(notify));
}

}  // namespace longstride::frontend

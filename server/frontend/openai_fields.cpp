#include "server/frontend/openai_fields.h"

#include <charconv>
#include <utility>

#include "server/frontend/error_mapping.h"

namespace longstride::frontend {
namespace {

using nlohmann::json;

absl::Status WrongType(std::string_view param, std::string_view allowed, const json& got) {
  return InvalidParam(param,
                      StrCat("'", param, "' must be ", allowed, ", got ", JsonTypeName(got)));
}

bool AsksForSomething(const json& value) {
  if (value.is_null()) return false;
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_string() || value.is_array() || value.is_object()) return !value.empty();
  return true;
}

absl::Status ReadStop(JsonFields* fields, std::vector<std::string>* out) {
  const json* stop = fields->Find("stop");
  if (stop == nullptr) return absl::OkStatus();
  if (stop->is_string()) {
    out->push_back(stop->get<std::string>());
    return absl::OkStatus();
  }
  if (!stop->is_array()) return WrongType("stop", "a string or a list of strings", *stop);
  for (const json& item : *stop) {
    if (!item.is_string()) return WrongType("stop", "a string or a list of strings", item);
    out->push_back(item.get<std::string>());
  }
  return absl::OkStatus();
}

absl::Status ReadLogitBias(JsonFields* fields, std::vector<std::pair<int64_t, double>>* out) {
  const json* bias = fields->Find("logit_bias");
  if (bias == nullptr) return absl::OkStatus();
  if (!bias->is_object()) {
    return WrongType("logit_bias", "an object of token ids and numbers", *bias);
  }
  for (const auto& [key, value] : bias->items()) {
    int64_t id = 0;
    const auto parsed = std::from_chars(key.data(), key.data() + key.size(), id);
    if (parsed.ec != std::errc() || parsed.ptr != key.data() + key.size()) {
      return InvalidParam("logit_bias", "a key of 'logit_bias' is not a token id");
    }
    if (!value.is_number()) return WrongType("logit_bias", "numbers by token id", value);
    out->emplace_back(id, value.get<double>());
  }
  return absl::OkStatus();
}

absl::Status ReadStreamOptions(JsonFields* fields, AnswerOptions* answer) {
  RETURN_IF_ERROR(fields->Bool("stream", &answer->stream));
  const json* options = fields->Find("stream_options");
  if (options == nullptr) return absl::OkStatus();
  if (!options->is_object()) return WrongType("stream_options", "an object", *options);
  JsonFields inner(*options, "stream_options");
  RETURN_IF_ERROR(inner.Bool("include_usage", &answer->include_usage));
  RETURN_IF_ERROR(inner.Bool("continuous_usage_stats", &answer->continuous_usage));
  return absl::OkStatus();
}

absl::Status ReadSampling(JsonFields* fields, GenerationFields* out) {
  RETURN_IF_ERROR(fields->Number("temperature", &out->temperature));
  RETURN_IF_ERROR(fields->Number("top_p", &out->top_p));
  RETURN_IF_ERROR(fields->Number("min_p", &out->min_p));
  RETURN_IF_ERROR(fields->Number("typical_p", &out->typical_p));
  RETURN_IF_ERROR(fields->Number("repetition_penalty", &out->repetition_penalty));
  RETURN_IF_ERROR(fields->Number("presence_penalty", &out->presence_penalty));
  RETURN_IF_ERROR(fields->Number("frequency_penalty", &out->frequency_penalty));
  RETURN_IF_ERROR(fields->Int("top_k", &out->top_k));
  RETURN_IF_ERROR(fields->Int("seed", &out->seed));
  RETURN_IF_ERROR(ReadLogitBias(fields, &out->logit_bias));
  RETURN_IF_ERROR(fields->Ints("allowed_token_ids", &out->allowed_token_ids));
  RETURN_IF_ERROR(fields->Ints("banned_token_ids", &out->banned_token_ids));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<json> ParseBody(std::string_view body) {
  ASSIGN_OR_RETURN(json parsed, ParseJson(body));
  if (!parsed.is_object()) {
    return absl::InvalidArgumentError(
        StrCat("the request body must be a JSON object, got ", JsonTypeName(parsed)));
  }
  return parsed;
}

absl::Status ReadGenerationFields(JsonFields* fields, GenerationFields* out,
                                  AnswerOptions* answer) {
  RETURN_IF_ERROR(ReadSampling(fields, out));
  RETURN_IF_ERROR(ReadStreamOptions(fields, answer));
  RETURN_IF_ERROR(ReadStop(fields, &out->stop));
  RETURN_IF_ERROR(fields->Int("max_tokens", &out->max_tokens));
  RETURN_IF_ERROR(fields->Int("min_tokens", &out->min_tokens));
  RETURN_IF_ERROR(fields->Int("n", &out->n));
  RETURN_IF_ERROR(fields->Ints("stop_token_ids", &out->stop_token_ids));
  RETURN_IF_ERROR(fields->Bool("ignore_eos", &out->ignore_eos));
  RETURN_IF_ERROR(fields->Bool("include_stop_str_in_output", &out->include_stop_in_output));
  RETURN_IF_ERROR(fields->Bool("skip_special_tokens", &out->skip_special_tokens));
  RETURN_IF_ERROR(fields->Int("prompt_logprobs", &out->prompt_logprobs));
  RETURN_IF_ERROR(fields->Int("priority", &out->priority));
  RETURN_IF_ERROR(fields->String("cache_salt", &out->cache_salt));
  if (const json* salt = fields->Find("cache_salt"); salt != nullptr && out->cache_salt.empty()) {
    return InvalidParam("cache_salt", "'cache_salt' is empty; send 1 to 1024 characters or none");
  }
  RETURN_IF_ERROR(fields->Number("timeout", &out->timeout_seconds));
  RETURN_IF_ERROR(fields->Bool("cache_prompt", &out->use_prefix_cache));
  RETURN_IF_ERROR(fields->Bool("return_progress", &answer->progress));
  RETURN_IF_ERROR(fields->Bool("timings", &answer->timings));
  RETURN_IF_ERROR(fields->Bool("return_token_ids", &answer->return_token_ids));
  RETURN_IF_ERROR(fields->Bool("return_tokens_as_token_ids", &answer->tokens_as_ids));
  answer->prompt_logprobs = out->prompt_logprobs.has_value();
  out->progress = answer->progress && answer->stream;
  return absl::OkStatus();
}

absl::Status RefuseUnsupported(JsonFields* fields, bool chat) {
  struct Entry {
    std::string_view name;
    std::string_view advice;
  };
  static constexpr Entry kAlways[] = {
      {"structured_outputs", "constrained output is not supported"},
      {"guided_json", "constrained output is not supported"},
      {"guided_regex", "constrained output is not supported"},
      {"guided_choice", "constrained output is not supported"},
      {"guided_grammar", "constrained output is not supported"},
      {"json_schema", "constrained output is not supported"},
      {"grammar", "constrained output is not supported"},
      {"bad_words", "ban tokens by id with 'banned_token_ids' instead"},
      {"lora", "adapters are not supported"},
      {"truncate_prompt_tokens", "shorten the prompt before sending it"},
      {"use_beam_search", "beam search is not supported"},
      {"logits_processors", "request-supplied code is not supported"},
      {"prompt_embeds", "send text or token ids"},
  };
  static constexpr Entry kChat[] = {
      {"functions", "use 'tools' instead"},
      {"function_call", "use 'tool_choice' instead"},
      {"audio", "only text is supported"},
      {"prediction", "predicted outputs are not supported"},
      {"web_search_options", "the server makes no requests of its own"},
      {"chat_template", "templates come with the model or the server's configuration"},
      {"documents", "put documents into a message"},
      {"mm_processor_kwargs", "only text is supported"},
  };
  static constexpr Entry kCompletion[] = {
      {"suffix", "infilling is not supported; use the model's own infill tokens in the prompt"},
  };
  const auto refuse = [&](const Entry& entry) -> absl::Status {
    const json* value = fields->Find(entry.name);
    if (value == nullptr || !AsksForSomething(*value)) return absl::OkStatus();
    return UnsupportedParam(entry.name,
                            StrCat("'", entry.name, "' is not supported: ", entry.advice));
  };
  for (const Entry& entry : kAlways) RETURN_IF_ERROR(refuse(entry));
  if (chat) {
    for (const Entry& entry : kChat) RETURN_IF_ERROR(refuse(entry));
  } else {
    for (const Entry& entry : kCompletion) RETURN_IF_ERROR(refuse(entry));
  }
  if (const json* best = fields->Find("best_of"); best != nullptr && JsonInt(*best) != 1) {
    return UnsupportedParam("best_of",
                            "'best_of' is not supported; ask for several choices with n");
  }
  if (const json* format = fields->Find("response_format"); format != nullptr) {
    const bool text =
        format->is_object() && format->contains("type") && (*format)["type"] == "text";
    if (!text) {
      return UnsupportedParam(
          "response_format",
          "'response_format' other than {\"type\":\"text\"} is not supported; describe the wanted "
          "form in the prompt and check the answer");
    }
  }
  if (const json* modalities = fields->Find("modalities"); modalities != nullptr) {
    const bool text =
        modalities->is_array() && modalities->size() == 1 && modalities->front() == "text";
    if (!text)
      return UnsupportedParam("modalities", "'modalities' other than text is not supported");
  }
  return absl::OkStatus();
}

absl::Status ReadPrompts(JsonFields* fields, std::string_view name, std::vector<PromptInput>* out) {
  constexpr std::string_view kAllowed =
      "a string, a list of strings, a list of token ids, or a list of such lists";
  const json* value = fields->Find(name);
  if (value == nullptr) {
    return InvalidParam(name, StrCat("'", name, "' is missing; it must be ", kAllowed));
  }
  const auto ids_of = [&](const json& list, PromptInput* prompt) {
    prompt->is_ids = true;
    prompt->ids.reserve(list.size());
    for (const json& item : list) {
      const std::optional<int64_t> id = JsonInt(item);
      if (!id.has_value()) return false;
      prompt->ids.push_back(*id);
    }
    return true;
  };
  if (value->is_string()) {
    out->emplace_back().text = value->get_ref<const std::string&>();
    return absl::OkStatus();
  }
  if (!value->is_array() || value->empty()) return WrongType(name, kAllowed, *value);
  if (value->front().is_number()) {
    if (!ids_of(*value, &out->emplace_back())) return WrongType(name, kAllowed, *value);
    return absl::OkStatus();
  }
  for (const json& item : *value) {
    PromptInput& prompt = out->emplace_back();
    if (item.is_string()) {
      prompt.text = item.get_ref<const std::string&>();
    } else if (!item.is_array() || !ids_of(item, &prompt)) {
      return WrongType(name, kAllowed, item);
    }
  }
  return absl::OkStatus();
}

}  // namespace longstride::frontend

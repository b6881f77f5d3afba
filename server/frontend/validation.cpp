#include "server/frontend/validation.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <set>

#include "server/frontend/error_mapping.h"
#include "server/frontend/utf8.h"

namespace longstride::frontend {
namespace {

struct NumberRule {
  std::string_view name;
  std::optional<double> GenerationFields::*value;
  float model::SamplingParams::*target;
  double min;
  double max;
  bool min_excluded;
};

constexpr std::array kNumberRules = {
    NumberRule{"temperature", &GenerationFields::temperature, &model::SamplingParams::temperature,
               0, 100, false},
    NumberRule{"top_p", &GenerationFields::top_p, &model::SamplingParams::top_p, 0, 1, true},
    NumberRule{"min_p", &GenerationFields::min_p, &model::SamplingParams::min_p, 0, 1, false},
    NumberRule{"typical_p", &GenerationFields::typical_p, &model::SamplingParams::typical_p, 0, 1,
               true},
    NumberRule{"repetition_penalty", &GenerationFields::repetition_penalty,
               &model::SamplingParams::repetition_penalty, 0, 10, true},
    NumberRule{"presence_penalty", &GenerationFields::presence_penalty,
               &model::SamplingParams::presence_penalty, -2, 2, false},
    NumberRule{"frequency_penalty", &GenerationFields::frequency_penalty,
               &model::SamplingParams::frequency_penalty, -2, 2, false},
};

absl::Status OutOfRange(std::string_view name, std::string got, std::string allowed) {
  return InvalidParam(name, StrCat("'", name, "' is ", got, "; allowed is ", allowed));
}

absl::Status CheckInt(std::string_view name, const std::optional<int64_t>& value, int64_t min,
                      int64_t max) {
  if (!value.has_value() || (*value >= min && *value <= max)) return absl::OkStatus();
  return OutOfRange(name, StrCat(*value), StrCat(min, " to ", max));
}

absl::Status CheckCount(std::string_view name, std::size_t count, int64_t max) {
  if (static_cast<int64_t>(count) <= max) return absl::OkStatus();
  return InvalidParam(
      name, StrCat("'", name, "' has ", count, " entries; at most ", max, " are allowed"));
}

// Ids that a request may name: in the vocabulary and each once.
absl::Status CheckIds(std::string_view name, const std::vector<int64_t>& ids,
                      const ValidationContext& context, std::vector<int32_t>* out) {
  RETURN_IF_ERROR(CheckCount(name, ids.size(), context.limits->max_token_list));
  const int32_t end = context.model->max_token_id();
  out->clear();
  for (const int64_t id : ids) {
    if (id < 0 || id >= end) {
      return InvalidParam(name, StrCat("'", name, "' holds the token id ", id,
                                       "; the vocabulary is 0 to ", end - 1));
    }
    out->push_back(static_cast<int32_t>(id));
  }
  std::sort(out->begin(), out->end());
  const auto twice = std::adjacent_find(out->begin(), out->end());
  if (twice != out->end()) {
    return InvalidParam(name, StrCat("'", name, "' holds the token id ", *twice, " twice"));
  }
  return absl::OkStatus();
}

absl::Status CheckNumbers(const GenerationFields& fields, model::SamplingParams* params) {
  for (const NumberRule& rule : kNumberRules) {
    const std::optional<double>& value = fields.*rule.value;
    if (!value.has_value()) continue;
    const bool inside = std::isfinite(*value) && *value <= rule.max &&
                        (rule.min_excluded ? *value > rule.min : *value >= rule.min);
    if (!inside) {
      return OutOfRange(rule.name, StrCat(*value),
                        StrCat(rule.min_excluded ? "more than " : "", rule.min, " to ", rule.max));
    }
    float narrowed = static_cast<float>(*value);
    // A positive value too small for a float must not become an excluded 0.
    if (rule.min_excluded && narrowed <= 0) narrowed = std::numeric_limits<float>::min();
    params->*rule.target = narrowed;
  }
  return absl::OkStatus();
}

absl::Status CheckLogitBias(const GenerationFields& fields, const ValidationContext& context,
                            model::SamplingParams* params) {
  RETURN_IF_ERROR(
      CheckCount("logit_bias", fields.logit_bias.size(), context.limits->max_logit_bias));
  std::vector<int64_t> ids;
  for (const auto& [id, bias] : fields.logit_bias) {
    if (!std::isfinite(bias) || bias < -100 || bias > 100) {
      return OutOfRange("logit_bias", StrCat(bias, " for token id ", id), "-100 to 100");
    }
    ids.push_back(id);
  }
  std::vector<int32_t> sorted;
  RETURN_IF_ERROR(CheckIds("logit_bias", ids, context, &sorted));
  for (const auto& [id, bias] : fields.logit_bias) {
    params->logit_bias.emplace_back(static_cast<int32_t>(id), static_cast<float>(bias));
  }
  std::sort(params->logit_bias.begin(), params->logit_bias.end());
  return absl::OkStatus();
}

absl::Status CheckStop(const GenerationFields& fields, const ValidationContext& context,
                       engine::GenerationRequest* out) {
  const RequestLimits& limits = *context.limits;
  RETURN_IF_ERROR(CheckCount("stop", fields.stop.size(), limits.max_stop_strings));
  for (const std::string& stop : fields.stop) {
    if (stop.empty() || static_cast<int64_t>(stop.size()) > limits.max_stop_bytes) {
      return InvalidParam("stop", StrCat("a stop string has ", stop.size(),
                                         " bytes; allowed is 1 to ", limits.max_stop_bytes));
    }
    if (!IsValidUtf8(stop)) return InvalidParam("stop", "a stop string is not valid UTF-8");
  }
  out->stop = fields.stop;
  RETURN_IF_ERROR(CheckIds("stop_token_ids", fields.stop_token_ids, context, &out->stop_token_ids));
  out->ignore_eos = fields.ignore_eos;
  out->include_stop_in_output = fields.include_stop_in_output;
  out->skip_special_tokens = fields.skip_special_tokens;
  return absl::OkStatus();
}

void TakeDefaults(const model::GenerationDefaults& defaults, model::SamplingParams* params) {
  if (defaults.temperature.has_value()) params->temperature = *defaults.temperature;
  if (defaults.top_k.has_value()) params->top_k = *defaults.top_k;
  if (defaults.top_p.has_value()) params->top_p = *defaults.top_p;
  if (defaults.min_p.has_value()) params->min_p = *defaults.min_p;
  if (defaults.repetition_penalty.has_value()) {
    params->repetition_penalty = *defaults.repetition_penalty;
  }
}

absl::Status CheckSampling(const GenerationFields& fields, const ValidationContext& context,
                           model::SamplingParams* params) {
  const int32_t vocab = context.model->max_token_id();
  TakeDefaults(context.model->defaults, params);
  RETURN_IF_ERROR(CheckNumbers(fields, params));
  RETURN_IF_ERROR(CheckInt("top_k", fields.top_k, -1, INT32_MAX));
  if (fields.top_k.has_value()) {
    params->top_k =
        *fields.top_k <= 0 || *fields.top_k >= vocab ? 0 : static_cast<int32_t>(*fields.top_k);
  }
  RETURN_IF_ERROR(CheckLogitBias(fields, context, params));
  RETURN_IF_ERROR(
      CheckIds("allowed_token_ids", fields.allowed_token_ids, context, &params->allowed_token_ids));
  RETURN_IF_ERROR(
      CheckIds("banned_token_ids", fields.banned_token_ids, context, &params->banned_token_ids));
  if (!params->allowed_token_ids.empty()) {
    std::vector<int32_t> left;
    std::set_difference(params->allowed_token_ids.begin(), params->allowed_token_ids.end(),
                        params->banned_token_ids.begin(), params->banned_token_ids.end(),
                        std::back_inserter(left));
    if (left.empty()) {
      return InvalidParam("banned_token_ids",
                          "every token of 'allowed_token_ids' is banned; leave at least one");
    }
  }
  if (fields.seed.has_value()) params->seed = static_cast<uint64_t>(*fields.seed);
  return absl::OkStatus();
}

std::string ContextMessage(int64_t prompt, int64_t max_tokens, int64_t context) {
  if (max_tokens == 0) {
    return StrCat("the text has ", prompt, " tokens; this model's context is ", context,
                  " tokens: shorten the text");
  }
  return StrCat("the prompt's ", prompt, " tokens and the ", max_tokens, " asked for come to ",
                prompt + max_tokens, "; this model's context is ", context,
                " tokens: shorten the prompt or lower max_tokens");
}

}  // namespace

absl::Status ValidateCacheSalt(const std::string& salt, const RequestLimits& limits) {
  if (static_cast<int64_t>(salt.size()) > limits.max_cache_salt_bytes) {
    return InvalidParam("cache_salt", StrCat("'cache_salt' has ", salt.size(), " bytes; at most ",
                                             limits.max_cache_salt_bytes, " are allowed"));
  }
  const bool printable =
      std::all_of(salt.begin(), salt.end(), [](char c) { return c > 0x20 && c < 0x7f; });
  if (!printable) {
    return InvalidParam("cache_salt", "'cache_salt' may hold printable ASCII without blanks only");
  }
  return absl::OkStatus();
}

absl::Status ValidateFields(const GenerationFields& fields, const ValidationContext& context,
                            engine::GenerationRequest* out) {
  const RequestLimits& limits = *context.limits;
  RETURN_IF_ERROR(CheckSampling(fields, context, &out->sampling));
  RETURN_IF_ERROR(CheckStop(fields, context, out));
  RETURN_IF_ERROR(CheckInt("n", fields.n, 1, limits.max_choices));
  out->num_choices = static_cast<int32_t>(fields.n.value_or(1));
  RETURN_IF_ERROR(CheckInt("logprobs", fields.logprobs, 0, limits.max_logprobs));
  out->num_logprobs = static_cast<int32_t>(fields.logprobs.value_or(-1));
  RETURN_IF_ERROR(
      CheckInt("prompt_logprobs", fields.prompt_logprobs, 0, limits.max_prompt_logprobs));
  out->num_prompt_logprobs = static_cast<int32_t>(fields.prompt_logprobs.value_or(-1));
  RETURN_IF_ERROR(CheckInt("max_tokens", fields.max_tokens, 0, INT32_MAX));
  if (fields.max_tokens == 0 && !context.echo && !fields.prompt_logprobs.has_value()) {
    return InvalidParam("max_tokens",
                        "'max_tokens' is 0; that is allowed only together with echo or "
                        "prompt_logprobs, otherwise ask for at least 1");
  }
  RETURN_IF_ERROR(CheckInt("min_tokens", fields.min_tokens, 0, INT32_MAX));
  RETURN_IF_ERROR(CheckInt("priority", fields.priority, INT32_MIN, INT32_MAX));
  out->priority = static_cast<int32_t>(fields.priority.value_or(0));
  RETURN_IF_ERROR(ValidateCacheSalt(fields.cache_salt, limits));
  out->cache_salt = fields.cache_salt;
  if (fields.timeout_seconds.has_value()) {
    const double t = *fields.timeout_seconds;
    if (!std::isfinite(t) || t <= 0 || t > limits.max_timeout_seconds) {
      return OutOfRange("timeout", StrCat(t),
                        StrCat("more than 0 to ", limits.max_timeout_seconds, " seconds"));
    }
  }
  out->use_prefix_cache = fields.use_prefix_cache;
  const std::span<const int32_t> eog = context.model->tokenizer->eog_ids();
  std::set<int32_t> ends(eog.begin(), eog.end());
  ends.insert(context.model->defaults.eos_ids.begin(), context.model->defaults.eos_ids.end());
  out->eos_token_ids.assign(ends.begin(), ends.end());
  return absl::OkStatus();
}

absl::Status ValidateLengths(const GenerationFields& fields, const ValidationContext& context,
                             engine::GenerationRequest* out) {
  const int64_t prompt = static_cast<int64_t>(out->prompt.size());
  const int64_t max_context = context.model->max_context;
  if (prompt == 0) {
    return InvalidParam(context.chat ? "messages" : "prompt",
                        "the prompt has no tokens; send at least one");
  }
  const int64_t least = fields.max_tokens == 0 ? 0 : 1;
  const int64_t asked = fields.max_tokens.value_or(
      context.chat ? std::max<int64_t>(least, max_context - prompt)
                   : std::clamp<int64_t>(max_context - prompt, least,
                                         context.limits->default_completion_tokens));
  if (prompt + asked > max_context) {
    return WithErrorCode(InvalidParam(context.chat ? "messages" : "prompt",
                                      ContextMessage(prompt, asked, max_context)),
                         "context_length_exceeded");
  }
  if (out->num_prompt_logprobs >= 0 && prompt > context.limits->max_prompt_logprobs_tokens) {
    return InvalidParam("prompt_logprobs", StrCat("log-probabilities of the prompt are limited to ",
                                                  context.limits->max_prompt_logprobs_tokens,
                                                  " prompt tokens; this prompt has ", prompt));
  }
  out->max_tokens = static_cast<int32_t>(asked);
  const int64_t min_tokens = fields.min_tokens.value_or(0);
  if (min_tokens > asked) {
    return OutOfRange("min_tokens", StrCat(min_tokens), StrCat("0 to max_tokens (", asked, ")"));
  }
  out->min_tokens = static_cast<int32_t>(min_tokens);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> ValidatePromptIds(const std::vector<int64_t>& ids,
                                                       const ServedModel& model,
                                                       std::string_view param) {
  const int32_t end = model.max_token_id();
  std::vector<int32_t> out;
  out.reserve(ids.size());
  for (const int64_t id : ids) {
    if (id < 0 || id >= end) {
      return InvalidParam(param, StrCat("'", param, "' holds the token id ", id,
                                        "; the vocabulary is 0 to ", end - 1));
    }
    out.push_back(static_cast<int32_t>(id));
  }
  return out;
}

absl::Status ValidateChat(const ChatRequest& request, const RequestLimits& limits) {
  RETURN_IF_ERROR(CheckCount("messages", request.messages.size(), limits.max_messages));
  if (request.messages.empty()) {
    return InvalidParam("messages", "'messages' is empty; send at least one message");
  }
  RETURN_IF_ERROR(CheckCount("tools", request.tools.size(), limits.max_tools));
  if (request.continue_final_message && request.add_generation_prompt) {
    return InvalidParam("continue_final_message",
                        "'continue_final_message' needs 'add_generation_prompt' to be false");
  }
  for (std::size_t i = 0; i < request.tools.size(); ++i) {
    const std::string& name = request.tools[i].name;
    const bool fine =
        !name.empty() && name.size() <= 64 && std::all_of(name.begin(), name.end(), [](char c) {
          return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                 c == '_' || c == '-' || c == '.';
        });
    if (!fine) {
      const std::string param = StrCat("tools[", i, "].function.name");
      return InvalidParam(param,
                          StrCat("'", param, "' must be 1 to 64 letters, digits, '_', '-' or '.'"));
    }
  }
  return absl::OkStatus();
}

}  // namespace longstride::frontend

#include "server/frontend/grpc_convert.h"

#include <algorithm>
#include <map>
#include <utility>

#include "model/sparsity/sparse_pattern.h"
#include "model/sparsity/sparsity_plan.h"
#include "server/frontend/error_mapping.h"
#include "server/frontend/json_limits.h"
#include "server/frontend/json_writer.h"

namespace longstride::frontend {
namespace {

absl::Status CheckJsonObject(const std::string& text, std::string_view param) {
  const auto parsed = ParseJson(text);
  if (parsed.ok() && parsed->is_object()) return absl::OkStatus();
  return InvalidParam(param, StrCat("'", param, "' must be the text of a JSON object"));
}

void ReadSampling(const pb::Sampling& in, GenerationFields* out) {
  if (in.has_temperature()) out->temperature = in.temperature();
  if (in.has_top_p()) out->top_p = in.top_p();
  if (in.has_top_k()) out->top_k = in.top_k();
  if (in.has_min_p()) out->min_p = in.min_p();
  if (in.has_typical_p()) out->typical_p = in.typical_p();
  if (in.has_repetition_penalty()) out->repetition_penalty = in.repetition_penalty();
  if (in.has_presence_penalty()) out->presence_penalty = in.presence_penalty();
  if (in.has_frequency_penalty()) out->frequency_penalty = in.frequency_penalty();
  if (in.has_seed()) out->seed = in.seed();
  for (const auto& [id, bias] : in.logit_bias()) out->logit_bias.emplace_back(id, bias);
  out->allowed_token_ids.assign(in.allowed_token_ids().begin(), in.allowed_token_ids().end());
  out->banned_token_ids.assign(in.banned_token_ids().begin(), in.banned_token_ids().end());
}

void ReadFields(const pb::GenerateRequest& in, GenerationFields* out) {
  ReadSampling(in.sampling(), out);
  const pb::Stopping& stopping = in.stopping();
  if (stopping.has_max_tokens()) out->max_tokens = stopping.max_tokens();
  if (stopping.has_min_tokens()) out->min_tokens = stopping.min_tokens();
  out->stop.assign(stopping.stop().begin(), stopping.stop().end());
  out->stop_token_ids.assign(stopping.stop_token_ids().begin(), stopping.stop_token_ids().end());
  out->ignore_eos = stopping.ignore_end_of_sequence();
  out->include_stop_in_output = stopping.include_stop_in_output();
  const pb::OutputOptions& output = in.output();
  if (output.has_logprobs()) out->logprobs = output.logprobs();
  if (output.has_prompt_logprobs()) out->prompt_logprobs = output.prompt_logprobs();
  out->progress = output.progress();
  out->skip_special_tokens = !output.keep_special_tokens();
  if (in.has_n()) out->n = in.n();
  if (in.has_priority()) out->priority = in.priority();
  out->cache_salt = in.cache_salt();
  out->use_prefix_cache = !in.bypass_prefix_cache();
}

absl::Status ReadMessage(const pb::ChatMessage& in, const std::string& place, ChatMessage* out) {
  static constexpr std::string_view kRoles[] = {"system", "developer", "user", "assistant", "tool"};
  if (std::find(std::begin(kRoles), std::end(kRoles), in.role()) == std::end(kRoles)) {
    return InvalidParam(
        StrCat(place, ".role"),
        StrCat("'", place, ".role' must be one of system, developer, user, ", "assistant, tool"));
  }
  out->role = in.role();
  out->content = in.content();
  out->name = in.name();
  out->reasoning = in.reasoning();
  out->tool_call_id = in.tool_call_id();
  for (const pb::ToolCall& call : in.tool_calls()) {
    ToolCall native{call.id(), call.name(), call.arguments_json()};
    if (native.arguments.empty()) native.arguments = "{}";
    RETURN_IF_ERROR(CheckJsonObject(native.arguments, StrCat(place, ".tool_calls.arguments_json")));
    if (native.name.empty()) {
      return InvalidParam(StrCat(place, ".tool_calls.name"), "a tool call has no name");
    }
    out->tool_calls.push_back(std::move(native));
  }
  return absl::OkStatus();
}

absl::Status ReadTool(const pb::Tool& in, const std::string& place, ToolDefinition* out) {
  const std::string parameters = in.parameters_json().empty() ? "{}" : in.parameters_json();
  RETURN_IF_ERROR(CheckJsonObject(parameters, StrCat(place, ".parameters_json")));
  out->name = in.name();
  out->description = in.description();
  JsonWriter json(&out->json);
  json.BeginObject();
  json.Field("type", "function");
  json.Key("function");
  json.BeginObject();
  json.Field("name", in.name());
  if (!in.description().empty()) json.Field("description", in.description());
  json.Key("parameters");
  json.Raw(parameters);
  json.EndObject();
  json.EndObject();
  return absl::OkStatus();
}

pb::FinishReason ToProto(FinishKind finish) {
  switch (finish) {
    case FinishKind::kStop:
      return pb::FINISH_REASON_STOP;
    case FinishKind::kLength:
      return pb::FINISH_REASON_LENGTH;
    case FinishKind::kToolCalls:
      return pb::FINISH_REASON_TOOL_CALLS;
  }
  return pb::FINISH_REASON_UNSPECIFIED;
}

void ToProto(const engine::RequestUsage& usage, pb::Usage* out, pb::Timings* timings) {
  out->set_prompt_tokens(usage.prompt_tokens);
  out->set_completion_tokens(usage.generated_tokens);
  out->set_cached_tokens(usage.cached_tokens);
  out->set_kv_tokens_total(usage.kv_tokens_total);
  out->set_kv_tokens_attended(usage.kv_tokens_attended);
  out->set_kv_bytes_peak(usage.kv_bytes_peak);
  timings->set_queue_seconds(usage.queue_seconds);
  timings->set_prefill_seconds(usage.prefill_seconds);
  timings->set_decode_seconds(usage.decode_seconds);
  timings->set_preemptions(usage.preemptions);
}

}  // namespace

absl::StatusOr<ChatRequest> FromProto(const pb::Chat& chat) {
  ChatRequest out;
  out.messages.resize(chat.messages_size());
  for (int i = 0; i < chat.messages_size(); ++i) {
    RETURN_IF_ERROR(
        ReadMessage(chat.messages(i), StrCat("chat.messages[", i, "]"), &out.messages[i]));
  }
  out.tools.resize(chat.tools_size());
  for (int i = 0; i < chat.tools_size(); ++i) {
    RETURN_IF_ERROR(ReadTool(chat.tools(i), StrCat("chat.tools[", i, "]"), &out.tools[i]));
  }
  switch (chat.tool_choice()) {
    case pb::TOOL_CHOICE_UNSPECIFIED:
    case pb::TOOL_CHOICE_AUTO:
      out.tool_choice = ToolChoice::kAuto;
      break;
    case pb::TOOL_CHOICE_NONE:
      out.tool_choice = ToolChoice::kNone;
      break;
    default:
      return InvalidParam("chat.tool_choice", "'chat.tool_choice' must be AUTO or NONE");
  }
  out.parallel_tool_calls = !chat.no_parallel_tool_calls();
  out.add_generation_prompt = !chat.no_generation_prompt();
  out.continue_final_message = chat.continue_final_message();
  if (!chat.template_variables_json().empty()) {
    RETURN_IF_ERROR(
        CheckJsonObject(chat.template_variables_json(), "chat.template_variables_json"));
    ASSIGN_OR_RETURN(const auto variables, ParseJson(chat.template_variables_json()));
    for (const auto& [name, value] : variables.items()) {
      out.template_variables[name] =
          value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    }
  }
  return out;
}

absl::StatusOr<NativeGenerate> FromProto(const pb::GenerateRequest& request) {
  NativeGenerate out;
  if (request.input_case() == pb::GenerateRequest::kChat) {
    if (request.output().echo()) {
      return InvalidParam("output.echo", "'output.echo' is for text and token ids, not for a chat");
    }
    out.is_chat = true;
    ASSIGN_OR_RETURN(out.chat, FromProto(request.chat()));
    out.chat.model = request.model();
    ReadFields(request, &out.chat.fields);
    return out;
  }
  PromptInput prompt;
  if (request.input_case() == pb::GenerateRequest::kText) {
    prompt.text = request.text().text();
    out.completion.add_special_tokens = !request.text().no_special_tokens();
    out.completion.parse_special_tokens = request.text().parse_special_tokens();
  } else if (request.input_case() == pb::GenerateRequest::kTokenIds) {
    prompt.is_ids = true;
    prompt.ids.assign(request.token_ids().ids().begin(), request.token_ids().ids().end());
  } else {
    return InvalidParam("input", "the request has no input; set text, token_ids or chat");
  }
  out.completion.model = request.model();
  out.completion.prompts.push_back(std::move(prompt));
  out.completion.echo = request.output().echo();
  ReadFields(request, &out.completion.fields);
  return out;
}

namespace {

template <typename Inputs>
std::vector<PromptInput> ReadInputs(const Inputs& inputs) {
  std::vector<PromptInput> out;
  for (const auto& input : inputs) {
    PromptInput& prompt = out.emplace_back();
    prompt.text = input.text();
    prompt.is_ids = input.has_token_ids();
    prompt.ids.assign(input.token_ids().ids().begin(), input.token_ids().ids().end());
  }
  return out;
}

}  // namespace

ClassifyRequest FromProto(const pb::ClassifyRequest& request) {
  ClassifyRequest out;
  out.model = request.model();
  out.inputs = ReadInputs(request.inputs());
  out.add_special_tokens = !request.no_special_tokens();
  if (request.has_priority()) out.priority = request.priority();
  return out;
}

EmbedRequest FromProto(const pb::EmbedRequest& request) {
  EmbedRequest out;
  out.model = request.model();
  out.inputs = ReadInputs(request.inputs());
  out.add_special_tokens = !request.no_special_tokens();
  out.normalize = !request.no_normalize();
  if (request.has_priority()) out.priority = request.priority();
  out.cache_salt = request.cache_salt();
  return out;
}

void ProtoWriter::WriteToken(const engine::TokenOutput& token, bool with_logprob,
                             pb::TokenInfo* out) const {
  const auto bytes = [&](int32_t id) {
    const auto found = tokenizer_->TokenBytes(id);
    return found.ok() ? std::string(*found) : std::string();
  };
  out->set_id(token.token);
  out->set_bytes(bytes(token.token));
  if (!with_logprob) return;
  out->set_logprob(token.logprob);
  for (const model::TokenLogprob& top : token.top) {
    pb::TopToken* entry = out->add_top();
    entry->set_id(top.token);
    entry->set_bytes(bytes(top.token));
    entry->set_logprob(top.logprob);
  }
}

void ProtoWriter::WritePromptTokens(const std::vector<engine::TokenOutput>& tokens,
                                    pb::PromptLogprobs* out) const {
  for (std::size_t i = 0; i < tokens.size(); ++i) WriteToken(tokens[i], i > 0, out->add_tokens());
}

bool ProtoWriter::Write(const GenerationInfo& info, GenerationEvent* event,
                        pb::GenerateEvent* out) const {
  out->set_id(info.id);
  switch (event->kind) {
    case GenerationEvent::Kind::kProgress: {
      pb::Progress* progress = out->mutable_progress();
      progress->set_processed_tokens(event->processed_tokens);
      progress->set_prompt_tokens(info.prompt_lengths[event->prompt]);
      progress->set_cached_tokens(event->usage.cached_tokens);
      return true;
    }
    case GenerationEvent::Kind::kPromptLogprobs:
      WritePromptTokens(event->tokens, out->mutable_prompt_logprobs());
      return true;
    case GenerationEvent::Kind::kDelta: {
      if (event->text.empty() && event->tokens.empty()) return false;
      pb::Delta* delta = out->mutable_delta();
      delta->set_choice(event->choice);
      delta->set_text(std::move(event->text.content));
      delta->set_reasoning(std::move(event->text.reasoning));
      for (ToolCallDelta& call : event->text.tool_calls) {
        pb::ToolCallDelta* entry = delta->add_tool_calls();
        entry->set_index(call.index);
        entry->set_id(std::move(call.id));
        entry->set_name(std::move(call.name));
        entry->set_arguments_json(std::move(call.arguments));
      }
      for (const auto& token : event->tokens) WriteToken(token, logprobs_, delta->add_tokens());
      return true;
    }
    case GenerationEvent::Kind::kChoiceFinished: {
      pb::ChoiceFinished* finished = out->mutable_choice_finished();
      finished->set_choice(event->choice);
      finished->set_reason(ToProto(event->finish));
      finished->set_stop_string(std::move(event->stop_string));
      if (event->stop_token.has_value()) finished->set_stop_token_id(*event->stop_token);
      return true;
    }
    case GenerationEvent::Kind::kFinished: {
      if (!event->status.ok()) return false;
      pb::Finished* finished = out->mutable_finished();
      ToProto(event->usage, finished->mutable_usage(), finished->mutable_timings());
      return true;
    }
    case GenerationEvent::Kind::kVector:
      return false;
  }
  return false;
}

void ProtoWriter::Write(const GenerationInfo& info, CollectedAnswer* answer,
                        pb::GenerateResponse* out) const {
  out->set_id(info.id);
  out->set_model(info.model->name);
  out->set_system_fingerprint(info.model->Fingerprint());
  for (std::size_t i = 0; i < answer->choices.size(); ++i) {
    CollectedChoice& choice = answer->choices[i];
    pb::Choice* entry = out->add_choices();
    entry->set_index(static_cast<int32_t>(i));
    entry->set_text(std::move(choice.text));
    entry->set_reasoning(std::move(choice.reasoning));
    for (ToolCallDelta& call : choice.tool_calls) {
      pb::ToolCall* tool = entry->add_tool_calls();
      tool->set_id(std::move(call.id));
      tool->set_name(std::move(call.name));
      tool->set_arguments_json(std::move(call.arguments));
    }
    for (const auto& token : choice.tokens) WriteToken(token, logprobs_, entry->add_tokens());
    entry->set_finish_reason(ToProto(choice.finish.finish));
    entry->set_stop_string(std::move(choice.finish.stop_string));
    if (choice.finish.stop_token.has_value()) {
      entry->set_stop_token_id(*choice.finish.stop_token);
    }
  }
  if (!answer->prompt_tokens.empty() && !answer->prompt_tokens.front().empty()) {
    WritePromptTokens(answer->prompt_tokens.front(), out->mutable_prompt_logprobs());
  }
  ToProto(answer->usage, out->mutable_usage(), out->mutable_timings());
}

void ToProto(const ServedModel& model, pb::Model* out) {
  out->set_name(model.name);
  out->set_family(model.family);
  out->set_weights_type(model.weights_type);
  out->set_max_context(model.max_context);
  out->set_vocab_size(model.vocab_size);
  out->set_num_layers(model.num_layers);
  out->set_num_parameters(model.num_parameters);
  out->set_embedding_dim(model.dim);
  out->set_chat(model.chat_template != nullptr);
  out->set_encoder(!model.causal);
  for (const std::string& label : model.labels) out->add_labels(label);
  out->set_model_digest(model.model_digest);
  out->set_plan_name(model.plan_name);
  out->set_plan_digest(model.plan_digest);
  out->set_system_fingerprint(model.Fingerprint());
  out->set_kv_dtype(model.kv_dtype);
  out->set_device(model.device);
  if (model.plan == nullptr) return;
  std::map<int32_t, pb::LayerPattern*> by_pattern;
  for (std::size_t layer = 0; layer < model.plan->layers.size(); ++layer) {
    for (const model::HeadSegment& segment : model.plan->layers[layer].segments) {
      pb::LayerPattern*& entry = by_pattern[segment.pattern];
      if (entry == nullptr) {
        const model::SparsePattern& pattern = *model.plan->patterns[segment.pattern];
        entry = out->add_patterns();
        entry->set_pattern(pattern.Describe());
        entry->set_density_at_max_context(
            model.plan->KeysSeen(segment.pattern, model.max_context - 1,
                                 model::NumericsClass::kGenerated) /
            model.max_context);
      }
      const int32_t number = static_cast<int32_t>(layer);
      if (entry->layers_size() == 0 || entry->layers(entry->layers_size() - 1) != number) {
        entry->add_layers(number);
      }
    }
  }
}

}  // namespace longstride::frontend

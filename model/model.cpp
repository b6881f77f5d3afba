#include "model/model.h"

#include <algorithm>
#include <system_error>
#include <thread>
#include <utility>

#include "config/base/logging.h"
#include "model/families/family.h"
#include "model/kv_budget.h"
#include "model/tokenizer_loading.h"

namespace longstride::model {
namespace {

absl::StatusOr<int32_t> ChooseContext(int32_t wanted, const ModelSpec& spec) {
  if (wanted < 0) {
    return absl::InvalidArgumentError(StrCat("the maximum context is ", wanted,
                                             "; give 1 or more tokens, or 0 for the "
                                             "checkpoint's ",
                                             spec.max_positions, "."));
  }
  if (wanted > spec.max_positions) {
    return absl::InvalidArgumentError(
        StrCat("the maximum context is ", wanted, " tokens, but the checkpoint was made for ",
               spec.max_positions, "; give at most that, or 0 for all of it."));
  }
  return wanted == 0 ? spec.max_positions : wanted;
}

// The checkpoint's ends of generation and the tokenizer's ends of turn.
void AddEndsOfGeneration(const Tokenizer& tokenizer, GenerationDefaults* defaults) {
  std::vector<int32_t>& ids = defaults->eos_ids;
  ids.insert(ids.end(), tokenizer.eog_ids().begin(), tokenizer.eog_ids().end());
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
}

std::string SpelledToken(const Tokenizer& tokenizer, std::optional<int32_t> id) {
  if (!id) return "";
  const auto text = tokenizer.TokenText(*id);
  return text.ok() ? std::string(*text) : "";
}

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> Model::Load(const ModelOptions& options) {
  std::unique_ptr<Model> model(new Model());
  const absl::Status status = model->Init(options);
  if (!status.ok()) return Annotate(status, "cannot load the model");
  return model;
}

absl::Status Model::Init(const ModelOptions& options) {
  options_ = options;
  if (options.max_step_tokens < 1) {
    return absl::InvalidArgumentError(
        StrCat("tokens of one forward pass: got ", options.max_step_tokens, "; give 1 or more."));
  }
  ASSIGN_OR_RETURN(weights_, WeightsFile::Open(options.path));
  ASSIGN_OR_RETURN(spec_, LoadModelSpec(*weights_));
  for (const std::string& note : spec_.notes) Log(LogLevel::kWarning, note);
  name_ = !options.served_name.empty() ? options.served_name
          : !spec_.name.empty()        ? spec_.name
                                       : weights_->name();
  ASSIGN_OR_RETURN(max_context_, ChooseContext(options.max_context, spec_));
  ASSIGN_OR_RETURN(plan_,
                   SparsityPlan::Resolve(options.policy, spec_, options.kv_dtype, max_context_));
  if (!spec_.causal && options.backend == kernels::BackendKind::kCuda) {
    return absl::UnimplementedError(
        StrCat("the checkpoint's architecture \"", spec_.family,
               "\" is an encoder, and encoders are computed on the CPU only; start with --device "
               "cpu."));
  }
  options_.max_step_tokens = StepTokens(plan_, options.max_step_tokens);
  // The tokenizer takes about as long as the weights: both at once.
  absl::Status text_status;
  const auto load_text = [&] { text_status = InitText(); };
  std::thread text_thread;
  try {
    text_thread = std::thread(load_text);
  } catch (const std::system_error&) {
    load_text();  // no thread to be had
  }
  const absl::Status compute_status = InitCompute();
  if (text_thread.joinable()) text_thread.join();
  RETURN_IF_ERROR(text_status);
  return compute_status;
}

absl::Status Model::InitCompute() {
  ASSIGN_OR_RETURN(backend_, kernels::MakeBackend(options_.backend, options_.backend_options));
  RETURN_IF_ERROR(CheckKvOptions(options_));
  const bool on_host = absl::IsUnimplemented(backend_->Memory().status());
  if (on_host && options_.kv_host_bytes > 0) {
    return absl::InvalidArgumentError(
        StrCat("kv.host_memory is ", options_.kv_host_bytes, " bytes for pages that leave a GPU, but "
               "this model computes in host memory; leave it out, and raise kv.memory instead."));
  }
  // On a device the rest of the need is measured first: the cache begins as small as can be.
  int64_t budget = 0;
  if (on_host) {
    ASSIGN_OR_RETURN(budget, HostKvBudget(options_, weights_->file_bytes()));
  } else {
    for (const CacheGroup& group : plan_.groups) budget += group.page_bytes;
  }
  ASSIGN_OR_RETURN(cache_, KvCache::Create(backend_.get(), plan_.groups,
                                           {.dtype = options_.kv_dtype, .budget_bytes = budget}));
  ASSIGN_OR_RETURN(
      decoder_,
      Decoder::Create(backend_.get(), &spec_, &plan_, cache_.get(), options_.max_step_tokens,
                      [this](const kernels::TensorView& v) { weights_->Release(v); }));
  if (on_host) return absl::OkStatus();
  const absl::Status dry = decoder_->DryRun(options_.max_sequences, max_context_);
  if (!dry.ok()) return Annotate(dry, "in a dry run of the largest steps");
  ASSIGN_OR_RETURN(const kernels::DeviceMemory memory, backend_->Memory());
  ASSIGN_OR_RETURN(budget, DeviceKvBudget(options_, memory, plan_.groups));
  RETURN_IF_ERROR(cache_->SetBudget(backend_.get(), budget));
  if (options_.kv_host_bytes == 0) return absl::OkStatus();
  return Annotate(cache_->AllocateHostSlots(backend_.get(), options_.kv_host_bytes),
                  "kv.host_memory");
}

absl::Status Model::InitText() {
  ASSIGN_OR_RETURN(tokenizer_, LoadTokenizer(*weights_));
  ASSIGN_OR_RETURN(defaults_, ReadGenerationDefaults(*weights_, spec_.vocab_size));
  AddEndsOfGeneration(*tokenizer_, &defaults_);

  const std::string bos = SpelledToken(*tokenizer_, tokenizer_->bos_id());
  const std::string eos = SpelledToken(*tokenizer_, tokenizer_->eos_id());
  if (!options_.chat_template.empty()) {
    ASSIGN_OR_RETURN(chat_template_, ChatTemplate::Parse(options_.chat_template, bos, eos));
    return absl::OkStatus();
  }
  const std::string source = CheckpointChatTemplate(*weights_);
  if (source.empty()) return absl::OkStatus();
  auto parsed = ChatTemplate::Parse(source, bos, eos);
  if (parsed.ok()) {
    chat_template_ = *std::move(parsed);
  } else {
    // Completions need no template; chats are refused for the lack of one.
    Log(LogLevel::kWarning, "the checkpoint's chat template is not usable; give another one",
        {{"reason", ToStd(parsed.status().message())}});
  }
  return absl::OkStatus();
}

}  // namespace longstride::model

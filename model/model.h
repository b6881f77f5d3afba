// A loaded checkpoint ready to serve: spec, plan, tokenizer, chat template, cache and decoder.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "config/base/status.h"
#include "config/sparsity_policy.h"
#include "kernels/backend.h"
#include "model/decoder.h"
#include "model/families/generation_defaults.h"
#include "model/kv_cache.h"
#include "model/model_input.h"
#include "model/model_spec.h"
#include "model/sparsity/sparsity_plan.h"
#include "model/text/chat_template.h"
#include "model/text/tokenizer.h"
#include "model/weights/weights_file.h"

namespace longstride::model {

struct ModelOptions {
  std::string path;
  std::string served_name;  // "" : from the checkpoint
  SparsityPolicy policy;
  kernels::BackendKind backend = kernels::BackendKind::kCpu;
  kernels::BackendOptions backend_options;
  kernels::KvDType kv_dtype = kernels::KvDType::kF16;
  int64_t kv_budget_bytes = 0;  // 0: kv_memory_fraction of what the process may still use
  double kv_memory_fraction = 0.0;  // 0: the device's usual share (model/kv_budget.h)
  int64_t kv_host_bytes = 0;  // pages that a device gives up move to so much host memory
  int32_t max_context = 0;        // 0: the checkpoint's
  int32_t max_step_tokens = 512;  // tokens of one forward pass
  int32_t max_sequences = 64;     // that one forward pass may decode
  std::string chat_template;      // "" : the checkpoint's, or the family's published one
};

// Everything but Forward and the cache's memory is immutable and thread-safe.
class Model {
 public:
  static absl::StatusOr<std::unique_ptr<Model>> Load(const ModelOptions& options);

  const ModelOptions& options() const { return options_; }
  const std::string& name() const { return name_; }
  const ModelSpec& spec() const { return spec_; }
  const SparsityPlan& plan() const { return plan_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const ChatTemplate* chat_template() const { return chat_template_.get(); }  // may be null
  const GenerationDefaults& defaults() const { return defaults_; }
  int32_t max_context() const { return max_context_; }
  std::string model_digest() const { return weights_->digest(); }
  kernels::Backend& backend() { return *backend_; }
  KvCache& cache() { return *cache_; }
  Decoder& decoder() { return *decoder_; }  // engine thread only
  int64_t weight_bytes() const { return decoder_->weight_bytes(); }
  int64_t workspace_bytes() const { return decoder_->workspace_bytes(); }
  // The most rows of logits that one Forward gives.
  int32_t max_logits_rows() const { return decoder_->max_logits_rows(); }

  // Engine thread only.
  absl::Status Forward(const ModelInput& input, ModelOutput* output) {
    return decoder_->Forward(input, output);
  }

 private:
  Model() = default;
  absl::Status Init(const ModelOptions& options);
  absl::Status InitText();     // tokenizer, chat template, defaults
  absl::Status InitCompute();  // backend, cache, decoder

  ModelOptions options_;
  std::string name_;
  int32_t max_context_ = 0;
  std::unique_ptr<WeightsFile> weights_;
  ModelSpec spec_;
  SparsityPlan plan_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<ChatTemplate> chat_template_;
  GenerationDefaults defaults_;
  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<Decoder> decoder_;
};

}  // namespace longstride::model

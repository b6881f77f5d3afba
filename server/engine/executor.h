// Carries out a step on one or more devices. The engine sees a model only through this, so that
// scheduling runs under a simulator in tests.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "config/base/status.h"
#include "model/cache_group.h"
#include "model/model_input.h"
#include "model/model_spec.h"

namespace longstride::engine {

struct ExecutorInfo {
  std::vector<model::CacheGroup> groups;
  std::vector<int32_t> num_pages;   // per group: physical page ids 0 .. n-1; n >= budget / page_bytes
  int64_t kv_budget_bytes = 0;      // what the groups' pages in use may take together
  std::vector<int32_t> num_host_slots;  // per group: pages that fit into host memory; empty: none
  int32_t vocab_size = 0;
  int32_t max_context = 0;
  int32_t max_step_tokens = 0;
  // SparsityPlan's fields of the same names.
  int32_t chunk_alignment = 1;
  bool one_numerics_class = true;
  // ModelSpec's. Without it nothing is generated, and chunk_alignment is the whole context: a prompt
  // is one run of one step.
  bool causal = true;
  model::Pooling embed_pooling = model::Pooling::kMean;
  model::Pooling classify_pooling = model::Pooling::kMean;
  int32_t num_labels = 0;  // 0: the model has no classifier
  std::string plan_digest;
  std::string model_digest;
  std::string kv_dtype;
  // Longest prompt + max tokens for each rope variant but the last (RopeSpec::variant_lengths).
  std::vector<int32_t> variant_lengths;
  bool variants_by_prompt = false;  // RopeSpec::by_prompt: max tokens does not count
};

class Executor {
 public:
  virtual ~Executor() = default;
  virtual const ExecutorInfo& info() const = 0;
  // Keys that one query at `position` attends to, mean over layers (cost prediction and usage).
  virtual double AttendedKeys(int64_t position, model::NumericsClass numerics) const = 0;
  // Runs the model. Logits and hidden states stay valid until the next call.
  virtual absl::Status Forward(const model::ModelInput& input, model::ModelOutput* output) = 0;
  // The embedding, or the labels' scores, of a text whose final hidden states were pooled.
  virtual std::vector<float> Embed(std::span<const float> pooled) = 0;
  virtual std::vector<float> Classify(std::span<const float> pooled) = 0;
  // Gives memory of free pages back, so that another group can grow within the budget.
  virtual void Decommit(int32_t group, std::span<const int32_t> pages) = 0;
  // Copies pages to slots in host memory and back, in order; done when it returns.
  virtual absl::Status CopyPages(std::span<const model::PageCopy> copies) = 0;
  // Whether Forward may succeed again after it failed. False is final: the engine stops serving.
  virtual bool healthy() const { return true; }
};

}  // namespace longstride::engine

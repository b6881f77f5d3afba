// The forward pass of every family, from ModelInput to logits.
#pragma once

#include <functional>
#include <memory>

#include "config/base/status.h"
#include "kernels/backend.h"
#include "model/attention_observer.h"
#include "model/kv_cache.h"
#include "model/model_input.h"
#include "model/model_spec.h"
#include "model/sparsity/sparsity_plan.h"

namespace longstride::model {

// Bytes that a decoder of these limits allocates for activations and logits.
int64_t WorkspaceBytes(const ModelSpec& spec, int32_t max_step_tokens);

// The tokens of one step that a decoder must be made for where `wanted` are configured: an encoder's
// steps take the longest document whole.
int32_t StepTokens(const SparsityPlan& plan, int32_t wanted);

// Not thread-safe: one engine thread. Spec, plan, cache and backend must outlive it.
class Decoder {
 public:
  // Prepares the weights on the backend; calls `release` for each view that is not needed any more.
  static absl::StatusOr<std::unique_ptr<Decoder>> Create(
      kernels::Backend* backend, const ModelSpec* spec, const SparsityPlan* plan, KvCache* cache,
      int32_t max_step_tokens, const std::function<void(const kernels::TensorView&)>& release);
  virtual ~Decoder() = default;

  // A second decoder over the same prepared weights, with a plan and a cache of its own: what it
  // takes is its workspace. It keeps the weights alive; backend, plan and cache must outlive it,
  // and the two must not run at the same time.
  virtual absl::StatusOr<std::unique_ptr<Decoder>> WithPlan(const SparsityPlan* plan,
                                                            KvCache* cache,
                                                            int32_t max_step_tokens) const = 0;
  // Is told of every attention call from now on; null ends that. Must outlive the steps it watches.
  virtual void SetObserver(AttentionObserver* observer) = 0;

  // Runs one step. Every position of every run must have its pages in the input's page tables.
  // INVALID_ARGUMENT: a malformed input (checked); INTERNAL: a device failed.
  virtual absl::Status Forward(const ModelInput& input, ModelOutput* output) = 0;

  // Runs the largest steps that the limits allow, on nothing: `sequences` that decode with
  // `context` tokens each, and a prompt's chunk of the most tokens. What they allocate stays, so that
  // no later step needs more memory but for the cache's pages. RESOURCE_EXHAUSTED: it is not there.
  virtual absl::Status DryRun(int32_t sequences, int32_t context) = 0;

  // Bytes of prepared weights and of the workspace.
  virtual int64_t weight_bytes() const = 0;
  virtual int64_t workspace_bytes() const = 0;
  // The most rows of logits that one step gives: callers that want more (prompt logprobs) spread
  // them over steps. At least min(128, max_step_tokens).
  virtual int32_t max_logits_rows() const = 0;
};

}  // namespace longstride::model

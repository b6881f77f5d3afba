#include "server/engine/model_executor.h"

#include <map>

#include "model/output_heads.h"

namespace longstride::engine {

ModelExecutor::ModelExecutor(model::Model* model, model::fidelity::LiveShadow* shadow)
    : model_(model), shadow_(shadow) {
  const model::KvCache& cache = model->cache();
  info_.groups = cache.groups();
  for (size_t g = 0; g < info_.groups.size(); ++g) {
    info_.num_pages.push_back(cache.num_pages(static_cast<int32_t>(g)));
    if (const int32_t slots = cache.num_host_slots(static_cast<int32_t>(g)); slots > 0) {
      info_.num_host_slots.push_back(slots);
    }
  }
  info_.kv_budget_bytes = cache.options().budget_bytes;
  info_.vocab_size = model->spec().vocab_size;
  info_.max_context = model->max_context();
  info_.max_step_tokens = model->options().max_step_tokens;
  info_.chunk_alignment = model->plan().chunk_alignment;
  info_.one_numerics_class = model->plan().one_numerics_class;
  info_.causal = model->spec().causal;
  info_.embed_pooling = model->spec().embedding_head.pooling;
  if (const auto& classifier = model->spec().classifier) {
    info_.classify_pooling = classifier->head.pooling;
    info_.num_labels = static_cast<int32_t>(classifier->labels.size());
  }
  info_.plan_digest = model->plan().digest;
  info_.model_digest = model->model_digest();
  info_.kv_dtype = kernels::KvDTypeName(cache.options().dtype);
  // Models have one set of length variants, or none.
  for (const model::RopeSpec& rope : model->spec().ropes) {
    if (rope.variant_lengths.size() > info_.variant_lengths.size()) {
      info_.variant_lengths = rope.variant_lengths;
      info_.variants_by_prompt = rope.by_prompt;
    }
  }
  const model::SparsityPlan& plan = model->plan();
  std::map<int32_t, double> weights;
  for (const model::LayerPlan& layer : plan.layers) {
    const double heads = layer.num_heads();
    for (const model::HeadSegment& segment : layer.segments) {
      weights[segment.pattern] +=
          segment.query.count / heads / static_cast<double>(plan.layers.size());
    }
  }
  for (const auto& [index, weight] : weights) {
    patterns_.push_back({plan.patterns[static_cast<size_t>(index)].get(), weight});
  }
}

double ModelExecutor::AttendedKeys(int64_t position, model::NumericsClass numerics) const {
  double keys = 0;
  for (const WeightedPattern& p : patterns_) {
    keys += p.weight * p.pattern->VisibleKeys(position, numerics);
  }
  return keys;
}

absl::Status ModelExecutor::Forward(const model::ModelInput& input, model::ModelOutput* output) {
  if (shadow_ == nullptr || !shadow_->Begin(input)) return model_->Forward(input, output);
  model_->decoder().SetObserver(shadow_);
  const absl::Status status = model_->Forward(input, output);
  model_->decoder().SetObserver(nullptr);
  if (!status.ok()) return status;
  output->shadow = shadow_->Take();
  output->times.attention_ns -= output->shadow->nanos;
  return absl::OkStatus();
}

std::vector<float> ModelExecutor::Embed(std::span<const float> pooled) {
  return model::Embed(model_->spec(), pooled);
}

std::vector<float> ModelExecutor::Classify(std::span<const float> pooled) {
  return model::Classify(model_->spec(), pooled);
}

void ModelExecutor::Decommit(int32_t group, std::span<const int32_t> pages) {
  model_->cache().Decommit(group, pages);
}

absl::Status ModelExecutor::CopyPages(std::span<const model::PageCopy> copies) {
  return model_->cache().CopyPages(&model_->backend(), copies);
}

}  // namespace longstride::engine

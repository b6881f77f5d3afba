#include "model/decoder.h"

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "config/base/check.h"
#include "model/decoder_impl.h"

namespace longstride::model {
namespace {

using kernels::DType;
using kernels::TensorView;

// Logits of one step take at most this much, beside kMinLogitsRows rows in any case: a prompt that is
// scored may have to be computed in whole tiles (SparsityPlan::chunk_alignment).
constexpr int64_t kMaxLogitsBytes = int64_t{256} << 20;
constexpr int64_t kMinLogitsRows = 128;

// Widest rows of the spec's layers, in floats.
struct Widths {
  int64_t dim = 0, qkv = 0, heads = 0, gate_up = 0, experts = 0;

  explicit Widths(const ModelSpec& spec) : dim(spec.dim) {
    for (const LayerSpec& layer : spec.layers) {
      const AttentionSpec& a = layer.attention;
      const MlpSpec& m = layer.mlp;
      qkv = std::max(qkv, int64_t{a.num_heads + 2 * a.num_kv_heads} * a.head_dim);
      heads = std::max(heads, int64_t{a.num_heads} * a.head_dim);
      gate_up = std::max<int64_t>(gate_up,
                                  int64_t{2} * (m.num_experts > 0 ? m.shared_ffn_dim : m.ffn_dim));
      experts = std::max<int64_t>(experts, m.num_experts);
    }
  }
};

}  // namespace

// One step: the whole forward pass is this function, Compute and RunLayer.
absl::Status DecoderImpl::Forward(const ModelInput& input, ModelOutput* output) {
  BeginStep(input, output);
  RETURN_IF_ERROR(layout_.Set(input, limits_));
  if (layout_.num_rows == 0) return absl::OkStatus();
  RETURN_IF_ERROR(SelectKeys());
  RETURN_IF_ERROR(NameArrays(input));
  RETURN_IF_ERROR(Compute(input, output));
  Timed timed(&times_->other_ns);
  return backend_->EndStep();
}

absl::Status DecoderImpl::Compute(const ModelInput& input, ModelOutput* output) {
  RETURN_IF_ERROR(Embed(input));
  for (size_t layer = 0; layer < spec_->layers.size(); ++layer) {
    RETURN_IF_ERROR(RunLayer(layer));
  }
  return Finish(output);
}

absl::Status DecoderImpl::RunLayer(size_t l) {
  const LayerSpec& layer = spec_->layers[l];
  const LayerWeights& views = layer.weights;
  const PreparedLayer& w = resident_->weights.layers[l];
  RETURN_IF_ERROR(Norm(x_, views.attn_norm, views.attn_norm_bias, &h_));
  TensorView qkv = Rows(work_.qkv, w.qkv->rows());
  RETURN_IF_ERROR(Linear(h_, w.qkv.get(), w.qkv_bias, qkv));
  RETURN_IF_ERROR(NormHeads(layer, qkv));
  RETURN_IF_ERROR(Rotate(layer, qkv));
  RETURN_IF_ERROR(WriteKv(l, qkv));
  const int64_t query_width = int64_t{layer.attention.num_heads} * layer.attention.head_dim;
  TensorView query = Columns(qkv, 0, query_width);
  RETURN_IF_ERROR(RankPages(l, query));
  if (l + 1 == spec_->layers.size()) RETURN_IF_ERROR(KeepWantedRows(&query));
  if (rows_ == 0) return absl::OkStatus();
  const TensorView attended = Rows(work_.attended, query_width);
  RETURN_IF_ERROR(Attend(l, query, attended));
  RETURN_IF_ERROR(AddProjected(attended, w.o.get(), views.bo, views.post_attn_norm));
  if (!spec_->parallel_block) {
    RETURN_IF_ERROR(Norm(x_, views.mlp_norm, views.mlp_norm_bias, &h_));
  }
  return layer.mlp.num_experts > 0 ? AddExperts(layer, w) : AddMlp(layer, w);
}

absl::Status DecoderImpl::Embed(const ModelInput& input) {
  Timed timed(&times_->other_ns);
  rows_ = layout_.num_rows;
  last_ = false;
  x_ = Rows(work_.stream, spec_->dim);
  return backend_->Embedding({.table = spec_->embedding,
                              .ids = input.token_ids.data(),
                              .scale = spec_->embedding_scale,
                              .out = x_});
}

// Output norm, hidden states and logits of the wanted rows.
absl::Status DecoderImpl::Finish(ModelOutput* output) {
  if (rows_ == 0) return absl::OkStatus();
  TensorView h;
  RETURN_IF_ERROR(Norm(x_, spec_->output_norm, spec_->output_norm_bias, &h));
  TensorView hidden;
  RETURN_IF_ERROR(TakeRows(h, layout_.hidden_rows, work_.hidden, &hidden));
  if (hidden.data != nullptr) {
    ASSIGN_OR_RETURN(output->hidden, backend_->ToHost(hidden));
  }
  TensorView input;
  // The stream is not needed any more: its memory takes the rows of the head.
  RETURN_IF_ERROR(
      TakeRows(h, layout_.logits_rows, last_ ? work_.last_stream : work_.stream, &input));
  if (input.data == nullptr) return absl::OkStatus();
  const TensorView logits = MatrixIn(work_.logits, input.shape[0], spec_->vocab_size);
  RETURN_IF_ERROR(Linear(input, resident_->weights.lm_head.get(), {}, logits));
  Timed timed(&times_->other_ns);
  if (spec_->logit_scale != 1.0f || spec_->logit_softcap != 0.0f) {
    RETURN_IF_ERROR(backend_->Softcap(
        {.x = logits, .scale = spec_->logit_scale, .softcap = spec_->logit_softcap}));
  }
  ASSIGN_OR_RETURN(output->logits, backend_->ToHost(logits));
  return absl::OkStatus();
}

// Selections of the step, one per pattern in use; again for the last layer's fewer rows. Those of
// query-dependent patterns say where their lists will lie.
absl::Status DecoderImpl::SelectKeys() {
  Timed timed(&times_->selection_ns);
  for (size_t p = 0; p < plan_->patterns.size(); ++p) {
    const SparsePattern& pattern = *plan_->patterns[p];
    if (layout_.all_wanted() || used_before_last_[p] || pattern.ranking() != nullptr) {
      selections_[p].Clear();
      pattern.Select(layout_.runs, &selections_[p]);
    }
    if (!layout_.all_wanted() && used_in_last_[p] && pattern.ranking() == nullptr) {
      last_selections_[p].Clear();
      pattern.Select(layout_.wanted_runs, &last_selections_[p]);
    }
  }
  for (size_t r = 0; r < ranked_.size(); ++r) {
    const SelectionBuilder& chosen = selections_[static_cast<size_t>(ranked_pattern_[r])];
    ranked_[r].Set(chosen);
    if (!layout_.all_wanted()) last_ranked_[r].SetWanted(chosen, layout_.wanted);
  }
  int64_t most = 0;
  for (const std::vector<int32_t>& segments : layer_ranked_) {
    int64_t entries = 0;
    for (const int32_t r : segments) {
      if (r >= 0) entries += ranked_[static_cast<size_t>(r)].num_entries();
    }
    most = std::max(most, entries);
  }
  const int64_t bytes = most * int64_t{sizeof(int32_t)};
  if (bytes > page_lists_.bytes()) {
    page_lists_.Reset();
    ASSIGN_OR_RETURN(page_lists_, backend_->Allocate(bytes + bytes / 2));
  }
  return absl::OkStatus();
}

void DecoderImpl::BeginStep(const ModelInput& input, ModelOutput* output) {
  output->logits = {};
  output->hidden = {};
  output->times = {};
  output->counters.resize(plan_->patterns.size());
  for (size_t p = 0; p < output->counters.size(); ++p) {
    output->counters[p] = {.pattern = static_cast<int32_t>(p)};
  }
  times_ = &output->times;
  counters_ = &output->counters;
  page_tables_.clear();
  for (const GroupPageTable& table : input.page_tables) {
    page_tables_.push_back({.pages = table.pages.data(),
                            .stride = table.stride,
                            .num_sequences = input.num_sequences});
  }
}

absl::Status DecoderImpl::NameArrays(const ModelInput& input) {
  arrays_.clear();
  const auto name = [this](const auto& values) {
    arrays_.push_back(
        {values.data(), static_cast<int64_t>(values.size() * sizeof(*values.data()))});
  };
  name(input.token_ids);
  name(layout_.positions);
  name(layout_.slots);
  for (const std::vector<int32_t>& ids : layout_.page_ids) name(ids);
  for (const std::vector<int32_t>& ids : layout_.written_pages) name(ids);
  for (const std::vector<int32_t>& counts : layout_.written_counts) name(counts);
  name(layout_.kv_lens);
  for (const GroupPageTable& table : input.page_tables) name(table.pages);
  if (!layout_.all_wanted()) name(layout_.wanted);
  if (layout_.logits_rows.size() != layout_.wanted.size()) name(layout_.logits_rows);
  const auto name_selection = [&name](const SelectionBuilder& selection) {
    name(selection.tiles);
    name(selection.list_begin);
    name(selection.list_count);
    name(selection.entries);
    name(selection.edges);
  };
  for (size_t p = 0; p < plan_->patterns.size(); ++p) {
    if (plan_->patterns[p]->ranking() != nullptr) continue;
    if (layout_.all_wanted() || used_before_last_[p]) name_selection(selections_[p]);
    if (!layout_.all_wanted() && used_in_last_[p]) name_selection(last_selections_[p]);
  }
  for (const RankedSelection& ranked : ranked_) ranked.ForArrays(name);
  if (!layout_.all_wanted()) {
    for (const RankedSelection& ranked : last_ranked_) ranked.ForArrays(name);
  }
  return backend_->BeginStep(arrays_);
}

DecoderImpl::DecoderImpl(kernels::Backend* backend, const ModelSpec* spec, const SparsityPlan* plan,
                         KvCache* cache, int32_t max_step_tokens)
    : backend_(backend), spec_(spec), plan_(plan), cache_(cache) {
  const int64_t fit = kMaxLogitsBytes / (int64_t{4} * std::max(1, spec->vocab_size));
  const int64_t rows = std::min<int64_t>(max_step_tokens, std::max(kMinLogitsRows, fit));
  limits_ = {.spec = spec,
             .plan = plan,
             .cache = cache,
             .max_step_tokens = max_step_tokens,
             .max_logits_rows = static_cast<int32_t>(rows)};
}

absl::Status DecoderImpl::Init(const std::function<void(const TensorView&)>& release) {
  RETURN_IF_ERROR(InitStep());
  auto resident = std::make_shared<ResidentModel>();
  RETURN_IF_ERROR(MakeResident(resident.get()));
  ASSIGN_OR_RETURN(resident->weights, PrepareWeights(backend_, resident->spec, release));
  spec_ = &resident->spec;
  resident_ = std::move(resident);
  return absl::OkStatus();
}

absl::Status DecoderImpl::InitSharing(std::shared_ptr<const ResidentModel> resident) {
  RETURN_IF_ERROR(InitStep());
  resident_ = std::move(resident);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Decoder>> DecoderImpl::WithPlan(const SparsityPlan* plan,
                                                               KvCache* cache,
                                                               int32_t max_step_tokens) const {
  auto decoder =
      std::make_unique<DecoderImpl>(backend_, &resident_->spec, plan, cache, max_step_tokens);
  RETURN_IF_ERROR(decoder->InitSharing(resident_));
  return std::unique_ptr<Decoder>(std::move(decoder));
}

absl::Status DecoderImpl::InitStep() {
  RETURN_IF_ERROR(CheckSpec());
  const size_t num_patterns = plan_->patterns.size();
  used_before_last_.assign(num_patterns, false);
  used_in_last_.assign(num_patterns, false);
  selections_.resize(num_patterns);
  last_selections_.resize(num_patterns);
  for (size_t l = 0; l < plan_->layers.size(); ++l) {
    std::vector<int32_t> groups;
    for (const HeadSegment& segment : plan_->layers[l].segments) {
      auto& used = l + 1 == plan_->layers.size() ? used_in_last_ : used_before_last_;
      used[static_cast<size_t>(segment.pattern)] = true;
      if (groups.empty() || groups.back() != segment.group) groups.push_back(segment.group);
    }
    layer_groups_.push_back(std::move(groups));
  }
  FindRankedSegments();
  return AllocateWorkspace();
}

void DecoderImpl::FindRankedSegments() {
  for (const LayerPlan& layer : plan_->layers) {
    std::vector<int32_t>& segments = layer_ranked_.emplace_back();
    for (const HeadSegment& segment : layer.segments) segments.push_back(RankedIndex(segment));
  }
}

int32_t DecoderImpl::RankedIndex(const HeadSegment& segment) {
  const PageRanking* ranking =
      plan_->patterns[static_cast<size_t>(segment.pattern)]->ranking();
  if (ranking == nullptr) return -1;
  const int32_t list_heads = ranking->list_heads == kernels::ListHeads::kPerKvHead
                                 ? segment.kv.count
                                 : segment.query.count;
  for (size_t r = 0; r < ranked_.size(); ++r) {
    if (ranked_pattern_[r] == segment.pattern && ranked_[r].num_list_heads() == list_heads) {
      return static_cast<int32_t>(r);
    }
  }
  ranked_pattern_.push_back(segment.pattern);
  ranked_.emplace_back(ranking, list_heads);
  last_ranked_.emplace_back(ranking, list_heads);
  return static_cast<int32_t>(ranked_.size()) - 1;
}

// What the forward pass relies on beside the shapes that every family checks.
absl::Status DecoderImpl::CheckSpec() const {
  if (limits_.max_step_tokens < 1) {
    return absl::InvalidArgumentError(
        StrCat("a step must take at least 1 token, got ", limits_.max_step_tokens, "."));
  }
  LS_CHECK_EQ(plan_->layers.size(), spec_->layers.size());
  LS_CHECK_EQ(plan_->groups.size(), cache_->groups().size());
  if (spec_->output_norm.data == nullptr) {
    return absl::InvalidArgumentError("the checkpoint has no output norm.");
  }
  if (limits_.max_step_tokens < plan_->chunk_alignment) {
    return absl::InvalidArgumentError(
        StrCat("a step takes ", limits_.max_step_tokens, " tokens, but under this plan prompts are "
               "computed in runs of ", plan_->chunk_alignment, "; allow that many or more."));
  }
  for (const LayerSpec& layer : spec_->layers) {
    if (spec_->parallel_block && layer.weights.attn_norm.data == nullptr) {
      return absl::InvalidArgumentError("a layer of parallel branches has no input norm.");
    }
    const int32_t rope = layer.attention.rope;
    LS_CHECK(rope < static_cast<int32_t>(spec_->ropes.size()));
    LS_CHECK(rope < 0 || !spec_->ropes[static_cast<size_t>(rope)].variants.empty());
  }
  return absl::OkStatus();
}

absl::Status DecoderImpl::MakeResident(ResidentModel* resident) const {
  ModelSpec& spec = resident->spec;
  spec = *spec_;
  const auto hold = [this](std::initializer_list<TensorView*> views) -> absl::Status {
    for (TensorView* view : views) {
      if (view->data == nullptr) continue;
      ASSIGN_OR_RETURN(*view, backend_->Resident(*view));
    }
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(hold({&spec.embedding, &spec.output_norm, &spec.output_norm_bias}));
  for (LayerSpec& layer : spec.layers) {
    LayerWeights& w = layer.weights;
    RETURN_IF_ERROR(
        hold({&w.attn_norm, &w.attn_norm_bias, &w.q_norm, &w.k_norm, &w.sinks, &w.bo,
              &w.post_attn_norm, &w.mlp_norm, &w.mlp_norm_bias, &w.down_bias, &w.post_mlp_norm,
              &w.router_bias, &w.expert_gate_up_bias, &w.expert_down_bias}));
  }
  for (const RopeSpec& rope : spec.ropes) {
    std::vector<const float*>& frequencies = resident->rope_frequencies.emplace_back();
    for (const RopeTable& table : rope.variants) {
      ASSIGN_OR_RETURN(const TensorView view, backend_->Resident(VectorView(table.inv_freq)));
      frequencies.push_back(view.ptr<const float>());
    }
  }
  return absl::OkStatus();
}

absl::Status DecoderImpl::AllocateWorkspace() {
  const Widths widths(*spec_);
  const int64_t rows = limits_.max_step_tokens;
  const auto allocate = [&](kernels::Buffer* buffer, int64_t width) -> absl::Status {
    ASSIGN_OR_RETURN(*buffer, backend_->Allocate(rows * width * int64_t{sizeof(float)}));
    work_.bytes += buffer->bytes();
    return absl::OkStatus();
  };
  const auto reserve = [&](kernels::Buffer* buffer, int64_t num_rows,
                           int64_t width) -> absl::Status {
    const int64_t bytes = num_rows * width * int64_t{sizeof(float)};
    if (backend_->device() == kernels::Device::kCpu) {
      ASSIGN_OR_RETURN(*buffer, backend_->Reserve(bytes));
    } else {
      ASSIGN_OR_RETURN(*buffer, backend_->Allocate(bytes));
    }
    work_.bytes += buffer->bytes();
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(allocate(&work_.stream, widths.dim));
  RETURN_IF_ERROR(allocate(&work_.normed, widths.dim));
  RETURN_IF_ERROR(allocate(&work_.qkv, widths.qkv));
  RETURN_IF_ERROR(allocate(&work_.attended, widths.heads));
  RETURN_IF_ERROR(allocate(&work_.branch, widths.dim));
  RETURN_IF_ERROR(allocate(&work_.gate_up, widths.gate_up));
  RETURN_IF_ERROR(allocate(&work_.router, widths.experts));
  RETURN_IF_ERROR(reserve(&work_.last_stream, rows, widths.dim));
  RETURN_IF_ERROR(reserve(&work_.last_normed, rows, widths.dim));
  RETURN_IF_ERROR(reserve(&work_.last_query, rows, widths.heads));
  RETURN_IF_ERROR(reserve(&work_.hidden, rows, widths.dim));
  return reserve(&work_.logits, limits_.max_logits_rows, spec_->vocab_size);
}

absl::StatusOr<std::unique_ptr<Decoder>> Decoder::Create(
    kernels::Backend* backend, const ModelSpec* spec, const SparsityPlan* plan, KvCache* cache,
    int32_t max_step_tokens, const std::function<void(const TensorView&)>& release) {
  auto decoder = std::make_unique<DecoderImpl>(backend, spec, plan, cache, max_step_tokens);
  RETURN_IF_ERROR(decoder->Init(release));
  return std::unique_ptr<Decoder>(std::move(decoder));
}

}  // namespace longstride::model

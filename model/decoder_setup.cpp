// What happens before the first step: weights, workspace, and a dry run of the largest steps.
#include <algorithm>
#include <bit>
#include <initializer_list>
#include <utility>

#include "config/base/check.h"
#include "model/decoder_impl.h"

namespace longstride::model {
namespace {

using kernels::TensorView;

// Logits of one step take at most this much, beside kMinLogitsRows rows in any case: a prompt that is
// scored may have to be computed in whole tiles (SparsityPlan::chunk_alignment).
constexpr int64_t kMaxLogitsBytes = int64_t{256} << 20;
constexpr int64_t kMinLogitsRows = 128;

// Widest rows of the spec's layers, in floats.
struct Widths {
  int64_t dim = 0, qkv = 0, heads = 0, latent_heads = 0, unabsorbed = 0, gate_up = 0, experts = 0;
  int64_t num_heads = 0, index_query = 0, index_keys = 0, gates = 0;
  int64_t parts = 0, merged_parts = 0;  // of attention: all, and those that are of one softmax

  explicit Widths(const ModelSpec& spec) : dim(spec.dim) {
    for (const LayerSpec& layer : spec.layers) {
      const AttentionSpec& a = layer.attention;
      const MlpSpec& m = layer.mlp;
      if (a.is_latent()) {
        const LatentAttention& latent = a.latent;
        qkv = std::max(qkv, int64_t{latent.q_rank} + a.head_dim);
        latent_heads = std::max(latent_heads, int64_t{a.num_heads} * a.head_dim);
        unabsorbed =
            std::max(unabsorbed, int64_t{a.num_heads} *
                                     std::max(latent.nope_dim + latent.rope_dim, latent.value_dim));
      } else {
        gates = std::max(gates, int64_t{a.num_heads} * a.gates);
        qkv = std::max(qkv, int64_t{a.num_heads + 2 * a.num_kv_heads} * a.head_dim +
                                int64_t{a.num_heads} * a.gates);
      }
      parts = std::max<int64_t>(parts, a.gates);
      const Indexer& indexer = a.indexer;
      index_query = std::max(index_query, int64_t{indexer.num_heads} * indexer.head_dim);
      index_keys = std::max<int64_t>(index_keys, indexer.num_heads + indexer.head_dim);
      heads = std::max(heads, int64_t{a.num_heads} * a.head_dim);
      num_heads = std::max<int64_t>(num_heads, a.num_heads);
      gate_up = std::max<int64_t>(gate_up,
                                  int64_t{2} * (m.num_experts > 0 ? m.shared_ffn_dim : m.ffn_dim));
      experts = std::max<int64_t>(experts, m.num_experts);
    }
    if (spec.dual_chunk) parts = merged_parts = DualChunk::kParts;
  }
};

int32_t MaxLogitsRows(const ModelSpec& spec, int32_t max_step_tokens) {
  if (spec.lm_head.data == nullptr) return 0;
  const int64_t fit = kMaxLogitsBytes / (int64_t{4} * std::max(1, spec.vocab_size));
  return static_cast<int32_t>(std::min<int64_t>(max_step_tokens, std::max(kMinLogitsRows, fit)));
}

}  // namespace

int64_t WorkspaceBytes(const ModelSpec& spec, int32_t max_step_tokens) {
  const Widths w(spec);
  const int64_t of_globals = GlobalTokens(spec) > 0 ? w.dim + 2 * w.heads : 0;
  const int64_t of_parts = w.parts * w.heads + w.merged_parts * w.num_heads + w.gates;
  const int64_t of_all_rows = 6 * w.dim + w.qkv + 2 * w.heads + w.latent_heads + w.unabsorbed +
                              w.index_query + w.index_keys + w.gate_up + w.experts + of_parts +
                              of_globals;
  return int64_t{sizeof(float)} *
         (max_step_tokens * of_all_rows +
          int64_t{MaxLogitsRows(spec, max_step_tokens)} * spec.vocab_size);
}

int32_t StepTokens(const SparsityPlan& plan, int32_t wanted) {
  return plan.causal ? wanted : std::max(wanted, plan.chunk_alignment);
}

DecoderImpl::DecoderImpl(kernels::Backend* backend, const ModelSpec* spec, const SparsityPlan* plan,
                         KvCache* cache, int32_t max_step_tokens)
    : backend_(backend), spec_(spec), plan_(plan), cache_(cache) {
  const int32_t logits = MaxLogitsRows(*spec, max_step_tokens);
  limits_ = {.spec = spec,
             .plan = plan,
             .cache = cache,
             .max_step_tokens = max_step_tokens,
             .max_logits_rows =
                 logits == 0 ? 0
                             : std::max(logits, std::min(max_step_tokens, plan->chunk_alignment))};
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
  pattern_heads_.assign(num_patterns, {});
  selections_.resize(num_patterns);
  last_selections_.resize(num_patterns);
  for (size_t l = 0; l < plan_->layers.size(); ++l) {
    std::vector<int32_t> groups;
    for (const HeadSegment& segment : plan_->layers[l].segments) {
      auto& used = l + 1 == plan_->layers.size() ? used_in_last_ : used_before_last_;
      used[static_cast<size_t>(segment.pattern)] = true;
      CountHeads(segment, &pattern_heads_[static_cast<size_t>(segment.pattern)]);
      if (std::find(groups.begin(), groups.end(), segment.group) == groups.end()) {
        groups.push_back(segment.group);
      }
    }
    layer_groups_.push_back(std::move(groups));
  }
  FindRankedSegments();
  reads_means_ = std::any_of(plan_->patterns.begin(), plan_->patterns.end(),
                             [](const auto& pattern) { return pattern->reads_means(); });
  if (spec_->dual_chunk) dual_chunk_.emplace(*spec_->dual_chunk);
  if (const int32_t tokens = GlobalTokens(*spec_); tokens > 0) global_.emplace(tokens);
  return AllocateWorkspace();
}

void DecoderImpl::CountHeads(const HeadSegment& segment, HeadCount* count) {
  count->all += segment.query.count;
  if (segment.part == 0) count->first_part += segment.query.count;
}

void DecoderImpl::FindRankedSegments() {
  for (const LayerPlan& layer : plan_->layers) {
    std::vector<int32_t>& segments = layer_ranked_.emplace_back();
    for (const HeadSegment& segment : layer.segments) {
      segments.push_back(RankedIndex(segment));
      if (segments.back() < 0) continue;
      CountHeads(segment, &ranked_heads_[static_cast<size_t>(segments.back())]);
    }
  }
}

int32_t DecoderImpl::RankedIndex(const HeadSegment& segment) {
  const PageRanking* ranking =
      plan_->patterns[static_cast<size_t>(segment.pattern)]->ranking();
  if (ranking == nullptr) return -1;
  const int32_t list_heads = ranking->by_index ? 1
                             : ranking->list_heads == kernels::ListHeads::kPerKvHead
                                 ? segment.kv.count
                                 : segment.query.count;
  for (size_t r = 0; r < ranked_.size(); ++r) {
    if (ranked_pattern_[r] == segment.pattern && ranked_[r].num_list_heads() == list_heads) {
      return static_cast<int32_t>(r);
    }
  }
  lists_follow_from_lengths_ =
      lists_follow_from_lengths_ && (ranking->by_index || kernels::UsesSummaries(ranking->score));
  ranked_pattern_.push_back(segment.pattern);
  ranked_heads_.push_back({});
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
  if (spec_->output_norm.data == nullptr && !spec_->norm_sums) {
    return absl::InvalidArgumentError("the checkpoint has no output norm.");
  }
  const TensorView& positions = spec_->position_embedding;
  if (positions.data != nullptr && plan_->max_context > positions.shape[0]) {
    return absl::InvalidArgumentError(StrCat("the context is ", plan_->max_context,
                                             " tokens, but the checkpoint has learned "
                                             "positions for ",
                                             positions.shape[0], "; lower the context to that."));
  }
  if (limits_.max_step_tokens < plan_->chunk_alignment) {
    return absl::InvalidArgumentError(
        StrCat("a step takes ", limits_.max_step_tokens, " tokens, but under this plan prompts are "
               "computed in runs of ", plan_->chunk_alignment, "; allow that many or more."));
  }
  const int32_t global_tokens = GlobalTokens(*spec_);
  for (const LayerSpec& layer : spec_->layers) {
    if (spec_->parallel_block && layer.weights.attn_norm.data == nullptr) {
      return absl::InvalidArgumentError("a layer of parallel branches has no input norm.");
    }
    if (layer.attention.gates > 0) {
      LS_CHECK(!layer.attention.is_latent() && !spec_->dual_chunk);
      LS_CHECK_EQ(layer.weights.attn_gates.shape[0],
                  int64_t{layer.attention.num_heads} * layer.attention.gates);
    }
    LS_CHECK((layer.weights.global_wq.data != nullptr) == (global_tokens > 0));
    LS_CHECK(global_tokens == 0 ||
             (!spec_->causal && layer.attention.native.global_tokens == global_tokens));
    const int32_t rope = layer.attention.rope;
    LS_CHECK(rope < static_cast<int32_t>(spec_->ropes.size()));
    LS_CHECK(rope < 0 || !spec_->ropes[static_cast<size_t>(rope)].variants.empty());
    for (size_t v = 1; spec_->dual_chunk && rope >= 0 && v < spec_->ropes[rope].variants.size();
         ++v) {
      const std::vector<RopeTable>& variants = spec_->ropes[rope].variants;
      LS_CHECK(variants[v].inv_freq == variants[0].inv_freq);
    }
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
  RETURN_IF_ERROR(hold({&spec.embedding, &spec.position_embedding, &spec.embedding_norm,
                        &spec.embedding_norm_bias, &spec.output_norm, &spec.output_norm_bias}));
  for (LayerSpec& layer : spec.layers) {
    LayerWeights& w = layer.weights;
    RETURN_IF_ERROR(hold({&w.attn_norm,
                          &w.attn_norm_bias,
                          &w.q_norm,
                          &w.k_norm,
                          &w.index_norm,
                          &w.index_norm_bias,
                          &w.sinks,
                          &w.bo,
                          &w.global_bq,
                          &w.post_attn_norm,
                          &w.post_attn_norm_bias,
                          &w.mlp_norm,
                          &w.mlp_norm_bias,
                          &w.down_bias,
                          &w.post_mlp_norm,
                          &w.post_mlp_norm_bias,
                          &w.router_bias,
                          &w.selection_bias,
                          &w.expert_gate_up_bias,
                          &w.expert_down_bias}));
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
  RETURN_IF_ERROR(allocate(&work_.latent_query, widths.latent_heads));
  RETURN_IF_ERROR(allocate(&work_.unabsorbed, widths.unabsorbed));
  RETURN_IF_ERROR(allocate(&work_.index_query, widths.index_query));
  RETURN_IF_ERROR(allocate(&work_.index_keys, widths.index_keys));
  RETURN_IF_ERROR(allocate(&work_.branch, widths.dim));
  RETURN_IF_ERROR(allocate(&work_.gate_up, widths.gate_up));
  RETURN_IF_ERROR(allocate(&work_.router, widths.experts));
  if (widths.parts > 0) RETURN_IF_ERROR(allocate(&work_.parts, widths.parts * widths.heads));
  if (widths.merged_parts > 0) {
    RETURN_IF_ERROR(allocate(&work_.parts_lse, widths.merged_parts * widths.num_heads));
  }
  RETURN_IF_ERROR(reserve(&work_.last_stream, rows, widths.dim));
  RETURN_IF_ERROR(reserve(&work_.last_normed, rows, widths.dim));
  RETURN_IF_ERROR(reserve(&work_.last_query, rows, widths.heads));
  if (widths.gates > 0) RETURN_IF_ERROR(reserve(&work_.last_gates, rows, widths.gates));
  RETURN_IF_ERROR(reserve(&work_.hidden, rows, widths.dim));
  if (global_) {
    RETURN_IF_ERROR(reserve(&work_.global_input, rows, widths.dim));
    RETURN_IF_ERROR(reserve(&work_.global_query, rows, widths.heads));
    RETURN_IF_ERROR(reserve(&work_.global_attended, rows, widths.heads));
  }
  if (limits_.max_logits_rows == 0) return absl::OkStatus();
  return reserve(&work_.logits, limits_.max_logits_rows, spec_->vocab_size);
}

absl::Status DecoderImpl::DryRun(int32_t sequences, int32_t context) {
  if (backend_->device() == kernels::Device::kCpu) return absl::OkStatus();
  const size_t num_groups = plan_->groups.size();
  const int32_t most = std::min(limits_.max_step_tokens, limits_.max_logits_rows);
  const int32_t rows = std::min(PaddedRows(std::min(sequences, most)), most);
  layout_.SetIdle(rows, rows, NumericsClass::kGenerated, num_groups, context);
  // What one sequence's lists are at the end of the context, and room for all.
  const QueryRun last = {.num_rows = 1,
                         .first_position = context - 1,
                         .numerics = NumericsClass::kGenerated};
  std::vector<int32_t> longest(selections_.size());
  for (size_t p = 0; p < selections_.size(); ++p) {
    SelectionBuilder& s = selections_[p];
    s.Clear();
    plan_->patterns[p]->Select({&last, 1}, &s);
    longest[p] = *std::max_element(s.list_count.begin(), s.list_count.end());
    const auto entries = std::ssize(s.entries) * rows;
    s.Clear();
    plan_->patterns[p]->Select({}, &s);
    if (plan_->patterns[p]->ranking() != nullptr) continue;
    s.Pad(rows);
    s.max_list_entries = PaddedListBound(longest[p]);
    s.entries.resize(static_cast<size_t>(PaddedEntries(entries)), kernels::kNoEntry);
  }
  for (size_t r = 0; r < ranked_.size(); ++r) {
    const auto p = static_cast<size_t>(ranked_pattern_[r]);
    ranked_[r].Set(selections_[p]);
    ranked_[r].Pad(rows, longest[p]);
  }
  RETURN_IF_ERROR(RunDry());
  const int32_t chunk = std::min(limits_.max_step_tokens, context);
  layout_.SetIdle(chunk, 1, NumericsClass::kPrompt, num_groups, context);
  layout_.wanted.resize(static_cast<size_t>(std::min(chunk, limits_.max_logits_rows)));
  layout_.logits_rows = layout_.wanted;
  for (size_t p = 0; p < selections_.size(); ++p) {
    for (auto& [selection, num_rows] :
         {std::pair(&selections_[p], chunk),
          std::pair(&last_selections_[p], static_cast<int32_t>(layout_.wanted.size()))}) {
      selection->Clear();
      const QueryRun run = {.num_rows = num_rows, .first_position = context - num_rows};
      plan_->patterns[p]->Select({&run, 1}, selection);
      if (plan_->patterns[p]->ranking() != nullptr) break;
      std::fill(selection->list_count.begin(), selection->list_count.end(), 0);
    }
  }
  for (size_t r = 0; r < ranked_.size(); ++r) {
    const SelectionBuilder& chosen = selections_[static_cast<size_t>(ranked_pattern_[r])];
    ranked_[r].Set(chosen);
    last_ranked_[r].SetWanted(chosen, layout_.wanted);
    ranked_[r].Empty();
    last_ranked_[r].Empty();
  }
  return RunDry();
}

absl::Status DecoderImpl::RunDry() {
  ModelOutput output;
  BeginStep(&output);
  page_tables_ = layout_.page_tables;
  if (dual_chunk_) {
    dual_chunk_->SetPositions(layout_);
    dual_chunk_->Cut(selections_, last_selections_);
    dual_chunk_->UseAllParts();
  }
  CountWholePages();
  RETURN_IF_ERROR(ReservePageLists());
  NameArrays();
  RETURN_IF_ERROR(backend_->BeginStep(arrays_));
  RETURN_IF_ERROR(Compute());
  return backend_->EndStep();
}

absl::StatusOr<std::unique_ptr<Decoder>> Decoder::Create(
    kernels::Backend* backend, const ModelSpec* spec, const SparsityPlan* plan, KvCache* cache,
    int32_t max_step_tokens, const std::function<void(const TensorView&)>& release) {
  auto decoder = std::make_unique<DecoderImpl>(backend, spec, plan, cache, max_step_tokens);
  RETURN_IF_ERROR(decoder->Init(release));
  return std::unique_ptr<Decoder>(std::move(decoder));
}

}  // namespace longstride::model

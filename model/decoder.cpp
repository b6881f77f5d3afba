#include "model/decoder.h"

#include "config/base/strings.h"
#include "kernels/count_keys.h"
#include "model/decoder_impl.h"

namespace longstride::model {

using kernels::TensorView;

// One step: the whole forward pass is this function, Compute and RunLayer.
absl::Status DecoderImpl::Forward(const ModelInput& input, ModelOutput* output) {
  BeginStep(output);
  RETURN_IF_ERROR(layout_.Set(input, limits_));
  output->chosen.resize(input.choices.size());
  if (layout_.num_rows == 0) return absl::OkStatus();
  const auto num_logits = static_cast<int32_t>(layout_.logits_rows.size());
  const bool repeatable = layout_.decodes_only && backend_->repeats_steps() &&
                          observer_ == nullptr && lists_follow_from_lengths_;
  if (repeatable) layout_.Pad(limits_);
  page_tables_ = layout_.page_tables;
  for (size_t g = 0; g < layout_.page_ids.size(); ++g) {
    RETURN_IF_ERROR(cache_->Commit(static_cast<int32_t>(g), layout_.page_ids[g]));
  }
  RETURN_IF_ERROR(SelectKeys());
  NameArrays();
  if (repeatable) {
    RETURN_IF_ERROR(ComputeRepeatable(output));
  } else {
    RETURN_IF_ERROR(backend_->BeginStep(arrays_));
    RETURN_IF_ERROR(Compute());
  }
  Timed timed(&times_->other_ns);
  return Deliver(input, num_logits, output);
}

absl::Status DecoderImpl::ComputeRepeatable(ModelOutput* output) {
  ASSIGN_OR_RETURN(output->repeatable, backend_->BeginRepeatable(arrays_, RepeatKey()));
  if (*output->repeatable == kernels::StepRun::kReplayed) {
    logits_ = MatrixIn(work_.logits, layout_.num_rows, spec_->vocab_size);
    RETURN_IF_ERROR(CountReplayed());
  } else {
    RETURN_IF_ERROR(Compute());
  }
  return backend_->EndRepeatable();
}

absl::Status DecoderImpl::Compute() {
  RETURN_IF_ERROR(Embed());
  for (size_t layer = 0; layer < spec_->layers.size(); ++layer) {
    RETURN_IF_ERROR(RunLayer(layer));
  }
  return Finish();
}

absl::Status DecoderImpl::RunLayer(size_t l) {
  const LayerSpec& layer = spec_->layers[l];
  const LayerWeights& views = layer.weights;
  const PreparedLayer& w = resident_->weights.layers[l];
  const bool mixture = layer.mlp.num_experts > 0;
  // Products take activations in the type that they compute with, where nothing else reads them.
  const kernels::DType type = spec_->parallel_block ? kernels::DType::kF32 : w.qkv->input_type();
  RETURN_IF_ERROR(Norm(x_, views.attn_norm, views.attn_norm_bias, type, &h_));
  const bool latent = layer.attention.is_latent();
  TensorView query;
  if (w.global_q != nullptr) RETURN_IF_ERROR(AttendGlobal(l));
  RETURN_IF_ERROR(latent ? ProjectLatent(l, &query) : Project(l, &query));
  RETURN_IF_ERROR(RankPages(l, query));
  if (l + 1 == spec_->layers.size()) RETURN_IF_ERROR(KeepWantedRows(&query));
  if (rows_ == 0) return absl::OkStatus();
  const bool narrow = layer.attention.head_dim % 8 == 0 && !latent;
  TensorView attended =
      Rows(work_.attended, query.shape[1], narrow ? w.o->input_type() : kernels::DType::kF32);
  RETURN_IF_ERROR(Attend(l, query, attended));
  if (w.global_q != nullptr) RETURN_IF_ERROR(PlaceGlobal(attended));
  if (latent) RETURN_IF_ERROR(ExpandValues(l, &attended));
  RETURN_IF_ERROR(AddProjected(attended, w.o.get(), views.bo,
                               {views.post_attn_norm, views.post_attn_norm_bias}));
  if (!spec_->parallel_block) {
    RETURN_IF_ERROR(Norm(x_, views.mlp_norm, views.mlp_norm_bias,
                         mixture ? kernels::DType::kF32 : w.gate_up->input_type(), &h_));
  }
  return mixture ? AddExperts(layer, w) : AddMlp(layer, w);
}

absl::Status DecoderImpl::Embed() {
  Timed timed(&times_->other_ns);
  rows_ = layout_.num_rows;
  last_ = false;
  x_ = Rows(work_.stream, spec_->dim);
  RETURN_IF_ERROR(backend_->Embedding({.table = spec_->embedding,
                                       .ids = layout_.token_ids.data(),
                                       .scale = spec_->embedding_scale,
                                       .out = x_}));
  if (spec_->position_embedding.data != nullptr) {
    const TensorView positions = Rows(work_.branch, spec_->dim);
    RETURN_IF_ERROR(backend_->Embedding(
        {.table = spec_->position_embedding, .ids = layout_.positions.data(), .out = positions}));
    RETURN_IF_ERROR(backend_->Add({.x = x_, .y = positions, .out = x_}));
  }
  if (spec_->embedding_norm.data == nullptr) return absl::OkStatus();
  return NormInto(x_, spec_->embedding_norm, spec_->embedding_norm_bias, x_);
}

// Output norm, hidden states and logits of the wanted rows.
absl::Status DecoderImpl::Finish() {
  if (rows_ == 0) return absl::OkStatus();
  TensorView h;
  const bool for_head_alone =
      layout_.hidden_rows.empty() && static_cast<int32_t>(layout_.logits_rows.size()) == rows_;
  RETURN_IF_ERROR(Norm(x_, spec_->output_norm, spec_->output_norm_bias,
                       for_head_alone ? resident_->weights.lm_head->input_type() : kernels::DType::kF32, &h));
  RETURN_IF_ERROR(TakeRows(h, layout_.hidden_rows, work_.hidden, &hidden_));
  TensorView input;
  // The stream is not needed any more: its memory takes the rows of the head.
  RETURN_IF_ERROR(
      TakeRows(h, layout_.logits_rows, last_ ? work_.last_stream : work_.stream, &input));
  if (input.data == nullptr) return absl::OkStatus();
  logits_ = MatrixIn(work_.logits, input.shape[0], spec_->vocab_size);
  RETURN_IF_ERROR(Linear(input, resident_->weights.lm_head.get(), {}, logits_));
  if (spec_->logit_scale == 1.0f && spec_->logit_softcap == 0.0f) return absl::OkStatus();
  Timed timed(&times_->other_ns);
  return backend_->Softcap(
      {.x = logits_, .scale = spec_->logit_scale, .softcap = spec_->logit_softcap});
}

// The outputs' way to the host, without rows that are padding.
absl::Status DecoderImpl::Deliver(const ModelInput& input, int32_t num_logits,
                                  ModelOutput* output) {
  if (hidden_.data != nullptr) {
    ASSIGN_OR_RETURN(output->hidden, backend_->ToHost(hidden_));
  }
  std::span<const kernels::SampleResult> results;
  if (logits_.data != nullptr) {
    logits_.shape[0] = num_logits;
    ASSIGN_OR_RETURN(results, Choose(input));
    if (static_cast<int32_t>(results.size()) < num_logits) {
      ASSIGN_OR_RETURN(output->logits, backend_->ToHost(logits_));
    }
  }
  RETURN_IF_ERROR(backend_->EndStep());
  for (size_t i = 0; i < results.size(); ++i) {
    output->chosen[choice_of_[i]] = DeviceChoices::Result(choices_.rows()[i], results[i]);
  }
  for (size_t p = 0; p < keys_.size(); ++p) {
    output->counters[p].keys_visible += keys_[p].keys_visible;
    output->counters[p].keys_read += keys_[p].keys_read;
  }
  output->kernel_times = backend_->TakeKernelTimes();
  return absl::OkStatus();
}

absl::StatusOr<std::span<const kernels::SampleResult>> DecoderImpl::Choose(
    const ModelInput& input) {
  choices_.Clear();
  choice_of_.clear();
  if (!backend_->samples()) return std::span<const kernels::SampleResult>();
  for (size_t i = 0; i < input.choices.size(); ++i) {
    const TokenChoice& choice = input.choices[i];
    if (choices_.Add(choice.logits_row, spec_->vocab_size, choice.context)) choice_of_.push_back(i);
  }
  if (choices_.size() == 0) return std::span<const kernels::SampleResult>();
  return backend_->Sample({.logits = logits_,
                           .rows = choices_.rows().data(),
                           .num_rows = choices_.size(),
                           .edits = choices_.edits().data(),
                           .num_edits = static_cast<int32_t>(choices_.edits().size())});
}

// Selections of the step, one per pattern in use; again for the last layer's fewer rows. Those of
// query-dependent patterns say where their lists will lie.
absl::Status DecoderImpl::SelectKeys() {
  Timed timed(&times_->selection_ns);
  if (global_) global_->SetRuns(layout_);
  for (size_t p = 0; p < plan_->patterns.size(); ++p) {
    const SparsePattern& pattern = *plan_->patterns[p];
    selections_[p].Clear();
    last_selections_[p].Clear();
    if (layout_.all_wanted() || used_before_last_[p] || pattern.ranking() != nullptr) {
      pattern.Select(AttendedRuns(false), &selections_[p]);
      if (layout_.padded && pattern.ranking() == nullptr) selections_[p].Pad(layout_.num_rows);
    }
    if (!layout_.all_wanted() && used_in_last_[p] && pattern.ranking() == nullptr) {
      pattern.Select(AttendedRuns(true), &last_selections_[p]);
    }
  }
  if (global_) global_->Select(*plan_);
  if (dual_chunk_) {
    dual_chunk_->SetPositions(layout_);
    dual_chunk_->Cut(selections_, last_selections_);
  }
  CountWholePages();
  for (size_t r = 0; r < ranked_.size(); ++r) {
    const SelectionBuilder& chosen = selections_[static_cast<size_t>(ranked_pattern_[r])];
    ranked_[r].Set(chosen);
    if (layout_.padded) ranked_[r].Pad(layout_.num_rows);
    if (!layout_.all_wanted()) last_ranked_[r].SetWanted(chosen, layout_.wanted);
  }
  return ReservePageLists();
}

void DecoderImpl::CountWholePages() {
  whole_pages_.clear();
  if (!reads_means_) return;
  for (const int32_t keys : layout_.kv_lens) whole_pages_.push_back(keys / kernels::kPageTokens);
}

absl::Status DecoderImpl::ReservePageLists() {
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

void DecoderImpl::BeginStep(ModelOutput* output) {
  output->repeatable.reset();
  output->logits = {};
  output->hidden = {};
  output->chosen.clear();
  output->kernel_times.reset();
  output->shadow.reset();
  output->times = {};
  output->counters.resize(plan_->patterns.size());
  for (size_t p = 0; p < output->counters.size(); ++p) {
    output->counters[p] = {.pattern = static_cast<int32_t>(p)};
  }
  keys_.assign(plan_->patterns.size(), {});
  times_ = &output->times;
  counters_ = &output->counters;
  hidden_ = logits_ = {};
}

// What Attend would have counted.
absl::Status DecoderImpl::CountReplayed() {
  const auto count = [this](size_t p, const kernels::KvSelection& selection,
                            const HeadCount& heads) -> absl::Status {
    const std::vector<int32_t>& lens =
        plan_->patterns[p]->reads_means() ? whole_pages_ : layout_.kv_lens;
    ASSIGN_OR_RETURN(const kernels::AttentionCounters keys,
                     kernels::CountKeys(selection, lens.data(), heads.all));
    PatternCounters& total = (*counters_)[p];
    total.keys_total += heads.first_part * layout_.keys_all_rows;
    total.keys_visible += keys.keys_visible;
    total.keys_read += keys.keys_read;
    return absl::OkStatus();
  };
  for (size_t p = 0; p < plan_->patterns.size(); ++p) {
    if (plan_->patterns[p]->ranking() != nullptr) continue;
    RETURN_IF_ERROR(count(p, selections_[p].View(), pattern_heads_[p]));
  }
  for (size_t r = 0; r < ranked_.size(); ++r) {
    RETURN_IF_ERROR(
        count(static_cast<size_t>(ranked_pattern_[r]), ranked_[r].View(nullptr), ranked_heads_[r]));
  }
  return absl::OkStatus();
}

std::string DecoderImpl::RepeatKey() const {
  std::string key = StrCat(layout_.num_rows);
  for (const RopeSpan& span : layout_.rope_spans) {
    StrAppend(&key, " ", span.num_rows, ":", int{span.variant});
  }
  for (const SelectionBuilder& s : selections_) {
    StrAppend(&key, " ", static_cast<int>(s.list_heads), ":", s.num_list_heads, ":",
              s.entry_tokens, ":", s.query_tile, ":", s.max_list_entries);
  }
  for (const RankedSelection& ranked : ranked_) {
    StrAppend(&key, " ", ranked.num_entries(), ":", ranked.View(nullptr).max_list_entries);
  }
  if (dual_chunk_) StrAppend(&key, " parts ", dual_chunk_->num_parts());
  // Made lists move when their memory grows.
  StrAppend(&key, " ", page_lists_.bytes());
  return key;
}

void DecoderImpl::NameArrays() {
  arrays_.clear();
  const auto name = [this](const auto& values) {
    arrays_.push_back(
        {values.data(), static_cast<int64_t>(values.size() * sizeof(*values.data()))});
  };
  name(layout_.token_ids);
  name(layout_.positions);
  name(layout_.slots);
  for (const std::vector<int32_t>& ids : layout_.page_ids) name(ids);
  for (const std::vector<int32_t>& ids : layout_.written_pages) name(ids);
  for (const std::vector<int32_t>& counts : layout_.written_counts) name(counts);
  name(layout_.kv_lens);
  if (reads_means_) name(whole_pages_);
  for (const kernels::PageTable& table : layout_.page_tables) {
    arrays_.push_back({table.pages, table.stride * table.num_sequences * int64_t{4}});
  }
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
  if (dual_chunk_) dual_chunk_->ForArrays(layout_.all_wanted(), name);
  if (global_) {
    name(global_->rows());
    for (size_t p = 0; p < plan_->patterns.size(); ++p) name_selection(global_->selection(p));
  }
  for (const RankedSelection& ranked : ranked_) ranked.ForArrays(name);
  if (!layout_.all_wanted()) {
    for (const RankedSelection& ranked : last_ranked_) ranked.ForArrays(name);
  }
}

}  // namespace longstride::model

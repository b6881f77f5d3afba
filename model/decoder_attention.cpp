// The attention half of a layer: head norms, rotary positions, cache writes, attention calls.
#include <algorithm>
#include <utility>

#include "model/decoder_impl.h"

namespace longstride::model {
namespace {

using kernels::TensorView;

TensorView RowRange(const TensorView& t, int64_t begin, int64_t rows) {
  TensorView view = t;
  view.data = t.ptr<float>() + begin * t.strides[0];
  view.shape[0] = rows;
  return view;
}

// The KV heads [first, +count) of a group's layer.
kernels::PagedKv HeadsOf(kernels::PagedKv cache, int32_t first, int32_t count) {
  cache.k = static_cast<char*>(cache.k) + first * cache.head_stride;
  cache.v = static_cast<char*>(cache.v) + first * cache.head_stride;
  if (cache.summaries != nullptr) {
    cache.summaries =
        static_cast<char*>(cache.summaries) + first * kernels::PageSummaryBytes(cache);
  }
  cache.num_heads = count;
  return cache;
}

}  // namespace

absl::Status DecoderImpl::Project(size_t l, TensorView* query) {
  const LayerSpec& layer = spec_->layers[l];
  const AttentionSpec& a = layer.attention;
  const PreparedLayer& w = resident_->weights.layers[l];
  const TensorView qkv = Rows(work_.qkv, w.qkv->rows());
  RETURN_IF_ERROR(Linear(h_, w.qkv.get(), w.qkv_bias, qkv));
  RETURN_IF_ERROR(NormHeads(layer, qkv));
  RETURN_IF_ERROR(Rotate(layer, qkv));
  const int64_t query_width = int64_t{a.num_heads} * a.head_dim;
  const int64_t kv_width = int64_t{a.num_kv_heads} * a.head_dim;
  *query = Columns(qkv, 0, query_width);
  gates_ = {};
  if (a.gates > 0) {
    gates_ = Columns(qkv, query_width + 2 * kv_width, int64_t{a.num_heads} * a.gates);
  }
  return WriteKv(l, Columns(qkv, query_width, kv_width),
                 Columns(qkv, query_width + kv_width, kv_width));
}

// Query and key norms that come before the rotation.
absl::Status DecoderImpl::NormHeads(const LayerSpec& layer, const TensorView& qkv) {
  const AttentionSpec& a = layer.attention;
  Timed timed(&times_->other_ns);
  int64_t first = 0;
  for (const auto& [heads, weight] : {std::pair(a.num_heads, &layer.weights.q_norm),
                                      std::pair(a.num_kv_heads, &layer.weights.k_norm)}) {
    const TensorView per_head = Heads(qkv, first, heads, a.head_dim);
    const TensorView wide = Columns(qkv, first, int64_t{heads} * a.head_dim);
    first += int64_t{heads} * a.head_dim;
    switch (a.qk_norm) {
      case QkNorm::kNone:
      case QkNorm::kL2AfterRope:
        break;
      case QkNorm::kPerHead:
        RETURN_IF_ERROR(RmsNormQk(a, per_head, *weight));
        break;
      case QkNorm::kFullWidth:
        RETURN_IF_ERROR(RmsNormQk(a, wide, *weight));
        break;
      case QkNorm::kLayerNormPerHead:
        RETURN_IF_ERROR(backend_->LayerNorm(
            {.x = per_head, .weight = *weight, .eps = a.qk_norm_eps, .out = per_head}));
        break;
    }
  }
  return absl::OkStatus();
}

absl::Status DecoderImpl::RmsNormQk(const AttentionSpec& a, const TensorView& x,
                                    const TensorView& weight) {
  const float offset = weight.data == nullptr ? 0.0f : spec_->norm_weight_offset;
  return backend_->RmsNorm(
      {.x = x, .weight = weight, .weight_offset = offset, .eps = a.qk_norm_eps, .out = x});
}

// Rotary positions of queries and keys (side by side in qkv), and what follows them.
absl::Status DecoderImpl::Rotate(const LayerSpec& layer, const TensorView& qkv) {
  const AttentionSpec& a = layer.attention;
  Timed timed(&times_->other_ns);
  const TensorView queries = Heads(qkv, 0, a.num_heads, a.head_dim);
  const TensorView both = Heads(qkv, 0, a.num_heads + a.num_kv_heads, a.head_dim);
  RETURN_IF_ERROR(RotateHeads(a.rope, both));
  if (a.qk_norm == QkNorm::kL2AfterRope) RETURN_IF_ERROR(RmsNormQk(a, both, {}));
  if (!a.position_scale) return absl::OkStatus();
  return backend_->PositionScale({.x = queries,
                                  .positions = layout_.positions.data(),
                                  .attn_scale = a.position_attn_scale,
                                  .floor_scale = a.position_floor_scale});
}

absl::Status DecoderImpl::RotateHeads(int32_t rope_index, const TensorView& heads) {
  if (rope_index < 0) return absl::OkStatus();
  const int32_t* positions =
      dual_chunk_ ? dual_chunk_->positions().data() : layout_.positions.data();
  const auto r = static_cast<size_t>(rope_index);
  const RopeSpec& rope = spec_->ropes[r];
  for (const RopeSpan& span : layout_.rope_spans) {
    const size_t variant = std::min<size_t>(span.variant, rope.variants.size() - 1);
    const RopeTable& table = rope.variants[variant];
    const float* frequencies = resident_->rope_frequencies[r][variant];
    if (table.inv_freq.empty()) continue;
    RETURN_IF_ERROR(backend_->Rope({.x = RowRange(heads, span.row_begin, span.num_rows),
                                    .positions = positions + span.row_begin,
                                    .inv_freq = frequencies,
                                    .num_frequencies = static_cast<int32_t>(table.inv_freq.size()),
                                    .interleaved = table.interleaved,
                                    .scale = table.scale}));
  }
  return absl::OkStatus();
}

kernels::PagedKv DecoderImpl::CacheOf(size_t l, int32_t group) const {
  kernels::PagedKv cache = cache_->View(group, static_cast<int32_t>(l));
  if (cache.dtype == kernels::KvDType::kFp8) {
    cache.k_scale = spec_->layers[l].attention.k_scale;
    cache.v_scale = spec_->layers[l].attention.v_scale;
  }
  return cache;
}

absl::Status DecoderImpl::WriteKv(size_t l, const TensorView& keys, const TensorView& values) {
  const AttentionSpec& a = spec_->layers[l].attention;
  Timed timed(&times_->other_ns);
  for (const int32_t g : layer_groups_[l]) {
    const CacheGroup& group = cache_->groups()[static_cast<size_t>(g)];
    const int64_t first = int64_t{group.first_kv_head} * a.head_dim;
    // Empty where the group has no summaries.
    const std::vector<int32_t>& pages = layout_.written_pages[static_cast<size_t>(g)];
    RETURN_IF_ERROR(
        backend_->KvWrite({.k = Heads(keys, first, group.num_kv_heads, a.head_dim),
                           .v = Heads(values, first, group.num_kv_heads, a.head_dim),
                           .cache = CacheOf(l, g),
                           .page_ids = layout_.page_ids[static_cast<size_t>(g)].data(),
                           .slots = layout_.slots.data(),
                           .summary_pages = pages.data(),
                           .summary_counts = layout_.written_counts[static_cast<size_t>(g)].data(),
                           .num_summaries = static_cast<int32_t>(pages.size())}));
  }
  return absl::OkStatus();
}

// The lists of a layer's segments lie one behind the other, as Attend reads them.
absl::Status DecoderImpl::RankPages(size_t l, const TensorView& query) {
  const bool wanted_only = l + 1 == plan_->layers.size() && !layout_.all_wanted();
  if (ranked_.empty() || (wanted_only && layout_.wanted.empty())) return absl::OkStatus();
  Timed timed(&times_->selection_ns);
  const AttentionSpec& a = spec_->layers[l].attention;
  const LayerPlan& layer = plan_->layers[l];
  auto* entries = page_lists_.as<int32_t>();
  for (size_t s = 0; s < layer.segments.size(); ++s) {
    if (layer_ranked_[l][s] < 0) continue;
    const HeadSegment& segment = layer.segments[s];
    const auto r = static_cast<size_t>(layer_ranked_[l][s]);
    const RankedSelection& ranked = wanted_only ? last_ranked_[r] : ranked_[r];
    if (ranked.by_index()) {
      RETURN_IF_ERROR(RankTokens(l, segment.group, ranked, entries));
      entries += ranked.num_entries();
      continue;
    }
    const CacheGroup& group = cache_->groups()[static_cast<size_t>(segment.group)];
    kernels::SelectPagesParams params = ranked.ToSelect();
    params.q = Heads(query, int64_t{segment.query.first} * a.head_dim, segment.query.count,
                     a.head_dim);
    params.cache = HeadsOf(CacheOf(l, segment.group), segment.kv.first - group.first_kv_head,
                           segment.kv.count);
    params.page_table = page_tables_[static_cast<size_t>(segment.group)];
    params.scale = a.scale;
    if (layout_.padded) params.max_candidates = params.page_table.stride;
    params.entries = entries;
    RETURN_IF_ERROR(backend_->SelectPages(params));
    entries += ranked.num_entries();
  }
  return absl::OkStatus();
}

// Behind the last layer's keys and values only the rows count that somebody wants.
absl::Status DecoderImpl::KeepWantedRows(TensorView* query) {
  if (layout_.all_wanted()) return absl::OkStatus();
  rows_ = static_cast<int32_t>(layout_.wanted.size());
  last_ = true;
  if (rows_ == 0) return absl::OkStatus();
  Timed timed(&times_->other_ns);
  RETURN_IF_ERROR(Gather(&x_, layout_.wanted, work_.last_stream));
  if (spec_->parallel_block) {
    RETURN_IF_ERROR(Gather(&h_, layout_.wanted, work_.last_normed));
  }
  if (gates_.data != nullptr) RETURN_IF_ERROR(Gather(&gates_, layout_.wanted, work_.last_gates));
  return Gather(query, layout_.wanted, work_.last_query);
}

absl::Status DecoderImpl::Attend(size_t l, const TensorView& query, const TensorView& out) {
  Timed timed(&times_->attention_ns);
  const AttentionSpec& a = spec_->layers[l].attention;
  const int num_parts = dual_chunk_ ? dual_chunk_->num_parts() : plan_->layers[l].parts;
  if (num_parts == 1 && !dual_chunk_) return AttendPart(l, query, 0, out, nullptr);
  for (int part = 0; part < num_parts; ++part) {
    if (dual_chunk_ && part > 0) RETURN_IF_ERROR(TurnQueries(a, query, part));
    RETURN_IF_ERROR(AttendPart(l, query, part, PartOut(part, query.shape[1]),
                               dual_chunk_ ? PartLse(part, a.num_heads) : nullptr));
  }
  return dual_chunk_ ? MergeParts(l, num_parts, out) : GateParts(l, num_parts, out);
}

TensorView DecoderImpl::PartOut(int part, int64_t width) const {
  TensorView view = MatrixIn(work_.parts, rows_, width);
  view.data = view.ptr<float>() + part * rows_ * width;
  return view;
}

float* DecoderImpl::PartLse(int part, int64_t heads) const {
  return work_.parts_lse.as<float>() + part * rows_ * heads;
}

// Rotations add up. Tables differ in scale alone, which is in the queries already.
absl::Status DecoderImpl::TurnQueries(const AttentionSpec& a, const TensorView& query, int part) {
  if (a.rope < 0) return absl::OkStatus();
  const RopeTable& table = spec_->ropes[static_cast<size_t>(a.rope)].variants[0];
  return backend_->Rope({.x = Heads(query, 0, a.num_heads, a.head_dim),
                         .positions = dual_chunk_->turns(part, last_).data(),
                         .inv_freq = resident_->rope_frequencies[static_cast<size_t>(a.rope)][0],
                         .num_frequencies = static_cast<int32_t>(table.inv_freq.size()),
                         .interleaved = table.interleaved});
}

absl::Status DecoderImpl::GateParts(size_t l, int num_parts, const TensorView& out) {
  const AttentionSpec& a = spec_->layers[l].attention;
  kernels::GateAttentionParams gate = {
      .num_parts = num_parts, .gates = gates_, .out = Heads(out, 0, a.num_heads, a.head_dim)};
  for (int part = 0; part < num_parts; ++part) {
    gate.parts[part] = Heads(PartOut(part, out.shape[1]), 0, a.num_heads, a.head_dim);
  }
  return backend_->GateAttention(gate);
}

absl::Status DecoderImpl::MergeParts(size_t l, int num_parts, const TensorView& out) {
  const AttentionSpec& a = spec_->layers[l].attention;
  for (const HeadSegment& segment : plan_->layers[l].segments) {
    const int64_t first = int64_t{segment.query.first} * a.head_dim;
    kernels::MergeAttentionParams merge = {
        .num_parts = num_parts, .out = Heads(out, first, segment.query.count, a.head_dim)};
    for (int part = 0; part < num_parts; ++part) {
      merge.parts[part] =
          Heads(PartOut(part, out.shape[1]), first, segment.query.count, a.head_dim);
      merge.lse[part] = PartLse(part, a.num_heads) + int64_t{rows_} * segment.query.first;
    }
    RETURN_IF_ERROR(backend_->MergeAttention(merge));
  }
  return absl::OkStatus();
}

kernels::AttentionParams DecoderImpl::AttentionOf(size_t l, const HeadSegment& segment,
                                                  const TensorView& query,
                                                  const kernels::KvSelection& selection,
                                                  const TensorView& out) {
  const AttentionSpec& a = spec_->layers[l].attention;
  const TensorView& sinks = spec_->layers[l].weights.sinks;
  const auto g = static_cast<size_t>(segment.group);
  const int64_t first = int64_t{segment.query.first} * a.head_dim;
  const bool means = plan_->patterns[static_cast<size_t>(segment.pattern)]->reads_means();
  const kernels::PagedKv cache =
      HeadsOf(CacheOf(l, segment.group), segment.kv.first - cache_->groups()[g].first_kv_head,
              segment.kv.count);
  return {.q = Heads(query, first, segment.query.count, a.head_dim),
          .cache = means ? kernels::MeansOf(cache) : cache,
          .page_table = page_tables_[g],
          .kv_lens = (means ? whole_pages_ : layout_.kv_lens).data(),
          .generated = layout_.generated.data(),
          .selection = selection,
          .scale = a.scale,
          .softcap = a.softcap,
          .sinks = sinks.data == nullptr ? nullptr : sinks.ptr<float>() + segment.query.first,
          .out = Heads(out, first, segment.query.count, a.head_dim),
          .value_dim = a.latent.kv_rank,
          .counters = &keys_[static_cast<size_t>(segment.pattern)]};
}

absl::Status DecoderImpl::AttendGlobal(size_t l) {
  if (global_->rows().empty()) return absl::OkStatus();
  const LayerSpec& layer = spec_->layers[l];
  const PreparedLayer& w = resident_->weights.layers[l];
  const int64_t kv_width = w.global_kv->rows() / 2;
  const TensorView kv = Rows(work_.qkv, 2 * kv_width);
  RETURN_IF_ERROR(Linear(h_, w.global_kv.get(), w.global_kv_bias, kv));
  RETURN_IF_ERROR(WriteKv(l, Columns(kv, 0, kv_width), Columns(kv, kv_width, kv_width)));
  TensorView input = h_;
  RETURN_IF_ERROR(Gather(&input, global_->rows(), work_.global_input));
  const TensorView query = MatrixIn(work_.global_query, input.shape[0], w.global_q->rows());
  RETURN_IF_ERROR(Linear(input, w.global_q.get(), layer.weights.global_bq, query));
  const TensorView out = MatrixIn(work_.global_attended, query.shape[0], query.shape[1]);
  Timed timed(&times_->attention_ns);
  for (const HeadSegment& segment : plan_->layers[l].segments) {
    const auto p = static_cast<size_t>(segment.pattern);
    RETURN_IF_ERROR(
        backend_->Attention(AttentionOf(l, segment, query, global_->selection(p).View(), out)));
  }
  return absl::OkStatus();
}

absl::Status DecoderImpl::PlaceGlobal(const TensorView& attended) {
  Timed timed(&times_->other_ns);
  for (const GlobalRows::Place& place : global_->places(last_)) {
    const TensorView from =
        MatrixIn(work_.global_attended, std::ssize(global_->rows()), attended.shape[1]);
    RETURN_IF_ERROR(backend_->GatherRows({.x = RowRange(from, place.from, place.count),
                                          .rows = global_->ascending().data(),
                                          .out = RowRange(attended, place.to, place.count)}));
  }
  return absl::OkStatus();
}

absl::Status DecoderImpl::AttendPart(size_t l, const TensorView& query, int part,
                                     const TensorView& out, float* lse) {
  const std::vector<SelectionBuilder>& selections = last_ ? last_selections_ : selections_;
  const LayerPlan& layer = plan_->layers[l];
  const auto* entries = page_lists_.as<int32_t>();
  for (size_t s = 0; s < layer.segments.size(); ++s) {
    const HeadSegment& segment = layer.segments[s];
    const auto p = static_cast<size_t>(segment.pattern);
    kernels::KvSelection selection;
    if (const int32_t r = layer_ranked_[l][s]; r >= 0) {
      const RankedSelection& ranked = (last_ ? last_ranked_ : ranked_)[static_cast<size_t>(r)];
      selection = ranked.View(entries);
      entries += ranked.num_entries();
    } else {
      selection =
          dual_chunk_ ? dual_chunk_->View(selections[p], p, part, last_) : selections[p].View();
    }
    if (!dual_chunk_ && segment.part != part) continue;
    const kernels::AttentionCounters& counters = keys_[static_cast<size_t>(segment.pattern)];
    const kernels::AttentionCounters before = counters;
    kernels::AttentionParams params = AttentionOf(l, segment, query, selection, out);
    if (lse != nullptr) params.lse = lse + int64_t{rows_} * segment.query.first;
    RETURN_IF_ERROR(backend_->Attention(params));
    PatternCounters& total = (*counters_)[static_cast<size_t>(segment.pattern)];
    // Counted once, whatever the parts.
    const int64_t keys_total =
        part > 0 ? 0
                 : segment.query.count * (last_ ? layout_.keys_wanted_rows : layout_.keys_all_rows);
    total.keys_total += keys_total;
    if (observer_ != nullptr) {
      observer_->OnAttention({.layer = static_cast<int32_t>(l),
                              .segment = &segment,
                              .params = &params,
                              .runs = AttendedRuns(last_),
                              .keys_total = keys_total,
                              .counters = {counters.keys_visible - before.keys_visible,
                                           counters.keys_read - before.keys_read}});
    }
  }
  return absl::OkStatus();
}

}  // namespace longstride::model

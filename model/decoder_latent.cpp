// Multi-head latent attention around the attention call: projections into latents before it, out of
// them behind it; and the indexer by which DeepSeek-V3.2 chooses tokens. Source: DeepSeek-V2 (arXiv
// 2405.04434, section 2.1); absorbed form and indexer: model_spec.h.
#include "model/decoder_impl.h"

namespace longstride::model {

using kernels::TensorView;

namespace {

// Channels [first, first + count) of all heads.
TensorView Channels(const TensorView& heads, int64_t first, int64_t count) {
  TensorView view = heads;
  view.data = heads.ptr<float>() + first;
  view.shape[2] = count;
  return view;
}

// The rows of all heads one after the other. REQUIRES: rows lie without gaps.
TensorView AllRows(const TensorView& heads) {
  TensorView view =
      TensorView::Matrix(heads.data, heads.dtype, heads.shape[0] * heads.shape[1], heads.shape[2]);
  view.strides[0] = heads.strides[1];
  view.device = heads.device;
  return view;
}

}  // namespace

absl::Status DecoderImpl::ProjectLatent(size_t l, TensorView* query) {
  const LayerSpec& layer = spec_->layers[l];
  const AttentionSpec& a = layer.attention;
  const LatentAttention& latent = a.latent;
  const PreparedLayer& w = resident_->weights.layers[l];
  const auto norm = [&](const TensorView& x, const TensorView& weight) -> absl::Status {
    Timed timed(&times_->other_ns);
    return RmsNormQk(a, x, weight);
  };
  const TensorView latents = Rows(work_.qkv, w.qkv->rows());
  RETURN_IF_ERROR(Linear(h_, w.qkv.get(), w.qkv_bias, latents));
  TensorView q_input = h_;
  if (latent.q_rank > 0) {
    q_input = Columns(latents, 0, latent.q_rank);
    RETURN_IF_ERROR(norm(q_input, layer.weights.q_norm));
  }
  const TensorView entry = Columns(latents, latent.q_rank, a.head_dim);
  RETURN_IF_ERROR(norm(Columns(entry, 0, latent.kv_rank), layer.weights.k_norm));

  const int64_t q_dim = latent.nope_dim + latent.rope_dim;
  const TensorView q = Rows(work_.unabsorbed, a.num_heads * q_dim);
  RETURN_IF_ERROR(Linear(q_input, w.q_up.get(), {}, q));
  *query = Rows(work_.latent_query, int64_t{a.num_heads} * a.head_dim);
  for (int64_t h = 0; h < a.num_heads; ++h) {
    RETURN_IF_ERROR(Linear(Columns(q, h * q_dim, latent.nope_dim),
                           w.key_up[static_cast<size_t>(h)].get(), {},
                           Columns(*query, h * a.head_dim, latent.kv_rank)));
  }
  const TensorView to_rotate =
      Channels(Heads(*query, 0, a.num_heads, a.head_dim), latent.kv_rank, latent.rope_dim);
  {
    Timed timed(&times_->other_ns);
    const TensorView from =
        AllRows(Channels(Heads(q, 0, a.num_heads, q_dim), latent.nope_dim, latent.rope_dim));
    // A copy.
    RETURN_IF_ERROR(
        backend_->Add({.x = from, .y = from, .a = 0.5f, .b = 0.5f, .out = AllRows(to_rotate)}));
    RETURN_IF_ERROR(RotateHeads(a.rope, to_rotate));
    RETURN_IF_ERROR(RotateHeads(
        a.rope, Channels(Heads(entry, 0, 1, a.head_dim), latent.kv_rank, latent.rope_dim)));
  }
  RETURN_IF_ERROR(WriteKv(l, entry, entry));
  return ProjectIndex(l, q_input);
}

absl::Status DecoderImpl::ProjectIndex(size_t l, const TensorView& q_latents) {
  const Indexer& indexer = spec_->layers[l].attention.indexer;
  const LayerWeights& views = spec_->layers[l].weights;
  const PreparedLayer& w = resident_->weights.layers[l];
  for (const int32_t g : layer_groups_[l]) {
    if (cache_->groups()[static_cast<size_t>(g)].index_dim == 0) continue;
    const TensorView query = Rows(work_.index_query, w.index_q->rows());
    const TensorView both = Rows(work_.index_keys, w.index_keys->rows());
    RETURN_IF_ERROR(Linear(q_latents, w.index_q.get(), {}, query));
    RETURN_IF_ERROR(Linear(h_, w.index_keys.get(), {}, both));
    Timed timed(&times_->other_ns);
    const TensorView keys = Columns(both, 0, indexer.head_dim);
    RETURN_IF_ERROR(backend_->LayerNorm({.x = keys,
                                         .weight = views.index_norm,
                                         .bias = views.index_norm_bias,
                                         .eps = indexer.norm_eps,
                                         .out = keys}));
    const TensorView key_heads = Heads(both, 0, 1, indexer.head_dim);
    RETURN_IF_ERROR(RotateHeads(indexer.rope, key_heads));
    RETURN_IF_ERROR(
        RotateHeads(indexer.rope, Heads(query, 0, indexer.num_heads, indexer.head_dim)));
    RETURN_IF_ERROR(backend_->KvWrite({.k = key_heads,
                                       .v = key_heads,
                                       .cache = cache_->IndexView(g, static_cast<int32_t>(l)),
                                       .page_ids = layout_.page_ids[static_cast<size_t>(g)].data(),
                                       .slots = layout_.slots.data()}));
  }
  return absl::OkStatus();
}

absl::Status DecoderImpl::RankTokens(size_t l, int32_t group, const RankedSelection& ranked,
                                     int32_t* entries) {
  const Indexer& indexer = spec_->layers[l].attention.indexer;
  if (indexer.num_heads == 0) return absl::OkStatus();  // the lists of the layer before are there
  const PreparedLayer& w = resident_->weights.layers[l];
  kernels::SelectTokensParams params = ranked.ToSelectTokens();
  params.q =
      Heads(Rows(work_.index_query, w.index_q->rows()), 0, indexer.num_heads, indexer.head_dim);
  params.weights =
      Columns(Rows(work_.index_keys, w.index_keys->rows()), indexer.head_dim, indexer.num_heads);
  params.cache = cache_->IndexView(group, static_cast<int32_t>(l));
  params.page_table = page_tables_[static_cast<size_t>(group)];
  params.entries = entries;
  return backend_->SelectTokens(params);
}

absl::Status DecoderImpl::ExpandValues(size_t l, TensorView* attended) {
  const AttentionSpec& a = spec_->layers[l].attention;
  const PreparedLayer& w = resident_->weights.layers[l];
  const TensorView values = Rows(work_.unabsorbed, int64_t{a.num_heads} * a.latent.value_dim);
  for (int64_t h = 0; h < a.num_heads; ++h) {
    RETURN_IF_ERROR(Linear(Columns(*attended, h * a.head_dim, a.latent.kv_rank),
                           w.value_up[static_cast<size_t>(h)].get(), {},
                           Columns(values, h * a.latent.value_dim, a.latent.value_dim)));
  }
  *attended = values;
  return absl::OkStatus();
}

}  // namespace longstride::model

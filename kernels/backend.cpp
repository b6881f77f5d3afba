#include "kernels/backend.h"

#include <cstring>
#include <algorithm>

#include "config/base/check.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/make_cuda_backend.h"
#include "kernels/quant.h"
#include "kernels/reference/reference_backend.h"
#include "kernels/shape_check.h"

namespace longstride::kernels {
namespace {

bool IsPowerOfTwo(int64_t n) { return n > 0 && (n & (n - 1)) == 0; }

// A norm's tensors: rank 2 over dim, or rank 3 per head with a weight of dim or heads * dim.
absl::Status CheckNorm(ShapeCheck check, const TensorView& x, const TensorView& weight,
                       const TensorView& bias, const TensorView& out) {
  if (x.rank == 3) {
    check.F32("x", x, {"rows", "heads", "dim"}).Activation("out", out, {"rows", "heads", "dim"});
  } else {
    check.F32("x", x, {"rows", "dim"}).Activation("out", out, {"rows", "dim"});
  }
  const int64_t dim = check.Get("dim");
  const bool per_head = x.rank == 3 && weight.data != nullptr && weight.rank == 1 &&
                        weight.shape[0] == x.shape[1] * dim;
  const Dim width(per_head ? x.shape[1] * dim : dim);
  check.OptionalF32("weight", weight, {width}).OptionalF32("bias", bias, {width});
  return check.status();
}

// means: the cache may be one of MeansOf.
absl::Status CheckCache(ShapeCheck& check, const PagedKv& cache, bool means = false) {
  const int64_t head_bytes =
      KvHeadPageBytes(cache.dtype, cache.head_dim) / kPageTokens * cache.page_entries;
  check
      .That(cache.page_entries == kPageTokens ||
                (means && cache.page_entries == 1 && cache.dtype != KvDType::kQ8 &&
                 cache.dtype != KvDType::kFp8),
            means ? "pages of 64 entries, or of one that is a float" : "pages of 64 entries",
            cache.page_entries)
      .That(cache.num_heads > 0, "a cache with 1 or more heads", cache.num_heads)
      .That(cache.head_dim > 0, "a cache head size of 1 or more", cache.head_dim)
      .That(cache.num_pages >= 0, "a cache of 0 or more pages", cache.num_pages)
      .That(cache.num_heads == 1 || cache.head_stride >= head_bytes,
            "a head stride of at least one head's bytes", cache.head_stride)
      .That(cache.num_pages <= 1 || cache.page_stride >= head_bytes,
            "a page stride of at least one head's bytes", cache.page_stride)
      .That(cache.num_pages == 0 || (cache.k != nullptr && cache.v != nullptr),
            "cache memory for every page", cache.num_pages)
      .That(cache.dtype == KvDType::kFp8 && cache.v != cache.k
                ? cache.k_scale > 0 && cache.v_scale > 0
                : (cache.page_entries == 1 ? cache.k_scale > 0 : cache.k_scale == 1) &&
                      cache.v_scale == 1,
            "scales above 0, and 1 but for an fp8 cache of keys and values", 0);
  return check.status();
}

// The same with the keys' scale in that of the scores: kernels see codes.
template <typename Params>
Params Folded(Params p) {
  p.scale *= p.cache.k_scale;
  p.cache.k_scale = 1.0f;
  return p;
}

absl::Status CheckTile(ShapeCheck& check, const QueryTile& tile, int32_t index, int64_t rows,
                       const PageTable& pages) {
  const bool placed = tile.sequence >= 0 && tile.sequence < pages.num_sequences &&
                      tile.num_rows >= 1 && tile.row_begin >= 0 &&
                      tile.row_begin <= rows - tile.num_rows && tile.first_position >= 0;
  return check.That(placed, "a tile inside the step's rows and sequences", index).status();
}

absl::Status CheckSelection(ShapeCheck& check, const AttentionParams& p) {
  const KvSelection& s = p.selection;
  const int64_t q_heads = p.q.shape[1];
  const int64_t want_heads = s.list_heads == ListHeads::kShared      ? 1
                             : s.list_heads == ListHeads::kPerKvHead ? p.cache.num_heads
                                                                     : q_heads;
  check
      .That(s.num_list_heads == want_heads, "one list head for each head that has lists",
            s.num_list_heads)
      .That(s.entry_tokens == 1 ||
                (IsPowerOfTwo(s.entry_tokens) && s.entry_tokens >= 16 && s.entry_tokens <= 128),
            "entries of 1 token or a power of two from 16 to 128", s.entry_tokens)
      .That(s.query_tile == 1 ||
                (IsPowerOfTwo(s.query_tile) && s.query_tile >= 16 && s.query_tile <= 128),
            "query tiles of 1 row or a power of two from 16 to 128", s.query_tile)
      .That(s.num_tiles >= 0, "0 or more tiles", s.num_tiles)
      .That(s.num_tiles == 0 || (s.tiles != nullptr && s.list_begin != nullptr &&
                                 s.list_count != nullptr && s.edges != nullptr),
            "tiles, lists and edges", s.num_tiles)
      .That(s.num_entries == 0 || s.entries != nullptr, "a list of entries", s.num_entries);
  RETURN_IF_ERROR(check.status());
  for (int32_t h = 0; h < (s.num_tiles == 0 ? 0 : s.num_list_heads); ++h) {
    const EdgeRule& e = s.edges[h];
    check.That(e.window >= 0 && e.sink_tokens >= 0 && e.chunk >= 0, "edge rules of 0 or more", h);
  }
  for (int32_t t = 0; t < s.num_tiles; ++t) {
    const QueryTile& tile = s.tiles[t];
    RETURN_IF_ERROR(CheckTile(check, tile, t, p.q.shape[0], p.page_table));
    check.That(tile.first_position % s.query_tile + tile.num_rows <= s.query_tile,
               "a tile inside one aligned tile", t);
    for (int32_t h = 0; h < s.num_list_heads; ++h) {
      const int64_t i = int64_t{h} * s.num_tiles + t;
      const bool in_range = s.list_count[i] >= 0 && s.list_begin[i] >= 0 &&
                            s.list_begin[i] <= s.num_entries - s.list_count[i];
      check.That(in_range, "a list inside the entries", i);
    }
  }
  return check.status();
}

absl::Status CheckSummaries(ShapeCheck& check, const PageSummaryParams& p) {
  check.That(p.cache.summaries != nullptr || p.num_pages == 0, "a cache with summaries", 0)
      .That(p.num_pages == 0 || (p.page_ids != nullptr && p.counts != nullptr),
            "page ids and counts", p.num_pages);
  for (int32_t i = 0; check.ok() && i < p.num_pages; ++i) {
    check
        .That(p.page_ids[i] >= kNoPage && p.page_ids[i] < p.cache.num_pages,
              "pages inside the cache", p.page_ids[i])
        .That(p.counts[i] >= 1 && p.counts[i] <= kPageTokens, "1 to 64 keys of a page",
              p.counts[i]);
  }
  return check.status();
}

PageSummaryParams SummariesOf(const KvWriteParams& p) {
  return {.cache = p.cache,
          .page_ids = p.summary_pages,
          .counts = p.summary_counts,
          .num_pages = p.num_summaries};
}

absl::Status CheckMoe(ShapeCheck check, const MoeParams& p) {
  check.F32("x", p.x, {"rows", "dim"})
      .F32("router_logits", p.router_logits, {"rows", "experts"})
      .F32("out", p.out, {"rows", "dim"})
      .That(p.top_k >= 1 && p.top_k <= p.router_logits.shape[1],
            "a top_k from 1 to the number of experts", p.top_k);
  RETURN_IF_ERROR(check.status());
  const int64_t experts = check.Get("experts");
  const ExpertGroups& g = p.groups;
  check.OptionalF32("selection_bias", p.selection_bias, {"experts"})
      .That(p.selection_bias.data == nullptr || p.scoring == ExpertScoring::kSigmoid,
            "a selection bias of sigmoid scores only", static_cast<int64_t>(p.scoring))
      .That(g.count >= 1 && experts % g.count == 0, "groups of equal size", g.count)
      .That(g.chosen >= 1 && g.chosen <= g.count, "1 or more of the groups", g.chosen)
      .That(g.best == 1 || (g.best == 2 && p.scoring == ExpertScoring::kSigmoid),
            "groups by their best expert, or by 2 of sigmoid scores", g.best);
  RETURN_IF_ERROR(check.status());
  check.That(g.best <= experts / g.count, "groups of 2 experts or more", experts)
      .That(p.top_k <= experts / g.count * g.chosen, "top_k experts in the chosen groups", p.top_k);
  RETURN_IF_ERROR(check.status());
  check.That(p.gate_up != nullptr && p.down != nullptr, "expert weights", experts);
  for (int64_t e = 0; check.ok() && e < experts; ++e) {
    check.That(p.gate_up[e] != nullptr && p.down[e] != nullptr, "expert weights", e);
    RETURN_IF_ERROR(check.status());
    check.Bind("dim", p.gate_up[e]->cols(), "gate_up")
        .Bind("gate_up rows", p.gate_up[e]->rows(), "gate_up")
        .Bind("dim", p.down[e]->rows(), "down")
        .That(p.gate_up[e]->rows() == 2 * p.down[e]->cols(),
              "gate_up with twice as many rows as down has columns", p.gate_up[e]->rows());
  }
  check.OptionalF32("gate_up_bias", p.gate_up_bias, {"experts", "gate_up rows"})
      .OptionalF32("down_bias", p.down_bias, {"experts", "dim"});
  return check.status();
}

}  // namespace

absl::Status Backend::Embedding(const EmbeddingParams& p) {
  ShapeCheck check("Embedding", device());
  check.Tensor("table", p.table, {"vocab", "dim"}, device())
      .F32("out", p.out, {"rows", "dim"})
      .That(CanDequantize(p.table.dtype), "a float or block dtype for the table",
            static_cast<int64_t>(p.table.dtype))
      .That(check.Get("dim") % BlockElements(p.table.dtype) == 0, "a width of whole blocks",
            check.Get("dim"))
      .That(p.ids != nullptr || p.out.shape[0] == 0, "ids", 0);
  RETURN_IF_ERROR(check.status());
  for (int64_t r = 0; r < p.out.shape[0]; ++r) {
    check.That(p.ids[r] >= 0 && p.ids[r] < p.table.shape[0], "ids inside the table", p.ids[r]);
  }
  RETURN_IF_ERROR(check.status());
  return DoEmbedding(p);
}

absl::Status Backend::RmsNorm(const RmsNormParams& p) {
  RETURN_IF_ERROR(CheckNorm(ShapeCheck("RmsNorm", device()), p.x, p.weight, TensorView(), p.out));
  return DoRmsNorm(p);
}

absl::Status Backend::LayerNorm(const LayerNormParams& p) {
  RETURN_IF_ERROR(CheckNorm(ShapeCheck("LayerNorm", device()), p.x, p.weight, p.bias, p.out));
  if (p.weight.data == nullptr) return absl::InternalError("LayerNorm: weight has no data");
  return DoLayerNorm(p);
}

absl::Status Backend::Linear(const LinearParams& p) {
  if (p.weight == nullptr) return absl::InternalError("Linear: no weight");
  ShapeCheck check("Linear", device());
  check.Bind("N", p.weight->rows(), "weight")
      .Bind("K", p.weight->cols(), "weight")
      .Activation("x", p.x, {"M", "K"})
      .OptionalF32("bias", p.bias, {"N"})
      .Activation("out", p.out, {"M", "N"});
  RETURN_IF_ERROR(check.status());
  return DoLinear(p);
}

absl::Status Backend::Rope(const RopeParams& p) {
  ShapeCheck check("Rope", device());
  check.F32("x", p.x, {"rows", "heads", "head_dim"})
      .That(p.num_frequencies >= 1 && 2 * int64_t{p.num_frequencies} <= check.Get("head_dim"),
            "1 to head_dim / 2 frequencies", p.num_frequencies)
      .That((p.positions != nullptr || p.x.shape[0] == 0) && p.inv_freq != nullptr,
            "positions and frequencies", p.x.shape[0]);
  RETURN_IF_ERROR(check.status());
  return DoRope(p);
}

absl::Status Backend::PositionScale(const PositionScaleParams& p) {
  ShapeCheck check("PositionScale", device());
  check.F32("x", p.x, {"rows", "heads", "head_dim"})
      .That(p.positions != nullptr || p.x.shape[0] == 0, "positions", p.x.shape[0])
      .That(p.floor_scale >= 1.0f, "a floor scale of 1 or more",
            static_cast<int64_t>(p.floor_scale));
  RETURN_IF_ERROR(check.status());
  return DoPositionScale(p);
}

absl::Status Backend::KvWrite(const KvWriteParams& p) {
  ShapeCheck check("KvWrite", device());
  RETURN_IF_ERROR(CheckCache(check, p.cache));
  check.Bind("heads", p.cache.num_heads, "cache")
      .Bind("head_dim", p.cache.head_dim, "cache")
      .F32("k", p.k, {"rows", "heads", "head_dim"})
      .F32("v", p.v, {"rows", "heads", "head_dim"})
      .That((p.page_ids != nullptr && p.slots != nullptr) || p.k.shape[0] == 0,
            "page ids and slots", p.k.shape[0]);
  RETURN_IF_ERROR(check.status());
  for (int64_t r = 0; r < p.k.shape[0]; ++r) {
    if (p.page_ids[r] == kNoPage) continue;
    check.That(p.page_ids[r] >= 0 && p.page_ids[r] < p.cache.num_pages, "pages inside the cache",
               p.page_ids[r]);
    check.That(p.slots[r] >= 0 && p.slots[r] < kPageTokens, "slots inside a page", p.slots[r]);
  }
  if (p.num_summaries == 0) {
    RETURN_IF_ERROR(check.status());
    return DoKvWrite(p);
  }
  const PageSummaryParams summaries = SummariesOf(p);
  RETURN_IF_ERROR(CheckSummaries(check, summaries));
  return DoKvWriteSummarized(p, summaries);
}

absl::Status Backend::DoKvWriteSummarized(const KvWriteParams& p,
                                          const PageSummaryParams& summaries) {
  RETURN_IF_ERROR(DoKvWrite(p));
  return DoSummarizePages(summaries);
}

absl::Status Backend::Attention(const AttentionParams& p) {
  ShapeCheck check("Attention", device());
  RETURN_IF_ERROR(CheckCache(check, p.cache, /*means=*/true));
  check.Bind("head_dim", p.cache.head_dim, "cache")
      .F32("q", p.q, {"rows", "heads", "head_dim"})
      .Activation("out", p.out, {"rows", "heads", "head_dim"})
      .That(check.Get("heads") % p.cache.num_heads == 0, "query heads in whole groups",
            check.Get("heads"))
      .That(p.page_table.num_sequences == 0 ||
                (p.kv_lens != nullptr && p.page_table.pages != nullptr),
            "a page table and lengths", p.page_table.num_sequences);
  RETURN_IF_ERROR(check.status());
  for (int32_t s = 0; s < p.page_table.num_sequences; ++s) {
    check.That(p.kv_lens[s] >= 0 && p.kv_lens[s] <= p.page_table.stride * p.cache.page_entries,
               "lengths inside the page table", p.kv_lens[s]);
  }
  check.That(p.cache.page_entries == kPageTokens || p.selection.entry_tokens == 1,
             "single entries of a cache of means", p.selection.entry_tokens);
  RETURN_IF_ERROR(CheckSelection(check, p));
  return DoAttention(Folded(p));
}

absl::Status Backend::MergeAttention(const MergeAttentionParams& p) {
  ShapeCheck check("MergeAttention", device());
  check.Activation("out", p.out, {"rows", "heads", "head_dim"})
      .That(p.num_parts >= 1 && p.num_parts <= kMaxAttentionParts, "1 to 3 parts", p.num_parts);
  for (int32_t i = 0; check.ok() && i < p.num_parts; ++i) {
    check.F32("part", p.parts[i], {"rows", "heads", "head_dim"})
        .That(p.lse[i] != nullptr || p.out.shape[0] == 0, "log-sum-exps of every part", i);
  }
  RETURN_IF_ERROR(check.status());
  return DoMergeAttention(p);
}

absl::Status Backend::GateAttention(const GateAttentionParams& p) {
  ShapeCheck check("GateAttention", device());
  check.F32("out", p.out, {"rows", "heads", "head_dim"})
      .That(p.num_parts >= 1 && p.num_parts <= kMaxAttentionParts, "1 to 3 parts", p.num_parts)
      .Bind("gates", check.Get("heads") * p.num_parts, "out")
      .F32("gates", p.gates, {"rows", "gates"});
  for (int32_t i = 0; check.ok() && i < p.num_parts; ++i) {
    check.F32("part", p.parts[i], {"rows", "heads", "head_dim"});
  }
  RETURN_IF_ERROR(check.status());
  return DoGateAttention(p);
}

absl::Status Backend::CopyBytes(std::span<const ByteCopy> copies) {
  for (const ByteCopy& copy : copies) {
    std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.bytes));
  }
  return absl::OkStatus();
}

absl::Status Backend::SummarizePages(const PageSummaryParams& p) {
  ShapeCheck check("SummarizePages", device());
  RETURN_IF_ERROR(CheckCache(check, p.cache));
  RETURN_IF_ERROR(CheckSummaries(check, p));
  return DoSummarizePages(p);
}

absl::Status Backend::SelectPages(const SelectPagesParams& p) {
  ShapeCheck check("SelectPages", device());
  RETURN_IF_ERROR(CheckCache(check, p.cache));
  check.Bind("head_dim", p.cache.head_dim, "cache")
      .F32("q", p.q, {"rows", "heads", "head_dim"})
      .That(check.Get("heads") % p.cache.num_heads == 0, "query heads in whole groups",
            check.Get("heads"))
      .That(p.cache.summaries != nullptr || !UsesSummaries(p.score), "a cache with summaries", 0)
      .That(p.list_heads != ListHeads::kShared, "lists per KV head or per query head", 0)
      .That(p.sink_pages >= 0 && p.recent_pages >= 0, "0 or more forced pages", p.sink_pages)
      .That(p.num_tiles == 0 || (p.tiles != nullptr && p.counts != nullptr &&
                                 p.list_begin != nullptr && p.entries != nullptr &&
                                 p.page_table.pages != nullptr),
            "tiles, counts, lists and a page table", p.num_tiles);
  if (UsesSummaries(p.score)) {
    check
        .That(p.score != PageScore::kCompressedKeys || p.cache.segment_means,
              "summaries with segment means", 0)
        .That(
            p.block_pages == 1 ||
                (p.block_pages > 1 && p.score == PageScore::kMean && p.sink_pages == 0 &&
                 p.recent_pages <= 1 && p.list_heads == ListHeads::kPerQHead),
            "blocks of 1 page, or of more ranked by mean keys per query head without other forced "
            "pages",
            p.block_pages);
  }
  if (p.score == PageScore::kAntidiagonal) {
    check.That(p.mass > 0 && p.mass <= 1, "a mass above 0 and at most 1", 0)
        .That(p.stride >= 1 && kPageTokens % p.stride == 0, "a stride that divides a page", p.stride);
  }
  if (p.score == PageScore::kVerticalSlash) {
    check.That(p.mass >= 0 && p.mass <= 1, "a mass from 0 to 1", 0)
        .That(p.segment >= kPageTokens && p.segment % kPageTokens == 0, "a segment of whole pages",
              p.segment)
        .That(p.vertical_pages >= 0 && p.slash_pages >= 0, "0 or more pages", p.vertical_pages);
  }
  if (p.score == PageScore::kPooled) {
    check.That(p.mass > 0 && p.mass <= 1, "a mass above 0 and at most 1", 0)
        .That(p.similarity >= -1 && p.similarity <= 1, "a similarity from -1 to 1", 0);
  }
  check.That(
      p.divergence == 0 || (p.divergence > 0 && p.mass > 0 && p.score == PageScore::kVerticalSlash),
      "a divergence of columns and diagonals by their mass", 0);
  RETURN_IF_ERROR(check.status());
  const int64_t list_heads =
      p.list_heads == ListHeads::kPerKvHead ? p.cache.num_heads : p.q.shape[1];
  for (int32_t t = 0; t < p.num_tiles; ++t) {
    const QueryTile& tile = p.tiles[t];
    RETURN_IF_ERROR(CheckTile(check, tile, t, p.q.shape[0], p.page_table));
    const int64_t pages = CandidatePages(tile);
    check.That(pages <= p.page_table.stride, "candidates inside the page table", t)
        .That(p.max_candidates == 0 || pages <= p.max_candidates, "as many candidates as were said",
              pages);
    if (p.counts[t] == 0) continue;
    check
        .That(
            p.counts[t] >= ForcedPages(tile, p.sink_pages, p.recent_pages) && p.counts[t] <= pages,
            "as many entries as are forced or more, and no more than candidates", p.counts[t])
        .That(UsesSummaries(p.score) || p.counts[t] == pages, "room for all candidates",
              p.counts[t])
        .That(!WeighsSummaries(p.score) || tile.num_rows == 1 || p.counts[t] == pages,
              "tiles of one row", tile.num_rows)
        .That(p.score != PageScore::kAntidiagonal || tile.num_rows == 1 ||
                  tile.first_position % p.stride == 0,
              "tiles that begin at a multiple of the stride", tile.first_position)
        .That(p.score != PageScore::kVerticalSlash || tile.num_rows == 1 ||
                  tile.row_begin >= tile.first_position % p.segment,
              "the rows of a tile's whole segment", tile.row_begin);
    for (int64_t h = 0; h < list_heads; ++h) {
      const int64_t begin = p.list_begin[h * p.num_tiles + t];
      check.That(begin >= 0 && begin <= p.num_entries - p.counts[t], "a list inside the entries",
                 begin);
    }
  }
  RETURN_IF_ERROR(check.status());
  return DoSelectPages(Folded(p));
}

absl::Status Backend::SelectTokens(const SelectTokensParams& p) {
  ShapeCheck check("SelectTokens", device());
  RETURN_IF_ERROR(CheckCache(check, p.cache));
  check.Bind("dim", p.cache.head_dim, "cache")
      .F32("q", p.q, {"rows", "heads", "dim"})
      .F32("weights", p.weights, {"rows", "heads"})
      .That(p.cache.num_heads == 1, "index keys of one head", p.cache.num_heads)
      .That(p.q.rank != 3 || p.q.strides[1] == p.q.shape[2], "heads of a row side by side",
            p.q.strides[1])
      .That(p.num_tiles == 0 ||
                (p.tiles != nullptr && p.counts != nullptr && p.list_begin != nullptr &&
                 p.entries != nullptr && p.page_table.pages != nullptr),
            "tiles, counts, lists and a page table", p.num_tiles);
  RETURN_IF_ERROR(check.status());
  for (int32_t t = 0; t < p.num_tiles; ++t) {
    const QueryTile& tile = p.tiles[t];
    RETURN_IF_ERROR(CheckTile(check, tile, t, p.q.shape[0], p.page_table));
    if (p.counts[t] == 0) continue;
    const int64_t tokens = CandidateTokens(tile);
    check.That(CandidatePages(tile) <= p.page_table.stride, "candidates inside the page table", t)
        .That(p.counts[t] > 0 && p.counts[t] <= tokens, "no more entries than candidates",
              p.counts[t])
        .That(tile.num_rows == 1 || p.counts[t] == tokens,
              "a tile of one row, or one that takes all its candidates", tile.num_rows)
        .That(p.list_begin[t] >= 0 && p.list_begin[t] <= p.num_entries - p.counts[t],
              "a list inside the entries", p.list_begin[t]);
    RETURN_IF_ERROR(check.status());
  }
  return DoSelectTokens(p);
}

absl::Status Backend::GatedActivation(const GatedActivationParams& p) {
  ShapeCheck check("GatedActivation", device());
  check.Activation("gate", p.gate, {"rows", "dim"}).Activation("out", p.out, {"rows", "dim"});
  if (p.up.data != nullptr) {
    check.Activation("up", p.up, {"rows", "dim"})
        .That(p.up.dtype == p.gate.dtype, "a gate and an up of one type",
              static_cast<int64_t>(p.up.dtype));
  } else {
    check.That(p.activation != Activation::kSwigluOai, "an up for this activation", 0);
  }
  check.That(p.gate.dtype == DType::kF32 || p.out.dtype == p.gate.dtype,
             "a result of the gate's type or float32 inputs", static_cast<int64_t>(p.out.dtype));
  RETURN_IF_ERROR(check.status());
  return DoGatedActivation(p);
}

absl::Status Backend::Add(const AddParams& p) {
  ShapeCheck check("Add", device());
  check.F32("x", p.x, {"rows", "dim"})
      .F32("y", p.y, {"rows", "dim"})
      .F32("out", p.out, {"rows", "dim"});
  RETURN_IF_ERROR(check.status());
  return DoAdd(p);
}

absl::Status Backend::Softcap(const SoftcapParams& p) {
  ShapeCheck check("Softcap", device());
  check.F32("x", p.x, {"rows", "dim"});
  RETURN_IF_ERROR(check.status());
  return DoSoftcap(p);
}

absl::Status Backend::GatherRows(const GatherRowsParams& p) {
  ShapeCheck check("GatherRows", device());
  check.F32("x", p.x, {"M", "dim"})
      .F32("out", p.out, {"rows", "dim"})
      .That(p.rows != nullptr || p.out.shape[0] == 0, "rows", p.out.shape[0]);
  RETURN_IF_ERROR(check.status());
  for (int64_t r = 0; r < p.out.shape[0]; ++r) {
    check.That(p.rows[r] >= 0 && p.rows[r] < p.x.shape[0], "rows inside x", p.rows[r]);
  }
  RETURN_IF_ERROR(check.status());
  return DoGatherRows(p);
}

absl::Status Backend::Moe(const MoeParams& p) {
  RETURN_IF_ERROR(CheckMoe(ShapeCheck("Moe", device()), p));
  return DoMoe(p);
}

absl::Status CheckLinearParts(std::span<const TensorView> parts) {
  ShapeCheck check("PrepareLinear");
  check.That(!parts.empty(), "1 or more parts", 0);
  for (const TensorView& part : parts) {
    check.Tensor("part", part, {static_cast<int64_t>(part.shape[0]), "K"}, part.device)
        .That(CanDequantize(part.dtype), "a float or block dtype", static_cast<int64_t>(part.dtype))
        .That(part.shape[1] % BlockElements(part.dtype) == 0, "a width of whole blocks",
              part.shape[1])
        .That(!IsQuantized(part.dtype) || part.strides[0] == part.shape[1],
              "contiguous rows of blocks", part.strides[0]);
  }
  return check.status();
}

absl::StatusOr<std::unique_ptr<LinearWeight>> Backend::PrepareLinear(
    std::span<const TensorView> parts, bool* keeps_views) {
  RETURN_IF_ERROR(CheckLinearParts(parts));
  return DoPrepareLinear(parts, keeps_views);
}

absl::StatusOr<std::span<const SampleResult>> Backend::Sample(const SampleParams& p) {
  ShapeCheck check("Sample", device());
  check.F32("logits", p.logits, {"rows", "vocab"})
      .That(p.num_rows >= 0 && (p.rows != nullptr || p.num_rows == 0), "rows", p.num_rows)
      .That(p.num_edits >= 0 && (p.edits != nullptr || p.num_edits == 0), "edits", p.num_edits);
  RETURN_IF_ERROR(check.status());
  for (int32_t i = 0; i < p.num_rows; ++i) {
    const SampleRow& row = p.rows[i];
    check.That(row.row >= 0 && row.row < p.logits.shape[0], "rows of the logits", row.row)
        .That(row.edits_begin >= 0 && row.num_edits >= 0 &&
                  row.num_edits <= p.num_edits - row.edits_begin,
              "a row's edits among all", row.edits_begin)
        .That(row.top_k >= 0 && row.top_k < p.logits.shape[1], "a top_k below the vocabulary",
              row.top_k)
        .That(row.num_top >= -1 && row.num_top <= std::min<int64_t>(kMaxSampleTop, p.logits.shape[1]),
              "-1 to kMaxSampleTop best tokens", row.num_top);
  }
  for (int32_t i = 0; i < p.num_edits; ++i) {
    check.That(p.edits[i].token >= 0 && p.edits[i].token < p.logits.shape[1],
               "edits of tokens inside the vocabulary", p.edits[i].token);
  }
  RETURN_IF_ERROR(check.status());
  return DoSample(p);
}

absl::StatusOr<DeviceMemory> MemoryOf(BackendKind kind) {
  if (kind == BackendKind::kCuda) return CudaMemory();
  return absl::UnimplementedError("this backend computes in host memory");
}

absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(BackendKind kind,
                                                     const BackendOptions& options) {
  switch (kind) {
    case BackendKind::kReference:
      return MakeReferenceBackend();
    case BackendKind::kCpu:
      return MakeCpuBackend(options);
    case BackendKind::kCuda:
      return MakeCudaBackend(options);
  }
  return absl::InvalidArgumentError("Unknown backend kind.");
}

}  // namespace longstride::kernels

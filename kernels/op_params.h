// Parameters of every numeric op, shared by all backends (reference, cpu, cuda). Plain structs that
// a .cu file may include; shapes stand behind each field. Activations are float32 on the CPU.
// Rows of an activation may be strided (TensorView::strides[0]); the innermost dimension never is.
// What norms, attention and the gated activation write may on a device be bf16, as a weight's
// LinearWeight::input_type asks; Linear takes it in place of float32. What Linear writes may be bf16
// there too, if the gated activation alone reads it.
#pragma once

#include <cstdint>

#include "kernels/kv_selection.h"
#include "kernels/paged_kv.h"
#include "kernels/tensor_view.h"

namespace longstride::kernels {

// out[r, :] = scale * table[ids[r], :]. Ids are in range (checked).
struct EmbeddingParams {
  TensorView table = {};         // [vocab, dim] any weight dtype
  const int32_t* ids = nullptr;  // [rows], host memory
  float scale = 1.0f;
  TensorView out = {};  // [rows, dim]
};

// out[r, c] = x[r, c] * rsqrt(mean_c(x[r, :]^2) + eps) * (weight[c] + weight_offset); the mean and
// the product in float32. Without a weight: plain normalisation. In place allowed. A rank-3 view
// [rows, heads, dim] is normalised over dim (per-head q/k norm); there, a weight of heads*dim
// elements is indexed by head too.
struct RmsNormParams {
  TensorView x = {};       // [rows, dim] or [rows, heads, dim]
  TensorView weight = {};  // [dim] or [heads*dim] f32, or data == nullptr
  float weight_offset = 0.0f;
  float eps = 1e-6f;
  TensorView out = {};
};

// out = (x - mean) * rsqrt(var + eps) * weight + bias, over the last dimension, float32.
struct LayerNormParams {
  TensorView x = {};       // [rows, dim] or [rows, heads, dim]
  TensorView weight = {};  // [dim] or [heads*dim] f32
  TensorView bias = {};    // same, or data == nullptr
  float eps = 1e-5f;
  TensorView out = {};
};

// A weight matrix in whatever form a backend computes with; made by Backend::PrepareLinear.
class LinearWeight;

// out[m, n] = sum_k x[m, k] * w[n, k] + bias[n]   (+ out[m, n] if accumulate). The cpu backend
// rounds x to int8 per 32 elements where the weight is quantised (as ggml does).
// A row's bits do not depend on M, on the other rows or on the number of threads.
struct LinearParams {
  TensorView x = {};  // [M, K]
  const LinearWeight* weight = nullptr;
  TensorView bias = {};  // [N] f32, or data == nullptr
  bool accumulate = false;
  TensorView out = {};  // [M, N]
};

// Rotates pairs of the first 2*num_frequencies channels of every head of x, in place:
// angle = positions[r] * inv_freq[f];  (a, b) -> scale * (a cos - b sin, a sin + b cos).
// Half-split pairs channel f with f + num_frequencies; interleaved pairs 2f with 2f + 1.
// Source: RoFormer (arXiv 2104.09864); scale is YaRN's attention factor (arXiv 2309.00071).
struct RopeParams {
  TensorView x = {};                   // [rows, heads, head_dim]
  const int32_t* positions = nullptr;  // [rows]
  const float* inv_freq = nullptr;     // [num_frequencies], radians per position
  int32_t num_frequencies = 0;
  bool interleaved = false;
  float scale = 1.0f;
};

// x[r, ...] *= 1 + attn_scale * log(1 + floor((positions[r] + 1) / floor_scale)). Llama 4's
// temperature for layers without RoPE.
struct PositionScaleParams {
  TensorView x = {};                   // [rows, heads, head_dim], in place
  const int32_t* positions = nullptr;  // [rows]
  float attn_scale = 0.1f;
  float floor_scale = 8192.0f;
};

// Stores rows of k and v at (page, slot) of the cache, converting to its dtype (kFp8: after
// division by the cache's k_scale and v_scale). Rows of kNoPage are padding: nothing is stored.
// Where the cache's v is its k, so are the values of this call its keys.
struct KvWriteParams {
  TensorView k = {};  // [rows, KV heads, head_dim]
  TensorView v = {};  // [rows, KV heads, head_dim]
  PagedKv cache = {};
  const int32_t* page_ids = nullptr;  // [rows] physical page of each row, or kNoPage
  const int32_t* slots = nullptr;     // [rows] position mod kPageTokens
  // Pages whose summaries are written then, as PageSummaryParams says.
  const int32_t* summary_pages = nullptr;   // [num_summaries]
  const int32_t* summary_counts = nullptr;  // [num_summaries]
  int32_t num_summaries = 0;
};

// Writes the summaries of pages that keys were written to, from the first counts[i] slots of page
// page_ids[i] as they are stored: a page's summary depends on its keys alone, never on how they came.
// A mean (of keys; of values where the cache has that) is a float32 sum over ascending slots,
// divided and then rounded once.
struct PageSummaryParams {
  PagedKv cache = {};                 // with summaries
  const int32_t* page_ids = nullptr;  // [num_pages], distinct; kNoPage: padding
  const int32_t* counts = nullptr;    // [num_pages] 1 .. kPageTokens
  int32_t num_pages = 0;
};

enum class PageScore : uint8_t {
  // sum_d max(q_d * min_d, q_d * max_d): no key of the page has a larger product with q. Source:
  // Quest (arXiv 2406.10774).
  kBound,
  kMean,  // q · mean
  // The share of the tile's attention that falls on the page by the sums along the antidiagonals of
  // squares of `stride` queries and keys: with the sequence's positions in groups of `stride`, and
  // for the groups n of the tile's rows and m <= n,
  //   s[n, m] = scale / stride * sum_{t < stride} q[n*stride + stride-1-t] · k[m*stride + t]
  // is softmaxed over m and summed over n and the page's m; the page's share of all of that. Queries
  // and keys beyond the tile's last row count as zero. Source: XAttention (arXiv 2503.16428).
  kAntidiagonal,
  // Columns and diagonals of the attention of the last kProbeRows rows of the tile's segment: with
  // p[i, j] the softmax of scale * q_i · k_j over j <= i, a mean over the query heads of h,
  //   column j weighs sum_i p[i, j], diagonal d weighs sum_i p[i, i - d].
  // A page weighs as its heaviest column, a run [64D, 64D + 63] of diagonals as its heaviest one.
  // Source: the vertical-slash heads of MInference (arXiv 2407.02490).
  kVerticalSlash,
  // The share of the tile's attention that falls on the page as means see it: with q̄ the mean of the
  // tile's rows and k̄ that of the page's keys up to the tile's last row, the softmax of scale * q̄ · k̄ over
  // the pages that are alike, a mean over the query heads of h. Vectors x are alike if the mean cosine of
  // all their pairs, each with itself among them, |mean of x / |x||^2, is above `similarity`. Source:
  // SpargeAttn (arXiv 2502.18137).
  kPooled,
  // The share of the row's attention to compressed keys, of which number c is the mean of the 32
  // keys from 16c on: with p[h, c] the softmax of scale * q_h · compressed key c over those whose
  // keys the row at position i all sees (c < floor((i - 15) / 16)) and P[c] the sum of p over the
  // query heads of the list, page J weighs as the largest P of 4J - 1 to 4J + 3, the compressed keys
  // that reach into it. Source: InfLLM-v2 (arXiv 2509.24663).
  kCompressedKeys,
  // The share of the row's attention to pages' means: with p[h, J] the softmax of scale * q_h · mean
  // key of J over the pages whose keys the row at position i all sees (J < floor((i + 1) / 64)), the
  // sum of p over the query heads of the list. Source: NSA (arXiv 2502.11089) as
  // github.com/fla-org/native-sparse-attention has it.
  kMeanShares,
};
inline constexpr int32_t kProbeRows = 64;

// Whether pages are ranked by their summaries, or else by their keys.
constexpr bool UsesSummaries(PageScore score) {
  return score == PageScore::kBound || score == PageScore::kMean ||
         score == PageScore::kCompressedKeys || score == PageScore::kMeanShares;
}
// Whether a page's score is of a softmax of one row: pages are then weighed against each other, and
// no tile of several rows chooses.
constexpr bool WeighsSummaries(PageScore score) {
  return score == PageScore::kCompressedKeys || score == PageScore::kMeanShares;
}

// Makes a selection's lists of pages from queries. The candidates of a tile are the pages 0 to P of
// its sequence, P that of the tile's last row. List (list head h, tile t) takes counts[t] of them:
// the first `sink_pages`, the pages of the tile's rows and the last `recent_pages` in any case, then
// the best by score, of equals the lower page. With q̄ the mean over the tile's rows (float32, rows
// ascending), a page's score is the largest PageScore of q̄ over the query heads of h; heads whose
// score is not a number do not count. Writes the list, ascending, to entries[list_begin[h, t]..].
// The result depends on the tile's rows and on its sequence's pages alone.
//
// With block_pages above 1 pages are ranked in blocks of so many, from page 0 on: each counts as the
// mean of its block's scores, and those of the block of the tile's first row, or later, come first.
// Source: MoBA (arXiv 2502.13189), whose blocks' mean keys are the mean of their pages'.
//
// kCompressedKeys and kMeanShares take tiles of one row, and others that take all their candidates.
//
// kAntidiagonal is not of q̄ but of the rows, a mean over the query heads of h, and goes by `mass`
// instead of by counts, which then are P + 1: beside what is taken anyway the list takes the best
// pages while the shares of all that it took sum to less than `mass`, and ends in kNoEntry from there
// on. Tiles of one row take all their candidates.
//
// kVerticalSlash is of the rows too, and its counts are P + 1. A sequence's tiles in [k * segment,
// (k + 1) * segment) are a segment; the last rows up to the last tile's end probe for all, and q has
// the rows from the segment's start on, named by tiles or not. Tiles of one row are in none and take
// all. Beside what is taken anyway a list takes the `vertical_pages` pages and what the tile's rows
// reach along the `slash_pages` runs of diagonals that weigh most, of equals the lower, and ends in
// kNoEntry. With a `mass`, both are as many, or more: floor(n / 64) + 1, n the fewest columns
// (diagonals) that have that share of their weights. With a `divergence` too, lists are made in another way
// where means tell what columns do: with q̄ the mean of the rows that probe, over the pages up to theirs,
// the square root of the Jensen-Shannon divergence (natural logarithm) between the softmax of
// scale * q̄ · k̄ and the columns' weights summed by page, both means over the query heads of h, is below it.
// Such a list takes as many pages of columns and diagonals as were given, and then, of the pages by the
// softmax of its own tile's scale * q̄ · k̄, the best while the shares of all that it took sum to less than
// `mass`. Source: FlexPrefill (arXiv 2502.20766).
//
// kPooled goes by `mass`, too, and its counts are P + 1. A list takes all candidates where a tile has one
// row or rows that are not alike (of one of the query heads of h). Else, beside what is taken anyway,
// all pages whose keys are not alike, and of those that are the best while their shares sum to `mass` or
// less, but one in any case; kNoEntry from there on.
struct SelectPagesParams {
  TensorView q = {};     // [rows, query heads, head_dim]
  // With summaries if UsesSummaries(score), which are read unless a tile takes all its candidates.
  PagedKv cache = {};
  PageTable page_table = {};
  PageScore score = PageScore::kBound;
  ListHeads list_heads = ListHeads::kPerKvHead;  // or kPerQHead
  int32_t sink_pages = 0;
  int32_t recent_pages = 1;
  int32_t block_pages = 1;  // more: kMean, lists per query head, no sinks, 1 recent page
  // Unused with summaries, but for `scale` where WeighsSummaries. kAntidiagonal: 0 < `mass` <= 1, tiles
  // begin at multiples of `stride`, which divides kPageTokens. kVerticalSlash: `segment` is whole tiles.
  float scale = 0.0f;  // of the attention that is estimated
  float mass = 0.0f;
  int32_t stride = 0;
  int32_t segment = 0;
  int32_t vertical_pages = 0;
  int32_t slash_pages = 0;
  float divergence = 0.0f;  // kVerticalSlash with a mass
  float similarity = 0.0f;  // kPooled: -1 to 1
  int32_t num_tiles = 0;
  const QueryTile* tiles = nullptr;     // [num_tiles] rows of q
  // [num_tiles] at most P + 1, at least what is taken anyway; 0: the tile gets no list.
  const int32_t* counts = nullptr;
  const int64_t* list_begin = nullptr;  // [list heads, num_tiles]
  int32_t* entries = nullptr;           // [num_entries], in the backend's memory
  int64_t num_entries = 0;
  // No tile has more candidates; 0: not known. Backends then size their memory by this bound.
  int64_t max_candidates = 0;
};

// Pages of a tile's candidates, and how many of them any list takes whatever its scores.
constexpr int64_t CandidatePages(const QueryTile& tile) {
  return (int64_t{tile.first_position} + tile.num_rows - 1) / kPageTokens + 1;
}
constexpr int64_t ForcedPages(const QueryTile& tile, int64_t sink_pages, int64_t recent_pages) {
  const int64_t all = CandidatePages(tile);
  const int64_t own = all - tile.first_position / kPageTokens;
  const int64_t tail = recent_pages > own ? recent_pages : own;
  return sink_pages + tail < all ? sink_pages + tail : all;
}

// Makes a selection's lists of single tokens from an indexer's queries. For the row at position i
// with query heads h, the key at j <= i scores
//   I(i, j) = sum_h weights[i, h] * max(0, q[i, h]·k[j])          (float32; weights may be
//   negative)
// List t takes counts[t] of its candidates, the keys up to its tile's last row: the best, of equals
// the lower position; a score that is not a number is worse than every other. Tiles have one row,
// or take all their candidates. Writes the list, ascending, to entries[list_begin[t]..]; all heads
// of the attention that reads it share it. The result depends on the tile's row and on its
// sequence's keys alone. Source: the lightning indexer of DeepSeek-V3.2 (github.com/deepseek-ai/
// DeepSeek-V3.2-Exp), whose further factors are positive and the same for all keys.
struct SelectTokensParams {
  TensorView q = {};        // [rows, heads, dim], the heads of a row side by side
  TensorView weights = {};  // [rows, heads]
  PagedKv cache = {};       // index keys as keys (and values) of one KV head of `dim` channels
  PageTable page_table = {};
  int32_t num_tiles = 0;
  const QueryTile* tiles = nullptr;     // [num_tiles] rows of q
  const int32_t* counts = nullptr;      // [num_tiles]; 0: the tile gets no list
  const int64_t* list_begin = nullptr;  // [num_tiles]
  int32_t* entries = nullptr;           // [num_entries], in the backend's memory
  int64_t num_entries = 0;
};

// Keys that a tile's last row sees.
constexpr int64_t CandidateTokens(const QueryTile& tile) {
  return int64_t{tile.first_position} + tile.num_rows;
}

// What an attention call did; the sparsity really achieved is measured from these.
struct AttentionCounters {
  int64_t keys_visible = 0;  // (query row, query head, key) triples the selection allows
  int64_t keys_read = 0;     // triples whose score was computed
};

// For query row r at position i, head h (KV head g = h / (query heads / KV heads)):
//   s_j = scale * q[r,h]·k[j,g], soft-capped: softcap * tanh(s_j / softcap) if softcap > 0
//   m = max(max_j s_j, sink_h), p_j = exp(s_j - m) / (sum_j exp(s_j - m) + exp(sink_h - m))
//   out[r,h] = sum_j p_j v[j,g]
// over the keys j visible to (r, h) by `selection`. Without sinks the sink terms are absent. Where
// nothing is visible out is a zero row and lse -inf. lse[r,h] = log(sum_j exp s_j), sinks left out,
// natural log, float32, so that branches merge. Values stored in the cache beyond a sequence's
// length are never read as numbers (they may be NaN).
// Rows of q that no tile covers are not written. A visible key whose page is kNoPage or outside the
// cache is INTERNAL.
// Keys are reduced in ascending segments of kAttentionSegment absolute positions, each with an own
// running maximum, merged in order: the same bits however a prompt was cut into chunks.
struct AttentionParams {
  TensorView q = {};  // [rows, query heads, head_dim]
  PagedKv cache = {};
  PageTable page_table = {};
  // [num_sequences] keys that exist, this step's included; of a cache of means its entries, which
  // `selection` lists one by one.
  const int32_t* kv_lens = nullptr;
  // [num_sequences]: 1 where the sequence's rows are generated tokens, 0 where they are a prompt's;
  // null: all are a prompt's. A backend may compute the two with different kernels: a row's bits
  // depend on its own class only, never on how many rows the step has.
  const uint8_t* generated = nullptr;
  KvSelection selection = {};
  float scale = 1.0f;
  float softcap = 0.0f;
  const float* sinks = nullptr;           // [query heads], or nullptr
  TensorView out = {};                    // [rows, query heads, head_dim]
  float* lse = nullptr;                   // [rows, query heads], or nullptr
  // Channels of a value that are asked for, the first of them; 0: all. Those of out behind them are
  // the values' too, or 0, as the backend likes.
  int32_t value_dim = 0;
  // Added to, or nullptr. What lists with padding show that lie on a device is added by EndStep: there the
  // counters must live until then.
  AttentionCounters* counters = nullptr;
};
inline constexpr int32_t kAttentionSegment = 1024;

enum class Activation : uint8_t {
  kSilu,       // x * sigmoid(x)
  kGeluTanh,   // 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
  kGelu,       // 0.5 x (1 + erf(x / sqrt 2))
  kSwigluOai,  // gpt-oss: g = min(gate, limit), u = clamp(up, ±limit): (u + 1) * g * sigmoid(1.702
               // g)
};

// out = activation(gate) * up, elementwise (kSwigluOai as above); in place of the gate allowed
// where both have one type. Without an up: activation(gate), but for kSwigluOai, which needs one.
// Float32 inside.
struct GatedActivationParams {
  TensorView gate = {};  // [rows, dim]
  TensorView up = {};    // [rows, dim], or data == nullptr
  Activation activation = Activation::kSilu;
  float limit = 7.0f;
  TensorView out = {};  // [rows, dim]
};

// out = a * x + b * y; in place allowed.
struct AddParams {
  TensorView x = {};  // [rows, dim]
  TensorView y = {};  // [rows, dim]
  float a = 1.0f;
  float b = 1.0f;
  TensorView out = {};  // [rows, dim]
};

// x = softcap * tanh(scale * x / softcap), or scale * x without a soft-cap; in place.
struct SoftcapParams {
  TensorView x = {};  // [rows, dim]
  float scale = 1.0f;
  float softcap = 0.0f;
};

// out[r, :] = x[rows[r], :].
struct GatherRowsParams {
  TensorView x = {};              // [M, dim]
  const int32_t* rows = nullptr;  // [out rows], host memory
  TensorView out = {};            // [out rows, dim]
};

enum class ExpertScoring : uint8_t {
  kSoftmaxOfTopK,    // softmax over the chosen logits (gpt-oss, Mixtral)
  kSoftmaxThenTopK,  // softmax over all experts, then choose; renormalised if `renormalize`
  kSigmoidInput,     // Llama 4: sigmoid(logit) scales the expert's input
  kSigmoid,  // DeepSeek-V3: sigmoid(logit); divided by the chosen ones' sum if `renormalize`
};

// Which experts a row may choose: those of its best groups. Experts are in groups of consecutive
// ones, of equal size. Sources: DeepSeek-V2 (arXiv 2405.04434), DeepSeek-V3 (arXiv 2412.19437).
struct ExpertGroups {
  int32_t count = 1;   // divides the number of experts
  int32_t chosen = 1;  // groups of a row, 1 .. count; of equals the lower
  int32_t best = 1;    // a group scores as the sum of its 1 or (kSigmoid only) 2 best experts
};

// out[r, :] (+)= sum over the top_k experts e of row r: weight(r, e) * expert_e(x[r, :]).
// An expert is down(activation(gate(x), up(x))) with optional biases. The experts are the best by
// logit, for kSigmoid by sigmoid(logit) + selection_bias, which weights do not have. Ties: lower
// expert first. Weights (not kSigmoidInput's) are multiplied by weight_scale in the end.
struct MoeParams {
  TensorView x = {};              // [rows, dim]
  TensorView router_logits = {};  // [rows, experts]
  int32_t top_k = 1;
  ExpertScoring scoring = ExpertScoring::kSoftmaxOfTopK;
  bool renormalize = true;
  TensorView selection_bias = {};  // [experts] f32, or data == nullptr; kSigmoid only
  ExpertGroups groups = {};        // with top_k experts or more in the chosen ones
  float weight_scale = 1.0f;
  const LinearWeight* const* gate_up = nullptr;  // [experts], each [2*ffn, dim]: gate rows, then up
  const LinearWeight* const* down = nullptr;     // [experts], each [dim, ffn]
  TensorView gate_up_bias = {};                  // [experts, 2*ffn] f32, or data == nullptr
  TensorView down_bias = {};                     // [experts, dim] f32, or data == nullptr
  Activation activation = Activation::kSilu;
  float limit = 7.0f;
  bool accumulate = false;
  TensorView out = {};  // [rows, dim]
};

// Weights of tokens are integers, exp((logit - max) / temperature) in units of 2^-44, so that their
// sums are the same in whatever order, on whatever device.
inline constexpr int32_t kWeightBits = 44;

// What happens to one token's logit before the choice, in this order; never to a logit of -inf.
struct LogitEdit {
  int32_t token = 0;
  int32_t penalised = 0;  // 1: the repetition penalty applies
  int32_t generated = 0;  // for the frequency penalty and, where more than 0, the presence penalty
  float bias = 0.0f;
  int32_t banned = 0;  // 1: -inf in the end
};

// One token to choose; the definition is model/sampler.h's.
struct SampleRow {
  int32_t row = 0;                   // of the logits
  int32_t edits_begin = 0;           // its edits, one for a token at most
  int32_t num_edits = 0;
  float inverse_temperature = 0.0f;  // 0: greedy
  float repetition_penalty = 1.0f;
  float frequency_penalty = 0.0f;
  float presence_penalty = 0.0f;
  int32_t top_k = 0;  // 0: off
  float top_p = 1.0f;
  float min_p = 0.0f;
  uint64_t uniform = 0;  // 53 random bits
  int32_t num_top = -1;  // how many of the best unedited logits to report; -1: no sums either
};

inline constexpr int32_t kMaxSampleTop = 32;

struct SampleResult {
  int32_t token = 0;
  int32_t valid = 0;    // 0: NaN or +inf in the logits, or no token is left; the rest is meaningless
  float logit = 0.0f;   // the token's unedited one
  float max = 0.0f;     // of the unedited logits
  uint64_t mass = 0;    // sum of the unedited logits' weights at temperature 1, if num_top >= 0
  int32_t top_tokens[kMaxSampleTop] = {};  // the first num_top, in no order
  float top_logits[kMaxSampleTop] = {};
};

// Chooses tokens. Rows of `logits` that `rows` name (one each at most) hold edited logits afterwards.
struct SampleParams {
  TensorView logits = {};           // [M, vocab]
  const SampleRow* rows = nullptr;  // [num_rows], host memory
  int32_t num_rows = 0;
  const LogitEdit* edits = nullptr;  // [num_edits], host memory
  int32_t num_edits = 0;
};

}  // namespace longstride::kernels

// The inner loops that exist once per instruction set, behind one table. Everything around them
// (threads, selections, tiling) is ordinary code.
//
// Common words: a *panel* is 16 consecutive rows of a weight matrix, interleaved so that one vector
// holds the same columns of many rows. A *block* is 32 consecutive columns.
#pragma once

#include <cstdint>

#include "kernels/op_params.h"
#include "kernels/tensor_view.h"

namespace longstride::kernels::cpu {

inline constexpr int kPanelRows = 16;
inline constexpr int kBlockCols = 32;
inline constexpr int kKeyPanel = 16;  // keys whose scores are computed together
inline constexpr int kKeyBlock = 64;  // keys of one step of the online softmax

// Rows of activations rounded to int8, one scale per block. Row m of each array starts at
// m * its stride. scale = max|x| / 127, code = round to nearest even of x / scale.
struct QuantizedRows {
  const int8_t* codes = nullptr;       // [M, cols]
  const float* scales = nullptr;       // [M, cols / 32]
  const int32_t* sums16 = nullptr;     // [M, cols / 16] sums of 16 codes
  const float* scaled_sums = nullptr;  // [M, cols / 32] scale * sum of the block's 32 codes
  int64_t cols = 0;
};

// How packed_weight.h's bytes of one panel are read; see PackedLayout there.
struct QuantPanelArgs {
  DType dtype = DType::kQ8_0;
  const uint8_t* panel = nullptr;  // one panel, cols / 32 blocks
  QuantizedRows x;
  int64_t num_rows = 0;  // M
  // result[m * 16 + r], float32; overwritten.
  float* result = nullptr;
  // Working memory, kPanelScratchBytes, 64-byte aligned.
  void* scratch = nullptr;
};

// result[m, r] = sum_k x[m, k] * w[r, k], k ascending, one fused multiply-add each.
struct FloatPanelArgs {
  DType dtype = DType::kF32;    // f32, f16, bf16 or fp8_128
  const void* panel = nullptr;  // [cols][16]; fp8_128: [cols / 128] x { float scales[16], codes [128][16] }
  const float* x = nullptr;     // [M, cols]
  int64_t x_stride = 0;
  int64_t cols = 0;
  int64_t num_rows = 0;
  float* result = nullptr;  // [M, 16]
  void* scratch = nullptr;
};

// Up to 64 rows of K or V of one head. A null pointer is a key that does not exist: its values are
// zeros, whatever memory holds.
struct KvRows {
  const void* rows[kKeyBlock];
  float scales[kKeyBlock];  // kQ8 and kFp8 only
  KvDType dtype;
  int32_t head_dim;
  uint32_t panels;  // bit p: keys [16p, 16p + 16) are wanted
  // Memory that will be wanted next, fetched in passing; null: none.
  const char* next;
  int64_t next_bytes;
};

// The state of an online softmax of `rows` packed query rows over one segment.
struct SoftmaxState {
  float* max;  // [rows]
  float* sum;  // [rows]
  float* acc;  // [rows, padded_dim]
};

struct AttentionTile {
  int32_t rows = 0;  // packed query rows
  int32_t head_dim = 0;
  int32_t padded_dim = 0;  // head_dim rounded up to 16
  float scale = 1.0f;
  float softcap = 0.0f;
  const float* q = nullptr;       // [rows, head_dim]
  const float* keys = nullptr;    // [4][head_dim][16]
  const float* values = nullptr;  // [padded_dim / 16][64][16]
  float* scores = nullptr;        // [rows, 64]
  // Bit k: row sees key k. Null: every row sees all 64.
  const uint64_t* masks = nullptr;
  SoftmaxState state;
  int64_t keys_read = 0;  // added to: (row, key) scores computed
};

// scores[p] = the largest score of `heads` queries for the page whose summary is summaries[p]; see
// SelectPagesParams.
struct PageScoreArgs {
  KvDType dtype = KvDType::kF32;  // of the cache
  PageScore kind = PageScore::kBound;
  const float* q = nullptr;  // [heads, dim]
  int32_t heads = 0;
  int64_t dim = 0;
  const void* const* summaries = nullptr;  // [num_pages]
  int64_t num_pages = 0;
  float* scores = nullptr;  // [num_pages]
};

// scores[r, m] = scale * q[r]·key group m, for the groups of `fold` keys of one head of a page.
struct FoldScoreArgs {
  KvDType dtype = KvDType::kF32;
  const void* keys = nullptr;  // as they lie in the cache
  int64_t count = 0;           // keys that exist; the others count as zero
  int64_t dim = 0;
  int64_t fold = 1;
  const float* q = nullptr;  // [rows, fold * dim]
  int64_t rows = 0;
  float scale = 1.0f;
  float* scores = nullptr;  // [rows, 64 / fold]
  int64_t scores_stride = 0;
  float* scratch = nullptr;  // [64 * dim]
};

struct CpuKernels {
  const char* name;
  int tile_rows;  // packed query rows of one register tile

  void (*quantize_row)(const float* x, int64_t cols, int8_t* codes, float* scales, int32_t* sums16,
                       float* scaled_sums);
  void (*quant_panel)(const QuantPanelArgs& args);
  void (*float_panel)(const FloatPanelArgs& args);

  // K of up to 64 rows, transposed: out[4][head_dim][16]. V: out[padded_dim / 16][64][16].
  void (*load_keys)(const KvRows& rows, float* out);
  void (*load_values)(const KvRows& rows, float* out);
  // One step: scores of the block, online softmax, accumulation of the values.
  void (*attend_block)(AttentionTile& tile);
  // The same, to the bit, straight from the cache's rows for at most `few_rows` packed rows: a
  // panel that is used once is not worth writing. `k` and `v` name the same keys, one at least.
  // Null where an instruction set has no such path.
  int few_rows;
  void (*attend_few)(AttentionTile& tile, const KvRows& k, const KvRows& v);
  // into (max, sum, acc) of `rows` rows, merges `from`, which covers later positions.
  void (*merge_states)(int32_t rows, int32_t padded_dim, const SoftmaxState& from,
                       const SoftmaxState& into);

  // The summary of the first `count` keys of one head's page; see PageSummaryParams.
  void (*summarize_keys)(KvDType dtype, const void* keys, int64_t count, int64_t dim,
                         bool segment_means, void* out);
  void (*score_pages)(const PageScoreArgs& args);
  void (*expand_keys)(const FoldScoreArgs& args);  // keys to float32 in scratch alone
  void (*fold_scores)(const FoldScoreArgs& args);

  void (*rms_norm)(const float* x, const float* weight, float offset, float eps, int64_t n,
                   float* out);
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, int64_t n,
                     float* out);
  // up: null for none.
  void (*gated_activation)(Activation activation, float limit, const float* gate, const float* up,
                           int64_t n, float* out);
  void (*add)(float a, const float* x, float b, const float* y, int64_t n, float* out);
  void (*softcap)(float* x, float scale, float softcap, int64_t n);
  // One head: pairs (first[f * step], second[f * step]); cos and sin carry the scale.
  void (*rotate)(float* first, float* second, int64_t step, const float* cos, const float* sin,
                 int64_t n);
  // One row of one head into a cache; `scale`: written for kQ8, what x is divided by for kFp8.
  void (*store_kv)(KvDType dtype, const float* x, int64_t n, void* out, float* scale);
  // The approximations that the softmax and the activations are made of, for their tests.
  void (*exp)(const float* x, int64_t n, float* out);
  void (*tanh)(const float* x, int64_t n, float* out);
};

// Null where the build's processor family lacks them.
const CpuKernels* PortableKernels();
const CpuKernels* Avx2Kernels();
const CpuKernels* AvxVnniKernels();
const CpuKernels* Avx512VnniKernels();

// Bytes of FloatPanelArgs::scratch and QuantPanelArgs::scratch.
inline constexpr int64_t kPanelScratchBytes = 160 * 1024;

}  // namespace longstride::kernels::cpu

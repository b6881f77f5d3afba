// The paged key/value cache as kernels see it: one layer of one cache group. Plain structs that a
// .cu file may include.
//
// Words: a *page* holds the keys and values of kPageTokens consecutive positions of one sequence; a
// *cache group* is a set of (layer, KV head) pairs with one retention rule. All layers of a group
// share page ids, so one page table per (sequence, group) serves them all.
#pragma once

#include <cstdint>

namespace longstride::kernels {

inline constexpr int32_t kPageTokens = 64;
// Marks a page that the sequence does not hold (freed behind a window, or not yet allocated).
inline constexpr int32_t kNoPage = -1;

// kQ8: per (token, head) row of head_dim int8 codes, followed after all kPageTokens rows of the
// head by kPageTokens float32 scales; value = code * scale.
// kFp8: e4m3 codes (quant.h), one byte a value, times the layer's scale (PagedKv); larger
// magnitudes than 448 times the scale are stored as that.
enum class KvDType : uint8_t { kF32, kF16, kBF16, kQ8, kFp8 };

constexpr const char* KvDTypeName(KvDType t) {
  switch (t) {
    case KvDType::kF32: return "f32";
    case KvDType::kF16: return "f16";
    case KvDType::kBF16: return "bf16";
    case KvDType::kQ8: return "q8";
    case KvDType::kFp8:
      return "fp8";
  }
  return "?";
}

// Bytes that one head of one page takes for K (V takes the same).
constexpr int64_t KvHeadPageBytes(KvDType t, int32_t head_dim) {
  switch (t) {
    case KvDType::kF32: return int64_t{4} * kPageTokens * head_dim;
    case KvDType::kF16:
    case KvDType::kBF16: return int64_t{2} * kPageTokens * head_dim;
    case KvDType::kQ8: return int64_t{kPageTokens} * head_dim + int64_t{4} * kPageTokens;
    case KvDType::kFp8:
      return int64_t{kPageTokens} * head_dim;
  }
  return 0;
}

// The summary of one page and KV head, by which selectors rank pages: kSummaryRows rows of head_dim
// values, each channel's minimum, maximum and mean over the page's keys as they are stored. Rows
// are of the cache's type, float32 where that is of 8 bits: minimum and maximum are exact.
inline constexpr int32_t kSummaryRows = 3;
// Where a group asks for segment means, kPageSegments more rows follow: the mean of each run of
// kSegmentTokens keys (0 where it has none yet). Half the sum of two that follow each other is a
// compressed key of InfLLM-v2 (PageScore::kCompressedKeys), also where they lie in two pages.
inline constexpr int32_t kSegmentTokens = 16;
inline constexpr int32_t kPageSegments = kPageTokens / kSegmentTokens;
// Where a group asks for the values' mean, one row more, the last, holds that of the page's values
// (of kFp8 the layer's scale is in it): with the keys' mean an entry of the cache of MeansOf.
constexpr int32_t SummaryRows(bool segment_means, bool value_mean = false) {
  return kSummaryRows + (segment_means ? kPageSegments : 0) + (value_mean ? 1 : 0);
}
constexpr int64_t PageSummaryBytes(KvDType t, int32_t head_dim, bool segment_means = false,
                                   bool value_mean = false) {
  const int64_t element = t == KvDType::kF32 || t == KvDType::kQ8 ? 4 : 2;  // f16 of fp8 codes
  return element * SummaryRows(segment_means, value_mean) * head_dim;
}

// One layer of one cache group. Address of (page p, head h): base + p*page_stride + h*head_stride
// bytes (64-bit from the first multiplication); inside it [page_entries][head_dim] as KvDType says.
// Summaries, where the group keeps them: base + p*page_stride + h*PageSummaryBytes.
struct PagedKv {
  void* k = nullptr;
  void* v = nullptr;  // k where keys are the values, too (latent attention); both scales are then 1
  int64_t page_stride = 0;  // bytes
  int64_t head_stride = 0;  // bytes
  int32_t num_pages = 0;    // physical pages addressable through k and v
  int32_t num_heads = 0;    // KV heads of the group
  int32_t head_dim = 0;
  KvDType dtype = KvDType::kF32;
  bool segment_means = false;  // summaries hold them, too
  bool value_mean = false;     // and that
  // Entries of a page: its tokens, or the one that stands for them all (MeansOf). A position of an
  // attention call is an entry, of page position / page_entries.
  int32_t page_entries = kPageTokens;
  void* summaries = nullptr;   // or none
  // Of kFp8: a key is its codes times k_scale, a value times v_scale, both above 0. Summaries are
  // of codes: they rank pages, which a factor does not change.
  float k_scale = 1.0f, v_scale = 1.0f;
};

inline int32_t SummaryRows(const PagedKv& cache) {
  return SummaryRows(cache.segment_means, cache.value_mean);
}
inline int64_t PageSummaryBytes(const PagedKv& cache) {
  return PageSummaryBytes(cache.dtype, cache.head_dim, cache.segment_means, cache.value_mean);
}
// Of a summary's rows, of which the third is the keys' mean.
inline int64_t SummaryRowBytes(const PagedKv& cache) {
  return PageSummaryBytes(cache) / SummaryRows(cache);
}

// The means of a cache's pages as a cache of one entry a page: key and value of entry p are the
// means of what page p holds. For Attention alone. REQUIRES: summaries with the values' mean.
inline PagedKv MeansOf(const PagedKv& cache) {
  PagedKv means = cache;
  means.k = static_cast<char*>(cache.summaries) + 2 * SummaryRowBytes(cache);
  means.v = static_cast<char*>(cache.summaries) + (SummaryRows(cache) - 1) * SummaryRowBytes(cache);
  means.v_scale = 1.0f;
  means.head_stride = PageSummaryBytes(cache);
  means.dtype = cache.dtype == KvDType::kQ8    ? KvDType::kF32
                : cache.dtype == KvDType::kFp8 ? KvDType::kF16
                                               : cache.dtype;
  means.segment_means = means.value_mean = false;
  means.page_entries = 1;
  means.summaries = nullptr;
  return means;
}

// Which physical pages the step's sequences hold in one group; shared by the group's layers.
struct PageTable {
  const int32_t* pages = nullptr;  // [num_sequences, stride]: logical page -> physical id or kNoPage
  int64_t stride = 0;              // entries per sequence, >= ceil(kv_len / kPageTokens)
  int32_t num_sequences = 0;
};

}  // namespace longstride::kernels

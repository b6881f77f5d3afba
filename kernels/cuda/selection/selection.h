// Page summaries and lists of pages made from queries, on the GPU: nothing of it returns to the host.
// What the ops mean: PageSummaryParams and SelectPagesParams (kernels/op_params.h). Arrays and tensors
// of the params are in device memory; launches are asynchronous.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/op_params.h"

namespace longstride::kernels::cuda {

// Entries of kNoPage are padding.
cudaError_t LaunchSummarizePages(const PageSummaryParams& p, cudaStream_t stream);

// KvWrite where every row is the newest key of a page of its own, and that page's summary. Not of
// kQ8.
cudaError_t LaunchAddKeys(const KvWriteParams& p, cudaStream_t stream);

// What the host knows of a SelectPages call beside its params.
struct SelectLaunch {
  int32_t first_tile = 0, num_tiles = 0;  // that this launch makes lists for
  int64_t max_pages = 0;                  // the most candidates of any tile
  bool one_row = false;                   // every tile has one row
  float* pooled = nullptr;  // [num_tiles, query heads, head_dim], where one_row is false
  float* scores = nullptr;  // [list heads, num_tiles, max_pages]
  // Of kCompressedKeys: scale times the products with segments' means
  // [num_tiles, query heads, max_pages * kPageSegments], and the largest product with a compressed
  // key and 1 / the sum of the exponentials [num_tiles, query heads, 2].
  float* products = nullptr;
  float* norms = nullptr;
};

// A candidate whose page the sequence does not hold ranks last. The page tables that reach this op
// were checked on the host.
cudaError_t LaunchSelectPages(const SelectPagesParams& p, const SelectLaunch& launch,
                              cudaStream_t stream);

// Scores of kCompressedKeys, for LaunchSelectPages.
cudaError_t LaunchCompressedScores(const SelectPagesParams& p, const SelectLaunch& launch,
                                   cudaStream_t stream);

// Scores of kBound and kMean, for LaunchSelectPages, where ScoresByProducts: summaries of 16 bits
// on multiples of 16 bytes, head_dim a multiple of 32 and at most 256.
bool ScoresByProducts(const SelectPagesParams& p);
cudaError_t LaunchProductScores(const SelectPagesParams& p, const SelectLaunch& launch,
                                cudaStream_t stream);

// What the host knows of a SelectTokens call beside its params.
struct TokenLaunch {
  int32_t first_tile = 0, num_tiles = 0;  // that this launch makes lists for
  int64_t max_tokens = 0;                 // at least the most candidates of any tile
  float* scores = nullptr;                // [num_tiles, max_tokens]
};

// A key whose page the sequence does not hold ranks last; whoever calls has checked the page
// tables.
cudaError_t LaunchSelectTokens(const SelectTokensParams& p, const TokenLaunch& launch,
                               cudaStream_t stream);

}  // namespace longstride::kernels::cuda

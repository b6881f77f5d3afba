// Launches of SelectPages by means of queries and keys (PageScore::kPooled, and kVerticalSlash's
// query-aware lists); see SelectPagesParams. Arrays are in device memory; launches are
// asynchronous. Internal to this folder.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/op_params.h"

namespace longstride::kernels::cuda {

// The mean of the keys of each page of some sequences.
struct PageMeans {
  const int32_t* sequences = nullptr;  // [num_slots]
  const int32_t* ends = nullptr;       // [num_slots] keys
  int32_t num_slots = 0;
  int64_t max_pages = 0;     // of a slot
  float* means = nullptr;    // [num_slots, max_pages, KV heads, head_dim]
  float* cosines = nullptr;  // [num_slots, max_pages, KV heads] of all pairs of keys
};

// Shares by the means of rows of q, of each of `tiles`.
struct PooledLaunch {
  PageMeans pages;
  const QueryTile* tiles = nullptr;  // [num_tiles]
  const int32_t* slot_of = nullptr;  // [num_tiles]; -1: one row, left out
  int32_t num_tiles = 0;
  int32_t heads_per_list = 1;
  float* means = nullptr;    // [num_tiles, query heads, head_dim]
  float* cosines = nullptr;  // [num_tiles, query heads]
  float* shares = nullptr;   // [num_tiles, list heads, shares_pitch]
  int64_t shares_pitch = 0;  // no tile has more candidates
};

// A candidate whose page the sequence does not hold has a mean of zero.
cudaError_t LaunchPageMeans(const SelectPagesParams& p, const PageMeans& pages,
                            cudaStream_t stream);
// l.means, l.cosines and l.shares; pages' means are there. kPooled: over the pages that are alike.
cudaError_t LaunchPooledShares(const SelectPagesParams& p, const PooledLaunch& l,
                               cudaStream_t stream);

}  // namespace longstride::kernels::cuda

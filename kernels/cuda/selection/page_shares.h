// Launches of SelectPages by shares of attention (PageScore::kAntidiagonal, kVerticalSlash, kPooled); see
// SelectPagesParams. Rows of q that probe, QueryTiles of one sequence, are folded: groups of `fold` rows
// in descending order against groups of `fold` keys, so that a product along the channels of a group is
// the sum along an antidiagonal. What is kept of the scores is page by page.
// Arrays are in device memory; launches are asynchronous. Internal to this folder.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/selection/pooled_means.h"
#include "kernels/op_params.h"

namespace longstride::kernels::cuda {

inline constexpr int32_t kBlockRows = 128;     // folded rows of a thread block
inline constexpr int32_t kDiagonalSlots = 128;  // of a page: 64 rows reach 127 diagonals in it

// The rows of one thread block: `num_pairs` of (probe, query head of a KV head), heads innermost, from
// query head `first_head` (of the group) of `first_probe` on. The probes follow each other in one sequence.
struct RowBlock {
  int32_t first_probe = 0;
  int32_t first_head = 0;
  int32_t num_pairs = 0;
};

struct ShareLaunch {
  const void* half_q = nullptr;  // [rows, query heads, head_dim] of the cache's 16-bit type; null: float32
  int32_t heads_per_list = 1;
  const QueryTile* probes = nullptr;  // [num_probes]
  int32_t num_probes = 0;
  const RowBlock* blocks = nullptr;  // [num_blocks]
  int32_t num_blocks = 0;
  int32_t fold = 1;
  int32_t groups = 1;     // folded rows of a probe at most
  int64_t max_pages = 0;  // the most candidates of any probe
  // [num_probes, query heads, groups, max_pages]: log2 of the sum of the exponentials of a page's scores.
  float* page_logs = nullptr;
  float* row_logs = nullptr;  // [num_probes, query heads, groups]: the same of all pages
};

// page_logs and row_logs. A candidate whose page the sequence does not hold weighs nothing.
cudaError_t LaunchPageLogs(const SelectPagesParams& p, const ShareLaunch& s, cudaStream_t stream);

// Columns and diagonals (VerticalSlashLaunch) of probes of up to kProbeRows rows: fold 1, as many groups,
// and row_logs are there.
cudaError_t LaunchProbes(const SelectPagesParams& p, const ShareLaunch& s, float* columns,
                         float* diagonals, cudaStream_t stream);

// The lists of tiles [first_tile, +num_probes), which are the probes; without page_logs they take all.
// shares: scratch [num_probes, list heads, max_pages].
cudaError_t LaunchTakeByShares(const SelectPagesParams& p, const ShareLaunch& s, int32_t first_tile,
                               uint32_t* shares, cudaStream_t stream);

// Where the weights of columns and diagonals go.
struct VerticalSlashLaunch {
  float* columns = nullptr;    // [num_probes, query heads, max_pages * kPageTokens]
  float* diagonals = nullptr;  // [num_probes, query heads, max_pages, kDiagonalSlots]
  // Of a list, columns then diagonals: [num_probes, list heads, 2, ...].
  float* weights = nullptr;  // [max_pages * kPageTokens], where there is a mass
  float* heaviest = nullptr;  // [max_pages] of each run of kPageTokens
  uint8_t* chosen = nullptr;  // [max_pages] 1: the page or run is taken
  int32_t first_tile = 0, num_tiles = 0;
  const int32_t* probe_of = nullptr;  // [num_tiles] index of its segment's probe; -1: takes all
  // With a divergence: shares of the probes and of the tiles by means, [.., list heads, max_pages].
  const float* probe_shares = nullptr;
  float* tile_shares = nullptr;
  uint8_t* query_aware = nullptr;  // [num_probes, list heads]
};

// What is chosen of the columns and diagonals that LaunchProbes left, and which lists are query-aware.
cudaError_t LaunchChooseVerticalSlash(const SelectPagesParams& p, const ShareLaunch& s,
                                      const VerticalSlashLaunch& v, cudaStream_t stream);
cudaError_t LaunchTakeVerticalSlash(const SelectPagesParams& p, const ShareLaunch& s,
                                    const VerticalSlashLaunch& v, cudaStream_t stream);

// kPooled: the lists of tiles [first_tile, +l.num_tiles), of which l has the shares.
cudaError_t LaunchTakePooled(const SelectPagesParams& p, const PooledLaunch& l, int32_t first_tile,
                             cudaStream_t stream);

}  // namespace longstride::kernels::cuda

// What each query row of each head may read: the one thing a sparsity pattern produces and an
// attention kernel consumes. Dense attention is the full list. Plain structs (.cu-safe).
//
// A selection is a set of *lists*. A list names, in ascending order, entries of `entry_tokens`
// consecutive KV positions: entry e covers [e*entry_tokens, (e+1)*entry_tokens). A *query tile* is
// a run of consecutive rows of one sequence that share a list; tiles are aligned to absolute
// positions (tile t covers positions [t*query_tile, (t+1)*query_tile)), so that results do not
// depend on how a prompt was cut into chunks. Inside the listed entries, an EdgeRule masks single
// positions (diagonal, window edge). Position j is visible to the query at position i of list-head
// h iff some entry of its list covers j, and EdgeRule(h) allows (i, j), and j < kv_len.
//
// Token lists (entry_tokens == 1) may be shared between rows of different tiles: each
// (list-head, tile) names its own [begin, begin+count) range of `entries`, ranges may overlap. The
// strided pattern uses this: the rows of one residue class read prefixes of one list.
#pragma once

#include <cstdint>

namespace longstride::kernels {

// allowed(i, j) = (!causal || j <= i)
//              && (window == 0 || |i - j| < window || j < sink_tokens
//                  || (!causal && i < sink_tokens))
//              && (chunk == 0 || floor(j / chunk) == floor(i / chunk))
// window counts the query itself (Hugging Face's convention): window 1 sees only itself. Without
// `causal` it reaches as far ahead as back, 2 * window - 1 keys, and the first sink_tokens are
// global: every query reads them, and they read everything (docs/decisions/0010).
struct EdgeRule {
  int32_t causal = 1;
  int32_t window = 0;
  int32_t sink_tokens = 0;
  int32_t chunk = 0;
};

enum class ListHeads : uint8_t {
  kShared,     // one list for all heads of the layer
  kPerKvHead,  // num_list_heads == KV heads
  kPerQHead,   // num_list_heads == query heads
};

// A run of rows of one sequence that share one list per list-head.
struct QueryTile {
  int32_t sequence = 0;        // row of the PageTable
  int32_t row_begin = 0;       // first row in the step's flattened query tensor
  int32_t num_rows = 0;        // 1 .. query_tile
  int32_t first_position = 0;  // absolute position of row_begin; rows are consecutive
};

inline constexpr int32_t kNoEntry = -1;
inline constexpr int32_t kNoSingleRows = INT32_MAX;

struct KvSelection {
  ListHeads list_heads = ListHeads::kShared;
  int32_t num_list_heads = 1;
  int32_t entry_tokens = 64;  // 1, or a power of two 16 .. 128
  int32_t query_tile = 128;   // 1, or a power of two 16 .. 128: most rows a tile has
  int32_t num_tiles = 0;

  const QueryTile* tiles = nullptr;        // [num_tiles], by (sequence, position)
  // [num_list_heads, num_tiles]: this (list-head, tile)'s range of `entries`.
  const int64_t* list_begin = nullptr;
  const int32_t* list_count = nullptr;
  // Ascending within a list, no duplicates; kNoEntry is skipped (padding of device-made lists).
  const int32_t* entries = nullptr;
  int64_t num_entries = 0;                 // size of `entries`
  // No list is longer; 0: not known. Whoever sets it also vouches that a tile of one row lists only
  // entries with a key that the row sees. Kernels may then size their memory by this bound and take
  // lists of single rows as they stand.
  int32_t max_list_entries = 0;
  const EdgeRule* edges = nullptr;         // [num_list_heads]
  // `entries` were made by Backend::SelectPages (entries are pages; every row's own is listed) or
  // SelectTokens (single tokens; a row's own may be missing) and lie in the backend's memory. The
  // rest of the selection follows from lengths alone and lies in the host's. Tiles of generated
  // rows have one row; where entries are tokens, tiles of more rows list all keys up to their last
  // row.
  bool entries_made = false;
  // Made lists may end in kNoEntry: how long they are follows from queries too.
  bool entries_padded = false;
  // From this position on a prompt's rows stand for themselves, too: their tiles have one row. A
  // backend may compute them with the kernels of generated rows.
  int32_t single_rows_from = kNoSingleRows;
};

constexpr bool EdgeAllows(const EdgeRule& r, int64_t i, int64_t j) {
  const bool in_window = j > i - r.window && j < i + r.window;
  const bool global = j < r.sink_tokens || (!r.causal && i < r.sink_tokens);
  return (!r.causal || j <= i) && (r.window == 0 || in_window || global) &&
         (r.chunk == 0 || j / r.chunk == i / r.chunk);
}

}  // namespace longstride::kernels

// Cuts one attention call into units of work that threads take independently. How a call is cut
// never shows in its results: a row's bits follow from its own list alone.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/op_params.h"

namespace longstride::kernels::cpu {

// Query rows times heads that one unit packs together: their queries, sums and one block of keys
// and values fit the second-level cache at a head size of 256. A multiple of every register tile.
inline constexpr int32_t kMaxPackedRows = 96;

struct AttentionPlan {
  // A query row: where it stands in q and out, its position, and how many entries of a token list
  // it sees.
  struct Row {
    int32_t row;
    int32_t position;
    int32_t limit;
  };
  // Rows of one sequence that share a list, for query heads that share a KV head.
  struct Unit {
    int32_t sequence = 0;
    int32_t list_head = 0;
    int32_t first_head = 0;
    int32_t num_heads = 0;
    int32_t num_rows = 0;
    int64_t first_row = 0;  // into rows
    int64_t list_begin = 0;
    int32_t list_count = 0;     // the longest of its rows'
    int64_t first_segment = 0;  // segments that its list touches
    int64_t num_segments = 0;
    int64_t cost = 0;  // scores to compute, roughly
    // Where the unit is cut by segments: offset (in floats) of its first partial state in the
    // call's partial memory, and which counter its pieces share. Negative: one task does it all.
    int64_t partial = -1;
    int32_t counter = -1;
    int32_t packed_rows() const { return num_rows * num_heads; }
  };
  // One thread's share: segments [first, first + count) of a unit.
  struct Task {
    int32_t unit;
    int64_t first_segment, num_segments;
    int64_t cost;
  };

  // Plans a call that satisfies the contract. Reuses the vectors' memory.
  void Build(const AttentionParams& p, int num_threads);

  // Floats of one partial state: maximum and sum of each packed row, then their accumulators.
  static int64_t PartialFloats(int64_t packed_rows, int64_t padded_dim) {
    return packed_rows * (2 + padded_dim) + (-2 * packed_rows & 15);
  }

  std::vector<Row> rows;
  std::vector<Unit> units;
  std::vector<Task> tasks;      // the most expensive first
  std::vector<int32_t> pieces;  // [counters] tasks of each cut unit
  int64_t partial_floats = 0;   // memory that the cut units need

 private:
  struct ListedTile {
    int32_t sequence;
    int64_t list_begin;
    int32_t tile;
  };

  void PlanListHead(const AttentionParams& p, int32_t list_head, int32_t first_head,
                    int32_t num_heads);
  void AddUnits(const AttentionParams& p, Unit unit, int64_t first_row, int64_t end_row);
  void PlanTasks(const AttentionParams& p, int num_threads);

  std::vector<ListedTile> listed_;
};

}  // namespace longstride::kernels::cpu

// A SparsePattern is the policy of one layer (or of some of its heads) made executable: it turns
// the lengths of a step into a KvSelection and says which positions no later query will read. One
// file per pattern in this folder, and one line in the registry (registry.cpp).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "config/base/status.h"
#include "config/sparsity_policy.h"
#include "kernels/kv_selection.h"
#include "kernels/op_params.h"
#include "model/cache_group.h"
#include "model/model_input.h"
#include "model/model_spec.h"

namespace longstride::model {

// Heads that a pattern instance serves. Patterns that differ by head use absolute head numbers.
struct HeadRange {
  int32_t first = 0;
  int32_t count = 0;
};

// A run of consecutive query rows of one sequence in this step.
struct QueryRun {
  int32_t sequence = 0;
  int32_t row_begin = 0;
  int32_t num_rows = 0;
  int64_t first_position = 0;
  NumericsClass numerics = NumericsClass::kPrompt;
  // Keys of the sequence after this step, for patterns that read ahead; these get whole documents.
  int64_t kv_len = 0;
};

// How a query-dependent pattern chooses pages (kernels::SelectPagesParams), or tokens.
struct PageRanking {
  // Tokens by the layer's indexer (kernels::SelectTokensParams). list_heads is then kShared, and of
  // the rest single_rows_from and generated_alike alone count.
  bool by_index = false;
  kernels::PageScore score = kernels::PageScore::kBound;
  kernels::ListHeads list_heads = kernels::ListHeads::kPerKvHead;  // or kPerQHead
  int32_t sink_pages = 0;
  int32_t recent_pages = 1;
  int32_t block_pages = 1;
  // From this position on every row of a prompt has a list of its own (KvSelection::single_rows_from).
  int32_t single_rows_from = kernels::kNoSingleRows;
  // Generated rows read what a prompt's would in their place.
  bool generated_alike = false;
  // Prompt rows choose by their tile's (or segment's) queries together: prompts are then computed and
  // shared in whole runs of this many positions. 1: every row of a prompt stands for itself.
  int32_t pooled_rows = 1;
  // Scores that use no summaries: SelectPagesParams's. Select's counts are then all the candidates.
  float mass = 0.0f;
  int32_t stride = 0;
  int32_t vertical_pages = 0;
  int32_t slash_pages = 0;
  float divergence = 0.0f;
  float similarity = 0.0f;
};

// Sizes of a padded step's lists, powers of two: the longest list, and room for all.
int32_t PaddedListBound(int32_t longest);
int64_t PaddedEntries(int64_t entries);

// Host memory behind a KvSelection of a static pattern; one per pattern, reused from step to step
// so that a steady state allocates nothing.
class SelectionBuilder {
 public:
  // Empties everything but the capacity.
  void Clear();

  kernels::ListHeads list_heads = kernels::ListHeads::kShared;
  int32_t num_list_heads = 1;
  int32_t entry_tokens = 64;
  int32_t query_tile = 128;
  std::vector<kernels::QueryTile> tiles;
  std::vector<int64_t> kv_lens;     // [tiles] QueryRun::kv_len of its run
  std::vector<int64_t> list_begin;  // [num_list_heads, tiles]
  std::vector<int32_t> list_count;
  std::vector<int32_t> entries;
  std::vector<kernels::EdgeRule> edges;
  std::vector<int64_t> scratch;  // a pattern's own; contents survive Clear
  int32_t max_list_entries = 0;  // KvSelection's

  // Cuts runs into tiles aligned to absolute positions (query_tile must be set before), and at
  // multiples of `boundary` too where that is not 0.
  void MakeTiles(std::span<const QueryRun> runs, int64_t boundary = 0);
  // Sizes list_begin and list_count for the tiles and list heads set.
  void MakeLists();
  // The tiles and lists of patterns that name single keys for every row: one row a tile, the causal
  // edge for all heads.
  void MakeRowLists(std::span<const QueryRun> runs);
  // Appends a list of its own for (list_head, tile).
  void SetList(int32_t list_head, int32_t tile, int64_t begin, int64_t count);
  // Brings a selection of one-row tiles to `rows` of them, the further ones with empty lists (row r
  // of sequence r), and its entries and bound to a power of two: sizes that stay for a while.
  void Pad(int32_t rows);
  // Valid until the builder changes.
  kernels::KvSelection View() const;
};

class SparsePattern {
 public:
  virtual ~SparsePattern() = default;

  // "window(512)+sinks(4)": for inspect, logs and metric labels; equal text means equal function.
  virtual std::string Describe() const = 0;
  virtual Retention retention() const = 0;
  // Fills `out` for the step. The result depends only on absolute positions and on the rows' classes,
  // never on how the step was cut. Thread-compatible.
  virtual void Select(std::span<const QueryRun> runs, SelectionBuilder* out) const = 0;
  // Null where lists follow from lengths alone. Otherwise they are made in every layer, when its
  // queries and keys are there: Select then sets query_tile, the tiles and list_count[t], how many
  // pages (or tokens) each list of tile t takes, and neither heads nor entries.
  virtual const PageRanking* ranking() const { return nullptr; }
  // What a layer whose attention is a sum (AttentionSpec::gates) reads in each of its parts, in
  // order. Such a pattern has no Select; a plan has its parts in its place.
  virtual std::span<const std::shared_ptr<const SparsePattern>> parts() const { return {}; }
  // Whether Select lists pages that stand for their tokens by their means (kernels::MeansOf), one
  // entry each, and VisibleKeys counts these.
  virtual bool reads_means() const { return false; }
  // Whether a query sees all keys that Select's edge rule, one for all heads, allows, and no
  // others.
  virtual bool edges_alone() const { return false; }
  // Keys that a prompt's query at `position` sees, summed over the pattern's heads and divided by
  // their count: density, cost prediction and metrics. Patterns that read ahead count what lies back
  // from `position` and ahead of the position as far from the document's end: summed over a document
  // it is what all its queries see.
  virtual double VisibleKeys(int64_t position) const = 0;
  // The same for a generated token, where that is another function of the position.
  virtual double GeneratedVisibleKeys(int64_t position) const { return VisibleKeys(position); }
  // Whether `head` at query position i may read position j: the definition, used by tests, by the
  // pictures of `inspect` and the playground. Must agree with Select. Where it depends on the query:
  // whether some query reads j. Positions beyond a sequence's end are not told apart.
  virtual bool Visible(int32_t head, int64_t i, int64_t j) const = 0;

  double VisibleKeys(int64_t position, NumericsClass numerics) const {
    return numerics == NumericsClass::kPrompt ? VisibleKeys(position)
                                              : GeneratedVisibleKeys(position);
  }
};

// What a pattern's factory may look at.
struct PatternContext {
  HeadRange heads;              // query heads served by this instance
  int32_t num_query_heads = 0;  // of the whole layer
  NativeSparsity native;
  int32_t max_positions = 0;
  bool causal = true;  // false: queries also read ahead (encoders)
};

struct PatternFactory {
  std::string_view name;     // "window"
  std::string_view summary;  // one line for docs and --help
  absl::StatusOr<std::unique_ptr<SparsePattern>> (*make)(const PatternPolicy&,
                                                         const PatternContext&);
  bool reads_ahead = false;  // has a form for encoders
};

const std::vector<PatternFactory>& PatternRegistry();

// INVALID_ARGUMENT: unknown pattern (nearest name suggested), one that is causal alone for an encoder,
// or bad parameters, with their place in the plan file.
absl::StatusOr<std::unique_ptr<SparsePattern>> MakePattern(const PatternPolicy& policy,
                                                           const PatternContext& context);

}  // namespace longstride::model

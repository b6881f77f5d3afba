// Finds the cheapest plan of a fixed ladder that keeps a target of fidelity (docs/fidelity.md).
//
// The ladder: on the layers that the checkpoint leaves full, a window with four sink tokens, of
// every power of two from 64 up to half the text's windows (uniform rungs); patterns that choose
// pages by the queries (choosing rungs: `block_topk` of a half to an eighth of the pages,
// `xattention` of 80, 90 and 95% of the attention; where the text counts as generated, `quest` of a
// half to a sixteenth in the place of `xattention`, which chooses for prompts alone); and, for each
// of the windows, the same with a quarter or half of these layers left full, those that lose most
// attention mass first (relaxed rungs). A rung's cost is the share of the keys that it read of the
// text that it was judged on.
//
// The search judges rungs on one half of the text windows: all uniform and choosing rungs, then the
// relaxed rungs whose density at the end of a window is below that of the cheapest uniform rung
// that holds, from the dearest down, six at a time, until six in a row miss. Those that hold and
// read less than the baseline are then checked from the cheapest up on the other half, until one
// holds there as well.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "config/base/status.h"
#include "model/fidelity/divergence_summary.h"
#include "model/fidelity/lane.h"
#include "model/fidelity/text_windows.h"

namespace longstride::model::fidelity {

struct Target {
  std::optional<double> max_kl;                // "kl<=0.02", nats
  std::optional<double> min_same_top;          // "top1>=0.98"
  std::optional<double> max_perplexity_ratio;  // "ppl<=1.01"

  // INVALID_ARGUMENT: no conditions, an unknown or repeated one, the wrong sign, a bad number.
  static absl::StatusOr<Target> Parse(const std::string& text);
  bool Holds(const DivergenceSummary& summary) const;
};

struct Rung {
  std::string plan_text;    // a plan file's contents
  std::string description;  // "window 256 + 4 sinks on 26 layers, 4 full"
  SparsityPlan plan;
  int32_t window = 0;  // 0: a choosing rung
  std::vector<int32_t> windowed_layers;
  double density = 0;  // at the end of a text window; of a choosing rung at most
};

// Layers whose heads all see everything for the text's length, ascending.
std::vector<int32_t> FullLayers(const SparsityPlan& native, int32_t window_tokens);

// The rung that windows `layers`. They must be layers of the model.
absl::StatusOr<Rung> MakeRung(const Model& model, std::vector<int32_t> layers, int32_t window,
                              int32_t full_layers, int32_t window_tokens);

// The rung that gives `layers` a pattern that chooses pages: its name and parameters as in a plan file,
// `"pattern": "block_topk", "fraction": 0.25`.
absl::StatusOr<Rung> MakeChoosingRung(const Model& model, const std::vector<int32_t>& layers,
                                      const std::string& name, const std::string& parameters,
                                      const std::string& description, int32_t window_tokens,
                                      NumericsClass numerics = NumericsClass::kPrompt);

struct SearchOptions {
  LaneOptions lane;
  int32_t window_tokens = 0;
  // What the rungs read the text as: a prompt, or tokens that they generated.
  NumericsClass numerics = NumericsClass::kPrompt;
  BootstrapOptions bootstrap;
  std::function<void(const std::string& stage, int64_t tokens, int64_t total)> progress;
};

struct RungResult {
  Rung rung;
  double keys_share = 1;                     // that it read of the first half: its cost
  DivergenceSummary searched;                // on the first half
  std::optional<DivergenceSummary> checked;  // on the other, where it was tried there
  bool holds_searched = false;
  bool holds_checked = false;
};

struct SearchResult {
  std::vector<RungResult> rungs;  // by cost, all that were judged
  int chosen = -1;                // index, or none holds on both halves
};

// INVALID_ARGUMENT: the checkpoint has no layer that sees a whole window of text.
absl::StatusOr<SearchResult> SearchPlans(Model* model, const Target& target, Lane* baseline,
                                         std::span<const TextWindow> search_windows,
                                         std::span<const TextWindow> check_windows,
                                         const SearchOptions& options);

}  // namespace longstride::model::fidelity

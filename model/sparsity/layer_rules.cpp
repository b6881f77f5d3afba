#include "model/sparsity/layer_rules.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "config/nearest_name.h"

namespace longstride::model {
namespace {

using Names = std::vector<std::vector<std::string>>;  // [layer][KV or query head]

absl::Status TableError(const LayerRule& rule, std::string_view message) {
  PatternPolicy table;
  table.place = StrCat(rule.policy.place, ".head_table");
  return table.Error(message);
}

// The rows fit the model, and there is one for each of `layers`.
template <typename T>
absl::Status CheckShape(const LayerRule& rule, const std::vector<std::vector<T>>& rows,
                        const std::vector<int32_t>& layers, const ModelSpec& spec) {
  if (rows.size() != spec.layers.size()) {
    return TableError(rule, StrCat("has rows for ", rows.size(), " layers; the model has ",
                                   spec.layers.size(), " layers."));
  }
  for (size_t l = 0; l < rows.size(); ++l) {
    const AttentionSpec& a = spec.layers[l].attention;
    const auto size = static_cast<int64_t>(rows[l].size());
    const bool per_query_head = !rule.table->heads.empty() && size == a.num_heads;
    if (size == 0 || size == a.num_kv_heads || per_query_head) continue;
    return TableError(rule, StrCat("has ", size, " entries for layer ", l, "; allowed are ",
                                   a.num_kv_heads, ", one per key/value head",
                                   rule.table->heads.empty()
                                       ? std::string()
                                       : StrCat(", and ", a.num_heads, ", one per query head"),
                                   ", and none."));
  }
  for (const int32_t l : layers) {
    if (!rows[static_cast<size_t>(l)].empty()) continue;
    return TableError(rule, StrCat("says nothing of layer ", l,
                                   ", which the rule covers; name the "
                                   "layers it knows by 'layers'."));
  }
  return absl::OkStatus();
}

// Of equal scores the head of the lower layer, then the lower head, streams first.
Names ChooseByScores(const LayerRule& rule, const std::vector<int32_t>& layers) {
  const std::vector<std::vector<double>>& scores = rule.table->scores;
  Names names(scores.size());
  std::vector<std::tuple<double, int32_t, size_t>> ranked;
  for (const int32_t l : layers) {
    const std::vector<double>& row = scores[static_cast<size_t>(l)];
    for (size_t h = 0; h < row.size(); ++h) {
      ranked.emplace_back(row[h], l, h);
      const bool full = !rule.threshold || row[h] >= *rule.threshold;
      names[static_cast<size_t>(l)].emplace_back(full ? "full" : "streaming");
    }
  }
  if (!rule.streaming_share) return names;
  std::sort(ranked.begin(), ranked.end());
  const double wanted = *rule.streaming_share * static_cast<double>(ranked.size());
  const auto streaming = static_cast<size_t>(std::floor(wanted + 1e-9));
  for (size_t n = 0; n < streaming; ++n) {
    const auto& [score, layer, head] = ranked[n];
    names[static_cast<size_t>(layer)][head] = "streaming";
  }
  return names;
}

absl::Status ExpandRule(const LayerRule& rule, const ModelSpec& spec, int32_t max_context,
                        std::vector<LayerRule>* out) {
  const HeadTable& table = *rule.table;
  RETURN_IF_ERROR(CheckLayers(rule, spec));
  if (table.model != spec.digest) {
    return TableError(rule, StrCat("was made for the checkpoint with the digest ",
                                   Quoted(table.model), ", and this one has ", Quoted(spec.digest),
                                   "; make a table for it with `longstride calibrate-heads`."));
  }
  std::vector<int32_t> layers;
  for (int32_t l = 0; l < static_cast<int32_t>(spec.layers.size()); ++l) {
    if (Covers(rule, spec, l, max_context)) layers.push_back(l);
  }
  if (table.heads.empty()) {
    RETURN_IF_ERROR(CheckShape(rule, table.scores, layers, spec));
  } else {
    RETURN_IF_ERROR(CheckShape(rule, table.heads, layers, spec));
  }
  const Names names = table.heads.empty() ? ChooseByScores(rule, layers) : table.heads;
  for (const int32_t l : layers) {
    const std::vector<std::string>& row = names[static_cast<size_t>(l)];
    const auto per_name =
        spec.layers[static_cast<size_t>(l)].attention.num_heads / static_cast<int32_t>(row.size());
    std::map<std::string, IndexRanges> heads;
    for (size_t h = 0; h < row.size(); ++h) {
      const int32_t first = static_cast<int32_t>(h) * per_name;
      heads[row[h]].ranges.emplace_back(first, first + per_name - 1);
    }
    // Every pattern of the table is tried in every layer, and so checked; later rules win.
    for (const auto& [name, policy] : table.patterns) {
      LayerRule& made = out->emplace_back();
      made.layers.ranges = {{l, l}};
      made.policy = policy;
    }
    for (auto& [name, ranges] : heads) {
      LayerRule& made = out->emplace_back();
      made.layers.ranges = {{l, l}};
      made.heads = std::move(ranges);
      made.policy = table.patterns.at(name);
    }
  }
  return absl::OkStatus();
}

}  // namespace

NativeKind KindOf(const AttentionSpec& attention, int32_t max_context) {
  const NativeSparsity& native = attention.native;
  if (native.chunk > 0 && native.chunk < max_context) return NativeKind::kChunked;
  if (native.window > 0 && native.window < max_context) return NativeKind::kWindowed;
  return NativeKind::kFull;
}

bool Covers(const LayerRule& rule, const ModelSpec& spec, int32_t layer, int32_t max_context) {
  const NativeKind kind = KindOf(spec.layers[static_cast<size_t>(layer)].attention, max_context);
  return (rule.kind == NativeKind::kAny || rule.kind == kind) && rule.layers.Contains(layer);
}

absl::Status CheckLayers(const LayerRule& rule, const ModelSpec& spec) {
  const auto num_layers = static_cast<int32_t>(spec.layers.size());
  if (rule.layers.Max() < num_layers) return absl::OkStatus();
  return rule.policy.Error(StrCat("names layer ", rule.layers.Max(), "; the model has layers 0 to ",
                                  num_layers - 1, "."));
}

absl::StatusOr<SparsityPolicy> ExpandHeadTables(const SparsityPolicy& policy, const ModelSpec& spec,
                                                int32_t max_context) {
  SparsityPolicy out = policy;
  out.rules.clear();
  for (const LayerRule& rule : policy.rules) {
    if (rule.table) {
      RETURN_IF_ERROR(ExpandRule(rule, spec, max_context, &out.rules));
    } else {
      out.rules.push_back(rule);
    }
  }
  return out;
}

}  // namespace longstride::model

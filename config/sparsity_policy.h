// What the operator says about sparsity, as read from a plan file (JSON with comments). Which
// patterns exist and what their parameters mean is model/sparsity's business; here they are names
// with parameters and a place in the file for error messages.
//
//   {
//     "name": "long-logs",
//     "default": {"pattern": "native"},
//     "layers": [
//       {"layers": "0-5,9", "pattern": "window", "window": 1024, "sink_tokens": 4},
//       {"layers": "6", "heads": "0-3", "pattern": "strided", "stride": 128},
//       {"layers": "full", "pattern": "block_sparse", "block": 64, "rows": {"file": "rows.json"}}
//     ]
//   }
//
// Later rules win where they overlap. "native" is the checkpoint's own pattern of that layer.
// "layers" is a list of indices and ranges, or the kind of the layer in the checkpoint: "full",
// "windowed", "chunked"; absent means all layers. A parameter {"file": "name"} stands for the JSON
// value in that file of the plan's own folder. A rule with "head_table" in the place of "pattern" takes
// the patterns of its heads from a table (HeadTable), in the same two ways. An optional "fidelity_report": "sha256:…" names the
// report (`longstride fidelity`) that the plan was chosen by; it changes nothing that is computed.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "config/base/status.h"

namespace longstride {

using IntRows = std::vector<std::vector<int64_t>>;
using PolicyValue = std::variant<int64_t, double, bool, std::string, std::vector<int64_t>, IntRows,
                                 std::vector<IntRows>>;

// One pattern with its parameters. Getters return INVALID_ARGUMENT naming `place`.
struct PatternPolicy {
  std::string pattern = "native";
  std::map<std::string, PolicyValue> params;
  std::string place;  // "layers[1]" of the plan file, for messages

  bool Has(const std::string& name) const { return params.contains(name); }
  absl::StatusOr<int64_t> Int(const std::string& name, int64_t fallback, int64_t min,
                              int64_t max) const;
  // The value must be there.
  absl::StatusOr<int64_t> RequiredInt(const std::string& name, int64_t min, int64_t max) const;
  // A number, with or without a fraction.
  absl::StatusOr<double> RequiredNumber(const std::string& name, double min, double max) const;
  absl::StatusOr<bool> Bool(const std::string& name, bool fallback) const;
  absl::StatusOr<std::vector<int64_t>> IntList(const std::string& name) const;
  // Lists of integers; a plain empty list is no rows.
  absl::StatusOr<IntRows> Rows(const std::string& name) const;
  // Lists of such lists (one per head).
  absl::StatusOr<std::vector<IntRows>> RowsPerHead(const std::string& name) const;
  // INVALID_ARGUMENT if a parameter is not in `known`; suggests the nearest known name.
  absl::Status CheckKnown(const std::vector<std::string>& known) const;
  // INVALID_ARGUMENT with the place put before `message`.
  absl::Status Error(std::string_view message) const;
};

// Inclusive index ranges, "0-5,9"; empty means all.
struct IndexRanges {
  std::vector<std::pair<int32_t, int32_t>> ranges;
  bool Contains(int32_t i) const;
  // The largest index named, or -1.
  int32_t Max() const;
  static absl::StatusOr<IndexRanges> Parse(const std::string& text);
};

// Which layers a rule may touch, by what the checkpoint itself does there.
enum class NativeKind : uint8_t { kAny, kFull, kWindowed, kChunked };

// Which pattern each head of one checkpoint takes: by name, or by a score that says how much a head needs
// all of the context. Heads of MInference (arXiv 2407.02490) and of DuoAttention (arXiv 2410.10819) are
// written so.
//
//   {
//     "model": "0f3c…",                      the checkpoint's digest, as `longstride inspect` prints it
//     "patterns": {"full": {"pattern": "native"},
//                  "streaming": {"pattern": "window", "window": 256, "sink_tokens": 64}},
//     "scores": [[0.4, 0.01], …]             per layer and KV head; or
//     "heads": [["full", "streaming"], …]    per layer and KV head or query head
//   }
//
// An empty row says nothing of its layer. "name" and "measured" are for people.
struct HeadTable {
  std::string model;
  std::map<std::string, PatternPolicy> patterns;  // with scores: "full" and "streaming"
  std::vector<std::vector<std::string>> heads;    // names in `patterns`; empty where there are scores
  std::vector<std::vector<double>> scores;
};

struct LayerRule {
  NativeKind kind = NativeKind::kAny;
  IndexRanges layers;
  IndexRanges heads;  // query heads
  PatternPolicy policy;  // with a table: its place alone
  std::optional<HeadTable> table;
  // Of a table's scores, one of the two: heads with this score or more are full; or so large a share of
  // the heads of the rule's layers is streaming, those with the lowest scores.
  std::optional<double> threshold;
  std::optional<double> streaming_share;
};

struct SparsityPolicy {
  std::string name = "native";
  PatternPolicy default_policy;
  std::vector<LayerRule> rules;
  std::string fidelity_report;  // "sha256:" and 64 hex digits of the report's JSON, or ""

  // `text`: a plan file's contents. Duplicate and unknown keys are errors. `folder`: where
  // {"file": …} parameters are looked up; "" refuses them.
  static absl::StatusOr<SparsityPolicy> Parse(const std::string& text,
                                              const std::string& folder = "");
  // NOT_FOUND: no such file.
  static absl::StatusOr<SparsityPolicy> Load(const std::string& path);
};

}  // namespace longstride

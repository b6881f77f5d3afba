// All layers' patterns of a served model, resolved against a checkpoint, with the cache groups that
// follow from them and a digest that identifies the function being served.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "config/base/status.h"
#include "config/sparsity_policy.h"
#include "model/cache_group.h"
#include "model/model_spec.h"
#include "model/sparsity/sparse_pattern.h"

namespace longstride::model {

// Query heads [query.first, +count) of a layer, which read KV heads [kv.first, +count): whole KV
// heads, or a part of the queries of one KV head. One attention call each. Where a layer's
// attention is a sum (AttentionSpec::gates), segments of each of its parts.
struct HeadSegment {
  HeadRange query;
  HeadRange kv;
  int32_t pattern = 0;  // index into SparsityPlan::patterns
  int32_t group = 0;    // index into SparsityPlan::groups; the segment's KV heads are in it
  int32_t part = 0;     // below LayerPlan::parts
};

struct LayerPlan {
  std::vector<HeadSegment> segments;  // of each part: cover all query heads, ascending
  int32_t parts = 1;
  int32_t num_heads() const;  // query heads
};

struct SparsityPlan {
  std::string name;
  std::string digest;  // hex, 128-bit, over every layer's patterns
  std::string fidelity_report;  // digest of the report the plan was chosen by, as the plan file says
  std::vector<std::shared_ptr<const SparsePattern>> patterns;  // distinct
  std::vector<LayerPlan> layers;
  std::vector<CacheGroup> groups;  // page_bytes filled for `dtype`

  int32_t max_context = 0;  // positions that may be served
  // Prompts are computed and shared in whole runs of this many positions, counted from 0 (a prompt's
  // last may be shorter): more than 1 where a pattern pools their queries, and all of the context in
  // an encoder, whose documents are never cut.
  int32_t chunk_alignment = 1;
  bool causal = true;  // ModelSpec's
  std::optional<DualChunk> dual_chunk;  // ModelSpec's: patterns then follow from positions alone
  // Whether prompt and generated tokens are one function of what stands before them.
  bool one_numerics_class = true;

  // INVALID_ARGUMENT: a rule names layers or heads that do not exist, its head table was not made for
  // this checkpoint, or a pattern's parameters are bad; with the place in the plan file. `max_context` 0: the checkpoint's.
  static absl::StatusOr<SparsityPlan> Resolve(const SparsityPolicy& policy, const ModelSpec& spec,
                                              kernels::KvDType dtype, int32_t max_context = 0);

  // Keys that the query at `position` sees by a pattern; of an encoder's, what one query of a document
  // that ends there sees on average.
  double KeysSeen(int32_t pattern, int64_t position,
                  NumericsClass numerics = NumericsClass::kPrompt) const;
  // KeysSeen as a share of the keys up to `position`, mean over layers and heads; a layer's parts
  // add up.
  double Density(int64_t position, NumericsClass numerics = NumericsClass::kPrompt) const;
  // Whether a layer has one softmax over keys for one query, so that what it reads can be weighed
  // by another's attention. If not: why, as a part of a sentence ("dual chunk attention ...").
  bool one_softmax() const { return WhyNotOneSoftmax().empty(); }
  std::string_view WhyNotOneSoftmax() const;
  // Bytes that one sequence of `tokens` cached positions holds while a step of `step_tokens` more
  // is computed.
  int64_t CacheBytes(int64_t tokens, int64_t step_tokens) const;
};

}  // namespace longstride::model

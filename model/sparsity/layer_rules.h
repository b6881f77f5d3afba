// Which layers a plan's rule covers, and rules made of head tables.
#pragma once

#include <cstdint>

#include "config/base/status.h"
#include "config/sparsity_policy.h"
#include "model/model_spec.h"

namespace longstride::model {

// What the checkpoint itself does in a layer, where `max_context` positions are served.
NativeKind KindOf(const AttentionSpec& attention, int32_t max_context);

bool Covers(const LayerRule& rule, const ModelSpec& spec, int32_t layer, int32_t max_context);

// INVALID_ARGUMENT: the rule names layers that do not exist.
absl::Status CheckLayers(const LayerRule& rule, const ModelSpec& spec);

// The policy with every rule that has a head table replaced by rules for the layers it covers, one
// per pattern. INVALID_ARGUMENT: the table was made for another checkpoint, has another shape, or
// says nothing of a layer that the rule covers.
absl::StatusOr<SparsityPolicy> ExpandHeadTables(const SparsityPolicy& policy, const ModelSpec& spec,
                                                int32_t max_context);

}  // namespace longstride::model

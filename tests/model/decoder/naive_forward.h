// A forward pass written from ModelSpec's comments: one sequence, double precision, full score
// matrices, no cache, no kernels. The oracle of the decoder's tests.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "model/model_spec.h"

namespace longstride::model {

using Rows = std::vector<std::vector<double>>;

struct NaiveOutput {
  Rows hidden;  // after the output norm
  Rows logits;
};

// visible(layer, head, i, j): whether the query at i reads the key at j. Not asked of layers that
// sum several attentions by gates: they compute what the checkpoint says.
using Visible = std::function<bool(int32_t, int32_t, int64_t, int64_t)>;

// Sees a layer's queries and keys ([tokens][heads * head_dim]) before `visible` is asked about it.
using Watch = std::function<void(int32_t layer, const Rows& queries, const Rows& keys)>;

NaiveOutput NaiveForward(const ModelSpec& spec, const std::vector<int32_t>& tokens,
                         const Visible& visible, int32_t rope_variant = 0,
                         const Watch& watch = nullptr);

// What the checkpoint itself says.
bool NativeVisible(const ModelSpec& spec, int32_t layer, int64_t i, int64_t j);

}  // namespace longstride::model

// What becomes of attention that was computed in parts: one softmax over disjoint sets of keys, or
// a sum of several attentions, each weighted by a gate. Plain structs (.cu-safe).
#pragma once

#include <cstdint>

#include "kernels/tensor_view.h"

namespace longstride::kernels {

// One softmax of attention that was computed over disjoint sets of keys: with out_i and lse_i of
// part i as AttentionParams (op_params.h) says, m = max_i lse_i[r,h] and w_i = exp(lse_i[r,h] - m),
//   out[r,h] = sum_i w_i out_i[r,h] / sum_i w_i
// in float32, parts in order. A part that sees nothing changes no bit; where none sees anything out
// is a zero row.
inline constexpr int32_t kMaxAttentionParts = 3;
struct MergeAttentionParams {
  int32_t num_parts = 0;                      // 1 .. kMaxAttentionParts
  TensorView parts[kMaxAttentionParts] = {};  // [rows, heads, head_dim]
  const float* lse[kMaxAttentionParts] = {};  // [rows, heads]
  TensorView out = {};                        // [rows, heads, head_dim]
};

// The sum of parts, each a softmax of its own, weighted by gates of the row and head:
//   out[r,h] = sum_i sigmoid(gates[r, h * num_parts + i]) parts_i[r,h]
// in float32, parts in order. Source: NSA (arXiv 2502.11089).
struct GateAttentionParams {
  int32_t num_parts = 0;                      // 1 .. kMaxAttentionParts
  TensorView parts[kMaxAttentionParts] = {};  // [rows, heads, head_dim]
  TensorView gates = {};                      // [rows, heads * num_parts], before the sigmoid
  TensorView out = {};                        // [rows, heads, head_dim]
};

}  // namespace longstride::kernels

// A ModelSpec's matrices in a backend's own form: query, key and value projections as one weight,
// gate and up as one.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "config/base/status.h"
#include "kernels/backend.h"
#include "model/model_spec.h"

namespace longstride::model {

struct PreparedLayer {
  // [(heads + 2 * KV heads) * head_dim, dim]; of latent attention [q_rank + kv_rank + rope_dim,
  // dim]
  std::unique_ptr<kernels::LinearWeight> qkv;
  // Global tokens' queries [heads * head_dim, dim], and the keys and values that they read [2 * KV
  // heads * head_dim, dim], where these are projected apart.
  std::unique_ptr<kernels::LinearWeight> global_q, global_kv;
  std::unique_ptr<kernels::LinearWeight> q_up;                           // latent attention's
  std::vector<std::unique_ptr<kernels::LinearWeight>> key_up, value_up;  // [heads]
  // An indexer's: [heads * head_dim, q_rank], and keys above its heads' weights [head_dim + heads,
  // dim].
  std::unique_ptr<kernels::LinearWeight> index_q, index_keys;
  std::unique_ptr<kernels::LinearWeight> o;
  std::unique_ptr<kernels::LinearWeight>
      gate_up;  // [2 * ffn, dim], or [ffn, dim] without a gate; the shared expert's in a mixture
  std::unique_ptr<kernels::LinearWeight> down;
  std::unique_ptr<kernels::LinearWeight> router;
  std::vector<std::unique_ptr<kernels::LinearWeight>> experts;  // owners of the two below
  std::vector<const kernels::LinearWeight*> expert_gate_up;
  std::vector<const kernels::LinearWeight*> expert_down;
  // No data where the layer has none, and what they view, on the host.
  kernels::TensorView qkv_bias, gate_up_bias, global_kv_bias;
  std::vector<float> joined_qkv_bias, joined_gate_up_bias, joined_global_kv_bias;
};

struct PreparedWeights {
  std::vector<PreparedLayer> layers;
  std::unique_ptr<kernels::LinearWeight> lm_head;  // null: an encoder's
  int64_t owned_bytes = 0;
};

// `release` is called for each view that the backend does not read again. The embedding table of a
// tied checkpoint is still read, a row at a time, after that.
absl::StatusOr<PreparedWeights> PrepareWeights(
    kernels::Backend* backend, const ModelSpec& spec,
    const std::function<void(const kernels::TensorView&)>& release);

// A vector as a [n] view; no data where it is empty.
kernels::TensorView VectorView(const std::vector<float>& values);

}  // namespace longstride::model

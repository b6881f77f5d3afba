// The kernels around a mixture of experts' matrix products. Plain structs; device memory.
//
// (row, rank) pairs are sorted by expert, then by pair: each expert's rows are consecutive and begin
// at a multiple of 8. Nothing is known to the host but upper bounds.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/linear/product.h"
#include "kernels/op_params.h"

namespace longstride::kernels::cuda {

inline constexpr int kMaxExperts = 512;
inline constexpr int kMaxTables = 4;  // packed weights of one expert: segments of both products

struct MoeRouting {
  int64_t rows = 0;
  int32_t experts = 0;
  int32_t top_k = 0;
  ExpertScoring scoring = ExpertScoring::kSoftmaxOfTopK;
  bool renormalize = true;
  const float* selection_bias = nullptr;  // [experts] or null
  ExpertGroups groups;
  float weight_scale = 1.0f;
  const float* logits = nullptr;  // [rows, experts]
  int64_t logits_stride = 0;
  int32_t tile_rows = 0;  // of a GroupTile
  int64_t sorted_rows = 0;  // room for pairs and padding
  // Written:
  int32_t* pair_expert = nullptr;   // [rows * top_k]
  float* pair_weight = nullptr;     // [rows * top_k]
  int32_t* pair_position = nullptr; // [rows * top_k]: sorted row of each pair
  int32_t* source_rows = nullptr;   // [sorted_rows]: row of x, -1 where there is none
  float* factors = nullptr;         // [sorted_rows]: weight of the input; only for kSigmoidInput
  int32_t* counts = nullptr;        // [kMaxExperts]
  int32_t* begin = nullptr;         // [kMaxExperts]
  GroupTile* tiles = nullptr;
  int32_t* num_tiles = nullptr;
};
cudaError_t LaunchRouting(const MoeRouting& r, cudaStream_t stream);

// Copies host pointers into `out` [tables][kMaxExperts] on the stream.
struct WeightTables {
  const uint8_t* weights[kMaxTables][kMaxExperts] = {};
};
cudaError_t LaunchFillTables(const WeightTables& tables, const uint8_t** out, cudaStream_t stream);

// out[i, :] = factors[i] * x[source_rows[i], :], float32; rows without a source are not written.
cudaError_t LaunchGatherFloats(const TensorView& x, const MoeRouting& r, float* out,
                               cudaStream_t stream);

// out[row, :] (+)= sum over ascending rank of weight * expert_out[position of the pair, :].
struct MoeCombine {
  const MoeRouting* routing = nullptr;
  const float* expert_out = nullptr;  // [sorted_rows, dim]
  TensorView out;                     // [rows, dim] f32, f16 or bf16
  bool accumulate = false;
};
cudaError_t LaunchCombine(const MoeCombine& c, cudaStream_t stream);

}  // namespace longstride::kernels::cuda

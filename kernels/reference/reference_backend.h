// Plain float32 on one thread: the specification that every other backend is tested against.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace longstride::kernels {

// Keeps the views it was made from; rows are dequantised when they are used.
class ReferenceLinearWeight : public LinearWeight {
 public:
  ReferenceLinearWeight(std::span<const TensorView> parts, int64_t rows, int64_t cols)
      : LinearWeight(rows, cols), parts_(parts.begin(), parts.end()) {}
  // Writes row `n` (0 .. rows) as cols float32.
  void ReadRow(int64_t n, float* out) const;

 private:
  std::vector<TensorView> parts_;
};

class ReferenceBackend : public Backend {
 public:
  Device device() const override { return Device::kCpu; }
  std::string Describe() const override { return "reference (float32, 1 thread)"; }
  absl::StatusOr<Buffer> Allocate(int64_t bytes) override { return Buffer::AllocateHost(bytes); }
  absl::StatusOr<Buffer> Reserve(int64_t bytes) override { return Buffer::ReserveHost(bytes); }

 protected:
  absl::StatusOr<std::unique_ptr<LinearWeight>> DoPrepareLinear(std::span<const TensorView> parts,
                                                                bool* keeps_views) override;
  absl::Status DoEmbedding(const EmbeddingParams& p) override;
  absl::Status DoRmsNorm(const RmsNormParams& p) override;
  absl::Status DoLayerNorm(const LayerNormParams& p) override;
  absl::Status DoLinear(const LinearParams& p) override;
  absl::Status DoRope(const RopeParams& p) override;
  absl::Status DoPositionScale(const PositionScaleParams& p) override;
  absl::Status DoKvWrite(const KvWriteParams& p) override;
  absl::Status DoAttention(const AttentionParams& p) override;
  absl::Status DoMergeAttention(const MergeAttentionParams& p) override;
  absl::Status DoGateAttention(const GateAttentionParams& p) override;
  absl::Status DoSummarizePages(const PageSummaryParams& p) override;
  absl::Status DoSelectPages(const SelectPagesParams& p) override;
  absl::Status DoSelectTokens(const SelectTokensParams& p) override;
  absl::Status DoGatedActivation(const GatedActivationParams& p) override;
  absl::Status DoAdd(const AddParams& p) override;
  absl::Status DoSoftcap(const SoftcapParams& p) override;
  absl::Status DoGatherRows(const GatherRowsParams& p) override;
  absl::Status DoMoe(const MoeParams& p) override;
};

// activation(gate) * up for one element; see Activation.
float GatedActivationValue(Activation activation, float gate, float up, float limit);

// One head's part of MergeAttention (float32 out).
void MergeAttentionRow(const MergeAttentionParams& p, int64_t row, int64_t head);
// One head's part of GateAttention.
void GateAttentionRow(const GateAttentionParams& p, int64_t row, int64_t head);

// The experts of one row by descending score, ties to the lower index, with their weights, exactly
// as MoeParams says. Both outputs have top_k elements.
void RouteExperts(const MoeParams& p, int64_t row, int32_t* experts, float* weights);

std::unique_ptr<Backend> MakeReferenceBackend();

}  // namespace longstride::kernels

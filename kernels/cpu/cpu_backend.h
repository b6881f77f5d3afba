// The CPU backend: threads, SIMD chosen at run time, quantised weights.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/thread_pool.h"

namespace longstride::kernels {

// INVALID_ARGUMENT: an instruction set that is unknown or that the processor lacks, or a thread
// count outside 0 .. 1024.
absl::StatusOr<std::unique_ptr<Backend>> MakeCpuBackend(const BackendOptions& options);

namespace cpu {

// A weight as panels of 16 rows; one segment for each part it was made of.
class CpuLinearWeight : public LinearWeight {
 public:
  struct Segment {
    DType dtype;
    int64_t row_begin;  // first output row
    int64_t rows;
    int64_t panel_begin;  // first panel, counted over the whole weight
    int64_t panels;
    int64_t panel_bytes;
    int64_t offset;  // bytes into the buffer
  };

  CpuLinearWeight(int64_t rows, int64_t cols, std::vector<Segment> segments, Buffer buffer);

  const std::vector<Segment>& segments() const { return segments_; }
  int64_t num_panels() const { return num_panels_; }
  // Any segment that multiplies int8 activations / float32 activations.
  bool has_quantized() const { return has_quantized_; }
  const uint8_t* data() const { return buffer_.as<uint8_t>(); }

 private:
  std::vector<Segment> segments_;
  Buffer buffer_;
  int64_t num_panels_ = 0;
  bool has_quantized_ = false;
};

// Cosines and sines of one (frequencies, positions, scale), kept from call to call: every layer of
// a step asks for the same few.
class RopeTables {
 public:
  struct Table {
    std::vector<float> inv_freq;
    std::vector<int32_t> positions;
    float scale = 0.0f;
    std::vector<float> cos;  // [rows, num_frequencies], times scale
    std::vector<float> sin;
    int64_t last_used = 0;
  };
  // The table for a call of `rows` rows; computed (on `pool`) if none of the last few matches.
  const Table& Get(const RopeParams& p, ThreadPool& pool);

 private:
  static constexpr int kTables = 4;
  Table tables_[kTables];
  int64_t clock_ = 0;
};

struct AttentionPlan;

class CpuBackend : public Backend {
 public:
  CpuBackend(const CpuKernels& kernels, int num_threads);
  ~CpuBackend() override;

  Device device() const override { return Device::kCpu; }
  std::string Describe() const override;
  absl::StatusOr<Buffer> Allocate(int64_t bytes) override { return Buffer::AllocateHost(bytes); }
  absl::StatusOr<Buffer> Reserve(int64_t bytes) override { return Buffer::ReserveHost(bytes); }

 private:
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

  // Calls fn(row) for each row; on all threads where the rows hold enough elements to pay for it.
  template <typename Fn>
  void ForRows(int64_t rows, int64_t elements_per_row, const Fn& fn) {
    constexpr int64_t kElementsOfTask = 16384;
    const int64_t per_task =
        std::max<int64_t>(1, kElementsOfTask / std::max<int64_t>(1, elements_per_row));
    pool_.ParallelFor((rows + per_task - 1) / per_task, [&](int64_t task, int) {
      const int64_t end = std::min(rows, (task + 1) * per_task);
      for (int64_t r = task * per_task; r < end; ++r) fn(r);
    });
  }

  QuantizedRows Quantize(const TensorView& x);
  absl::Status SelectByShares(const SelectPagesParams& p);
  absl::Status SelectOfTiles(const SelectPagesParams& p, int32_t first_tile, int32_t end_tile);
  absl::Status ChooseTokens(const SelectTokensParams& p, int32_t first_tile, int32_t end_tile,
                            int64_t num_scores);

  const CpuKernels& kernels_;
  ThreadPool pool_;
  std::vector<Scratch> thread_scratch_;  // one per thread
  Scratch quantized_;                    // activations of the current Linear
  Scratch moe_;
  RopeTables rope_tables_;
  std::unique_ptr<AttentionPlan> attention_plan_;
  Scratch attention_partials_;
  Scratch page_scores_;
};

}  // namespace cpu
}  // namespace longstride::kernels

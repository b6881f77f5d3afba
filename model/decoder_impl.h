// The one implementation of Decoder: decoder.cpp holds the forward pass, decoder_attention.cpp and
// decoder_mlp.cpp its two halves, decoder_latent.cpp what latent attention does instead of the
// former's projections. Internal to model/.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "config/base/clock.h"
#include "model/decoder.h"
#include "model/decoder_weights.h"
#include "model/device_choices.h"
#include "model/dual_chunk_step.h"
#include "model/global_rows.h"
#include "model/ranked_selection.h"
#include "model/step_layout.h"

namespace longstride::model {

// Adds the time until its end to a counter.
class Timed {
 public:
  explicit Timed(int64_t* nanos) : nanos_(nanos), start_(Clock::Real()->MonotonicNanos()) {}
  ~Timed() { *nanos_ += Clock::Real()->MonotonicNanos() - start_; }
  Timed(const Timed&) = delete;
  Timed& operator=(const Timed&) = delete;

 private:
  int64_t* nanos_;
  int64_t start_;
};

// A matrix in memory of a backend.
inline kernels::TensorView MatrixIn(const kernels::Buffer& buffer, int64_t rows, int64_t cols,
                                    kernels::DType dtype = kernels::DType::kF32) {
  kernels::TensorView view = kernels::TensorView::Matrix(buffer.data(), dtype, rows, cols);
  view.device = buffer.device();
  return view;
}

// `cols` columns of a matrix, from `first`.
inline kernels::TensorView Columns(const kernels::TensorView& m, int64_t first, int64_t cols) {
  kernels::TensorView view = m;
  view.data = static_cast<char*>(m.data) + first * kernels::BlockBytes(m.dtype);
  view.shape[1] = cols;
  return view;
}

// `heads * head_dim` columns of a matrix, from `first`, as [rows, heads, head_dim].
inline kernels::TensorView Heads(const kernels::TensorView& m, int64_t first, int64_t heads,
                                 int64_t head_dim) {
  kernels::TensorView view = Columns(m, first, head_dim);
  view.rank = 3;
  view.shape[1] = heads;
  view.shape[2] = head_dim;
  view.strides[1] = head_dim;
  view.strides[2] = 1;
  return view;
}

// What does not depend on the plan: weights and tables on the backend. Immutable once made, shared
// by decoders with different plans.
struct ResidentModel {
  ModelSpec spec;
  std::vector<std::vector<const float*>> rope_frequencies;  // [rope][variant]
  PreparedWeights weights;
};

class DecoderImpl : public Decoder {
 public:
  DecoderImpl(kernels::Backend* backend, const ModelSpec* spec, const SparsityPlan* plan,
              KvCache* cache, int32_t max_step_tokens);
  absl::Status Init(const std::function<void(const kernels::TensorView&)>& release);
  absl::Status InitSharing(std::shared_ptr<const ResidentModel> resident);

  absl::StatusOr<std::unique_ptr<Decoder>> WithPlan(const SparsityPlan* plan, KvCache* cache,
                                                    int32_t max_step_tokens) const override;
  void SetObserver(AttentionObserver* observer) override { observer_ = observer; }
  absl::Status Forward(const ModelInput& input, ModelOutput* output) override;
  absl::Status DryRun(int32_t sequences, int32_t context) override;
  int64_t weight_bytes() const override { return resident_->weights.owned_bytes; }
  int64_t workspace_bytes() const override { return work_.bytes; }
  int32_t max_logits_rows() const override { return limits_.max_logits_rows; }

 private:
  using TensorView = kernels::TensorView;

  // Query heads of all layers.
  struct HeadCount {
    int64_t all = 0;
    int64_t first_part = 0;  // those of segments that are their layer's first part
  };

  // Activations of one step: [max_step_tokens, width] each.
  struct Workspace {
    kernels::Buffer stream, normed, qkv, attended, branch, gate_up, router;
    // Latent attention: absorbed queries, and what heads have before (queries) and after it
    // (values).
    kernels::Buffer latent_query, unabsorbed;
    // An indexer's queries; its keys and, behind them, the weights of its heads.
    kernels::Buffer index_query, index_keys;
    // Global tokens that are projected apart: what their branch reads, their queries and what these
    // attended.
    kernels::Buffer global_input, global_query, global_attended;
    // The rows kept behind the last layer's keys and values, and the outputs: touched when used.
    kernels::Buffer last_stream, last_normed, last_query, hidden, logits;
    // Of attention in parts: their outputs and, where they are of one softmax, log-sum-exps, one
    // behind the other; gates of the rows kept.
    kernels::Buffer parts, parts_lse, last_gates;
    int64_t bytes = 0;
  };

  absl::Status CheckSpec() const;
  void FindRankedSegments();
  static void CountHeads(const HeadSegment& segment, HeadCount* count);
  int32_t RankedIndex(const HeadSegment& segment);
  // Patterns and groups that each layer uses, workspace.
  absl::Status InitStep();
  // Has the backend hold the vectors and tables of the spec.
  absl::Status MakeResident(ResidentModel* resident) const;
  absl::Status AllocateWorkspace();
  // The part of it that follows from what the prepared weights take.
  void BeginStep(ModelOutput* output);
  absl::Status SelectKeys();
  void CountWholePages();
  // Room for the lists that one layer's queries make.
  absl::Status ReservePageLists();
  // Tells the backend which host arrays the step's ops read.
  void NameArrays();
  // What else the ops of a repeatable step follow from.
  std::string RepeatKey() const;
  absl::Status Compute();
  absl::Status Embed();
  absl::Status RunLayer(size_t l);
  absl::Status Finish();
  // Compute, or what it would leave behind where a replay did its work.
  absl::Status ComputeRepeatable(ModelOutput* output);
  absl::Status CountReplayed();
  // Computes layout_ and the selections as they are, whatever comes out.
  absl::Status RunDry();
  // Ends the step; choices that the device can make are made there.
  absl::Status Deliver(const ModelInput& input, int32_t num_logits, ModelOutput* output);
  absl::StatusOr<std::span<const kernels::SampleResult>> Choose(const ModelInput& input);

  // Attention (decoder_attention.cpp). qkv is [rows, (heads + 2 * KV heads) * head_dim + heads *
  // gates].
  // Writes the layer's keys and values of h_ to the cache; its queries [rows, heads * head_dim].
  absl::Status Project(size_t l, TensorView* query);
  absl::Status NormHeads(const LayerSpec& layer, const TensorView& qkv);
  absl::Status RmsNormQk(const AttentionSpec& a, const TensorView& x, const TensorView& weight);
  absl::Status Rotate(const LayerSpec& layer, const TensorView& qkv);
  // rope: index into ModelSpec::ropes, or -1.
  absl::Status RotateHeads(int32_t rope, const TensorView& heads);
  // A layer's pages in one of its groups.
  kernels::PagedKv CacheOf(size_t l, int32_t group) const;
  // [rows, KV heads * head_dim] each.
  absl::Status WriteKv(size_t l, const TensorView& keys, const TensorView& values);
  // Makes the lists of the layer's query-dependent patterns.
  absl::Status RankPages(size_t l, const TensorView& query);
  absl::Status KeepWantedRows(TensorView* query);
  // In parts where the layer has several: those of dual chunk attention are of one softmax over
  // three sets of keys, for each of which the queries are rotated on (and left so); those of a plan
  // (LayerPlan::parts) are attentions of their own, summed by gates.
  absl::Status Attend(size_t l, const TensorView& query, const TensorView& out);
  // One part. lse: [rows, heads] for each segment, one behind the other, or null.
  absl::Status AttendPart(size_t l, const TensorView& query, int part, const TensorView& out,
                          float* lse);
  absl::Status TurnQueries(const AttentionSpec& a, const TensorView& query, int part);
  absl::Status MergeParts(size_t l, int num_parts, const TensorView& out);
  absl::Status GateParts(size_t l, int num_parts, const TensorView& out);
  TensorView PartOut(int part, int64_t width) const;
  float* PartLse(int part, int64_t heads) const;

  // Rows that a layer attends together: of the step or its wanted ones, without global tokens that
  // are projected apart.
  const std::vector<QueryRun>& AttendedRuns(bool wanted) const {
    if (global_) return wanted ? global_->local_wanted_runs() : global_->local_runs();
    return wanted ? layout_.wanted_runs : layout_.runs;
  }
  // One segment's call over all of its keys.
  kernels::AttentionParams AttentionOf(size_t l, const HeadSegment& segment,
                                       const TensorView& query,
                                       const kernels::KvSelection& selection,
                                       const TensorView& out);
  // Attends the global tokens of h_ in projections of their own; then puts what they attended into
  // the rows of `attended`. What they read is in the cache's pages until the others' keys are
  // written there.
  absl::Status AttendGlobal(size_t l);
  absl::Status PlaceGlobal(const TensorView& attended);

  // Latent attention (decoder_latent.cpp): Project's other form; from what was attended in the
  // latents' space to the heads' values [rows, heads * value_dim].
  absl::Status ProjectLatent(size_t l, TensorView* query);
  absl::Status ExpandValues(size_t l, TensorView* attended);
  // The indexer of a layer whose plan asks it: writes the keys of h_ to the cache, leaves queries
  // (from their latents) and weights in the workspace.
  absl::Status ProjectIndex(size_t l, const TensorView& q_latents);
  // Makes lists of tokens by them.
  absl::Status RankTokens(size_t l, int32_t group, const RankedSelection& ranked, int32_t* entries);

  // Branches into the residual stream (decoder_mlp.cpp).
  absl::Status Norm(const TensorView& x, const TensorView& weight, const TensorView& bias,
                    kernels::DType type, TensorView* out);
  absl::Status NormInto(const TensorView& x, const TensorView& weight, const TensorView& bias,
                        const TensorView& out);
  absl::Status Linear(const TensorView& x, const kernels::LinearWeight* weight,
                      const TensorView& bias, const TensorView& out, bool accumulate = false);
  struct PostNorm {
    const TensorView& weight;
    const TensorView& bias;
  };
  absl::Status AddProjected(const TensorView& input, const kernels::LinearWeight* weight,
                            const TensorView& bias, const PostNorm& norm);
  absl::Status AddBranch(const TensorView& branch, const PostNorm& norm);
  // The residual stream after a branch, with norm_sums.
  absl::Status NormSum(const PostNorm& norm);
  absl::StatusOr<TensorView> Activated(const LayerSpec& layer, const PreparedLayer& w);
  absl::Status AddMlp(const LayerSpec& layer, const PreparedLayer& w);
  absl::Status AddExperts(const LayerSpec& layer, const PreparedLayer& w);

  // Replaces *x by its `rows`, copied to the start of `to`.
  absl::Status Gather(TensorView* x, const std::vector<int32_t>& rows, const kernels::Buffer& to);
  absl::Status TakeRows(const TensorView& x, const std::vector<int32_t>& rows,
                        const kernels::Buffer& to, TensorView* out);
  TensorView Rows(const kernels::Buffer& buffer, int64_t width,
                  kernels::DType dtype = kernels::DType::kF32) const {
    return MatrixIn(buffer, rows_, width, dtype);
  }

  kernels::Backend* backend_;
  const ModelSpec* spec_;  // resident_'s once that is made
  std::shared_ptr<const ResidentModel> resident_;
  const SparsityPlan* plan_;
  KvCache* cache_;
  StepLimits limits_;
  Workspace work_;
  std::vector<std::vector<int32_t>> layer_groups_;              // [layer] groups it writes to
  std::vector<bool> used_before_last_, used_in_last_;           // [pattern]
  std::vector<HeadCount> pattern_heads_;                        // [pattern] of all layers
  std::vector<SelectionBuilder> selections_, last_selections_;  // [pattern]
  // Query-dependent patterns, once for each number of list heads in use, and which of them a layer's
  // segments read: -1 where the pattern is a static one.
  std::vector<RankedSelection> ranked_, last_ranked_;
  std::vector<int32_t> ranked_pattern_;             // [ranked]
  std::vector<HeadCount> ranked_heads_;             // [ranked] query heads of all layers
  std::vector<std::vector<int32_t>> layer_ranked_;  // [layer][segment]
  bool lists_follow_from_lengths_ = true;           // how long they are
  kernels::Buffer page_lists_;                      // of one layer
  std::optional<DualChunkStep> dual_chunk_;         // where the model has it
  bool reads_means_ = false;                        // some pattern
  std::optional<GlobalRows> global_;                // where global tokens are projected apart

  // The step being computed.
  StepLayout layout_;
  std::vector<int32_t>
      whole_pages_;  // [sequences] pages whose keys are all there, for reads_means_
  std::vector<kernels::PageTable> page_tables_;  // [group]
  std::vector<kernels::HostArray> arrays_;
  TensorView x_;       // the residual stream
  TensorView h_;       // what the branch being computed reads: x_, normed where the layer says so
  TensorView gates_;   // of the attention being computed [rows, heads * gates]; no data without
  TensorView hidden_, logits_;  // what was asked for
  DeviceChoices choices_;
  std::vector<size_t> choice_of_;  // [choices_] index into the input's
  int32_t rows_ = 0;   // rows still computed: all, or behind the last layer's KV the wanted ones
  bool last_ = false;  // rows_ are the wanted ones
  StepTimes* times_ = nullptr;
  std::vector<PatternCounters>* counters_ = nullptr;
  std::vector<kernels::AttentionCounters> keys_;  // [pattern] of the step; complete when it ended
  AttentionObserver* observer_ = nullptr;
};

}  // namespace longstride::model

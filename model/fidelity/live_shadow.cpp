#include "model/fidelity/live_shadow.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "config/base/check.h"
#include "config/base/clock.h"
#include "config/base/logging.h"
#include "config/base/strings.h"
#include "kernels/quant.h"

namespace longstride::model::fidelity {
namespace {

using kernels::TensorView;

// Whether pages kept by one rule hold all that the other's queries read.
bool Keeps(const Retention& kept, const Retention& read) {
  if (kept.keeps_all()) return true;
  if (kept.window > 0 && (read.window == 0 || read.window > kept.window)) return false;
  if (kept.chunk > 0 && read.chunk != kept.chunk) return false;
  return read.sink_tokens <= kept.sink_tokens;
}

// Whether a pattern's lists are the same for all heads.
bool SharesLists(const SparsePattern& pattern) {
  const QueryRun run{.num_rows = 1, .numerics = NumericsClass::kGenerated};
  SelectionBuilder selection;
  pattern.Select({&run, 1}, &selection);
  return selection.list_heads == kernels::ListHeads::kShared;
}

TensorView OneRow(float* data, kernels::Device device, int64_t heads, int64_t head_dim) {
  const int64_t shape[3] = {1, heads, head_dim};
  return TensorView::Contiguous(data, kernels::DType::kF32, shape, 3, device);
}

// Row `row` of a tensor of rows.
TensorView RowOf(const TensorView& t, int64_t row) {
  TensorView one = t;
  one.shape[0] = 1;
  one.data = t.ptr<char>() + row * t.strides[0] * kernels::BlockBytes(t.dtype);
  return one;
}

// The tile that has the row; num_tiles: none has.
int32_t TileOf(const kernels::KvSelection& s, int64_t row) {
  int32_t tile = 0;
  while (tile < s.num_tiles && (row < s.tiles[tile].row_begin ||
                                row >= s.tiles[tile].row_begin + s.tiles[tile].num_rows)) {
    ++tile;
  }
  return tile;
}

float At(const TensorView& t, int64_t i) {
  if (t.dtype == kernels::DType::kF32) return t.ptr<float>()[i];
  const uint16_t bits = t.ptr<uint16_t>()[i];
  return t.dtype == kernels::DType::kBF16 ? kernels::Bfloat16ToFloat(bits)
                                          : kernels::HalfToFloat(bits);
}

}  // namespace

absl::StatusOr<std::unique_ptr<LiveShadow>> LiveShadow::Create(kernels::Backend* backend,
                                                               const SparsityPlan* plan,
                                                               SparsityPlan baseline,
                                                               double sample_rate) {
  if (!plan->one_softmax()) {
    return absl::InvalidArgumentError(
        StrCat("live fidelity compares one attention call of a layer with another, but ",
               plan->WhyNotOneSoftmax(), "; set fidelity.sample_rate to 0."));
  }
  std::unique_ptr<LiveShadow> shadow(
      new LiveShadow(backend, plan, std::move(baseline), sample_rate));
  RETURN_IF_ERROR(shadow->AllocateSamples());
  return shadow;
}

LiveShadow::LiveShadow(kernels::Backend* backend, const SparsityPlan* plan, SparsityPlan baseline,
                       double sample_rate)
    : backend_(backend), plan_(plan), baseline_(std::move(baseline)), sample_rate_(sample_rate) {
  LS_CHECK_EQ(plan_->layers.size(), baseline_.layers.size());
  watched_.resize(plan_->layers.size());
  for (size_t l = 0; l < plan_->layers.size(); ++l) {
    for (const HeadSegment& segment : plan_->layers[l].segments) Watch(l, segment);
    const bool any = std::any_of(watched_[l].begin(), watched_[l].end(),
                                 [](const SparsePattern* pattern) { return pattern != nullptr; });
    if (any) layers_.push_back(static_cast<int32_t>(l));
  }
}

// Every step has the same few samples at most, of the plan's widest segments.
absl::Status LiveShadow::AllocateSamples() {
  size_t most = 0;
  int64_t bytes = 0;
  for (const LayerPlan& layer : plan_->layers) {
    most = std::max(most, layer.segments.size());
    for (const HeadSegment& segment : layer.segments) {
      const int64_t dim = plan_->groups[static_cast<size_t>(segment.group)].head_dim;
      bytes = std::max(bytes, segment.query.count * (2 * dim + 2) * int64_t{sizeof(float)});
    }
  }
  for (size_t i = 0; i < most * kLayersPerStep; ++i) {
    samples_.push_back(std::make_unique<Sample>());
    ASSIGN_OR_RETURN(samples_.back()->memory, backend_->Allocate(bytes));
  }
  return absl::OkStatus();
}

void LiveShadow::Watch(size_t layer, const HeadSegment& segment) {
  const SparsePattern* found = nullptr;
  std::string why = "the baseline's patterns are cut at other heads";
  for (const HeadSegment& own : baseline_.layers[layer].segments) {
    if (segment.query.first < own.query.first ||
        segment.query.first + segment.query.count > own.query.first + own.query.count) {
      continue;
    }
    const SparsePattern& pattern = *baseline_.patterns[static_cast<size_t>(own.pattern)];
    const bool ranked = plan_->patterns[static_cast<size_t>(segment.pattern)]->ranking() != nullptr;
    if (pattern.ranking() != nullptr) {
      why = "the baseline chooses keys by its queries";
    } else if (ranked && !pattern.edges_alone() && backend_->device() != kernels::Device::kCpu) {
      why = "the plan's lists lie on the device, and the baseline's keys are not those of a window";
    } else if (!Keeps(plan_->groups[static_cast<size_t>(segment.group)].retention,
                      pattern.retention())) {
      why = "the plan frees pages that the baseline would read";
    } else if (segment.query.count == own.query.count || SharesLists(pattern)) {
      found = &pattern;
    }
  }
  watched_[layer].push_back(found);
  if (found == nullptr && reason_.find(why) == std::string::npos) {
    StrAppend(&reason_, reason_.empty() ? "" : "; ", why);
  }
}

bool LiveShadow::Begin(const ModelInput& input) {
  const auto generates = [](const InputRun& run) {
    return run.numerics == NumericsClass::kGenerated;
  };
  const int64_t count = std::count_if(input.runs.begin(), input.runs.end(), generates);
  if (count == 0 || layers_.empty()) return false;
  due_ += sample_rate_;
  if (due_ < 1) return false;
  due_ -= 1;
  int64_t skip = num_sampled_ % count;
  for (const InputRun& run : input.runs) {
    if (generates(run) && skip-- == 0) sequence_ = run.sequence;
  }
  step_layers_.clear();
  const auto layers = static_cast<int64_t>(layers_.size());
  for (int64_t i = 0; i < std::min<int64_t>(kLayersPerStep, layers); ++i) {
    step_layers_.push_back(
        layers_[static_cast<size_t>((num_sampled_ * kLayersPerStep + i) % layers)]);
  }
  ++num_sampled_;
  report_ = {};
  num_samples_ = 0;
  return true;
}

ShadowReport LiveShadow::Take() {
  for (size_t i = 0; i < num_samples_; ++i) Finish(samples_[i].get());
  num_samples_ = 0;
  return std::exchange(report_, {});
}

void LiveShadow::OnAttention(const AttentionCall& call) {
  if (std::find(step_layers_.begin(), step_layers_.end(), call.layer) == step_layers_.end()) return;
  const auto l = static_cast<size_t>(call.layer);
  const auto s = static_cast<size_t>(call.segment - plan_->layers[l].segments.data());
  const SparsePattern* baseline = watched_[l][s];
  if (baseline == nullptr) return;
  const int64_t start = Clock::Real()->MonotonicNanos();
  for (const QueryRun& run : call.runs) {
    if (run.sequence != sequence_ || run.num_rows == 0) continue;
    const int64_t last = run.num_rows - 1;
    const absl::Status status =
        Measure(call, *baseline, run.row_begin + last, run.first_position + last);
    // The answer itself is not touched by this.
    if (!status.ok()) {
      Log(LogLevel::kWarning, "live fidelity: a sample failed",
          {{"layer", call.layer}, {"error", ToStd(status.message())}});
    }
  }
  report_.nanos += Clock::Real()->MonotonicNanos() - start;
}

kernels::KvSelection LiveShadow::SelectCommon(const AttentionCall& call,
                                              const SparsePattern& baseline, int64_t row,
                                              int64_t position, Sample* sample) {
  const kernels::KvSelection& served = call.params->selection;
  SelectionBuilder& out = sample->common_keys;
  if (!served.entries_made || !baseline.edges_alone()) {
    ListCommonTokens(call, baseline, row, position, sample);
    return out.View();
  }
  out.Clear();
  out.list_heads = served.list_heads;
  out.num_list_heads = served.num_list_heads;
  out.edges.assign(static_cast<size_t>(served.num_list_heads), sample->baseline_keys.edges.front());
  out.tiles = {{.sequence = sequence_,
                .row_begin = 0,
                .num_rows = 1,
                .first_position = static_cast<int32_t>(position)}};
  out.MakeLists();
  const int32_t tile = TileOf(served, row);
  for (int32_t h = 0; h < served.num_list_heads && tile < served.num_tiles; ++h) {
    const int64_t at = int64_t{h} * served.num_tiles + tile;
    out.list_begin[static_cast<size_t>(h)] = served.list_begin[at];
    out.list_count[static_cast<size_t>(h)] = served.list_count[at];
  }
  kernels::KvSelection common = served;
  common.query_tile = 1;
  common.num_tiles = 1;
  common.tiles = out.tiles.data();
  common.list_begin = out.list_begin.data();
  common.list_count = out.list_count.data();
  common.edges = out.edges.data();
  common.max_list_entries = 0;
  return common;
}

void LiveShadow::ListCommonTokens(const AttentionCall& call, const SparsePattern& baseline,
                                  int64_t row, int64_t position, Sample* sample) {
  const kernels::KvSelection& served = call.params->selection;
  const int32_t heads = call.segment->query.count;
  // A baseline whose heads differ needs a list for each.
  const bool per_head = sample->baseline_keys.list_heads != kernels::ListHeads::kShared;
  const int32_t lists = per_head ? heads : served.num_list_heads;
  const int32_t tile = TileOf(served, row);
  SelectionBuilder& out = sample->common_keys;
  out.Clear();
  out.list_heads = per_head ? kernels::ListHeads::kPerQHead : served.list_heads;
  out.num_list_heads = lists;
  out.entry_tokens = 1;
  out.query_tile = 1;
  out.edges.assign(static_cast<size_t>(lists), {});
  out.tiles = {{.sequence = sequence_,
                .row_begin = 0,
                .num_rows = 1,
                .first_position = static_cast<int32_t>(position)}};
  out.MakeLists();
  for (int32_t list = 0; list < lists; ++list) {
    const int32_t head = list * (heads / lists);  // the list's first
    const int32_t from = list * served.num_list_heads / lists;
    const auto begin = static_cast<int64_t>(out.entries.size());
    if (tile < served.num_tiles) {
      const int64_t at = int64_t{from} * served.num_tiles + tile;
      for (int32_t n = 0; n < served.list_count[at]; ++n) {
        const int64_t entry = served.entries[served.list_begin[at] + n];
        if (entry == kernels::kNoEntry) continue;
        const int64_t end = std::min<int64_t>((entry + 1) * served.entry_tokens, position + 1);
        for (int64_t j = entry * served.entry_tokens; j < end; ++j) {
          if (!kernels::EdgeAllows(served.edges[from], position, j)) continue;
          if (!baseline.Visible(call.segment->query.first + head, position, j)) continue;
          out.entries.push_back(static_cast<int32_t>(j));
        }
      }
    }
    out.SetList(list, 0, begin, static_cast<int64_t>(out.entries.size()) - begin);
  }
}

absl::Status LiveShadow::Measure(const AttentionCall& call, const SparsePattern& baseline,
                                 int64_t row, int64_t position) {
  const kernels::AttentionParams& served = *call.params;
  LS_CHECK_LT(num_samples_, samples_.size());
  Sample& sample = *samples_[num_samples_];
  sample.result = {
      .layer = call.layer,
      .segment = static_cast<int32_t>(
          call.segment - plan_->layers[static_cast<size_t>(call.layer)].segments.data())};
  sample.heads = served.q.shape[1];
  sample.dim = served.q.shape[2];
  const int64_t values = sample.heads * sample.dim;
  auto* baseline_out = sample.memory.as<float>();
  float* common_out = baseline_out + values;
  float* baseline_lse = common_out + values;
  const kernels::Device device = backend_->device();

  const QueryRun run{.sequence = sequence_,
                     .num_rows = 1,
                     .first_position = position,
                     .numerics = NumericsClass::kGenerated};
  sample.baseline_keys.Clear();
  baseline.Select({&run, 1}, &sample.baseline_keys);
  kernels::AttentionParams params = served;
  params.q = RowOf(served.q, row);
  params.counters = nullptr;
  params.selection = sample.baseline_keys.View();
  params.out = OneRow(baseline_out, device, sample.heads, sample.dim);
  params.lse = baseline_lse;
  RETURN_IF_ERROR(backend_->Attention(params));
  params.selection = SelectCommon(call, baseline, row, position, &sample);
  params.out = OneRow(common_out, device, sample.heads, sample.dim);
  params.lse = baseline_lse + sample.heads;
  RETURN_IF_ERROR(backend_->Attention(params));

  const int64_t shape[2] = {1, 2 * values + 2 * sample.heads};
  ASSIGN_OR_RETURN(sample.computed, backend_->ToHost(TensorView::Contiguous(
                                        baseline_out, kernels::DType::kF32, shape, 2, device)));
  ASSIGN_OR_RETURN(sample.served, backend_->ToHost(RowOf(served.out, row)));
  if (device == kernels::Device::kCpu) {  // later layers write there
    sample.served_copy.clear();
    for (int64_t h = 0; h < sample.heads; ++h) {
      const float* from = sample.served.ptr<float>() + h * sample.served.strides[1];
      sample.served_copy.insert(sample.served_copy.end(), from, from + sample.dim);
    }
    sample.served = OneRow(sample.served_copy.data(), device, sample.heads, sample.dim);
  }
  ++num_samples_;
  return absl::OkStatus();
}

void LiveShadow::Finish(Sample* sample) {
  const int64_t values = sample->heads * sample->dim;
  const float* expected = sample->computed.ptr<float>();
  const float* baseline_lse = expected + 2 * values;
  const float* common_lse = baseline_lse + sample->heads;
  // Sums of exp over the keys, so that their quotient is the share of the baseline's mass.
  double mass = 0, error = 0, norm = 0;
  for (int64_t h = 0; h < sample->heads; ++h) {
    mass += std::min(1.0, std::exp(static_cast<double>(common_lse[h]) - baseline_lse[h]));
  }
  for (int64_t i = 0; i < values; ++i) {
    const double wanted = expected[i], difference = At(sample->served, i) - wanted;
    error += difference * difference;
    norm += wanted * wanted;
  }
  sample->result.captured_mass = mass / static_cast<double>(sample->heads);
  sample->result.output_error = norm > 0 ? std::sqrt(error / norm) : 0;
  report_.samples.push_back(sample->result);
}

}  // namespace longstride::model::fidelity

#include "model/fidelity/live_shadow.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "config/base/check.h"
#include "config/base/clock.h"
#include "config/base/logging.h"
#include "config/base/strings.h"

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

TensorView OneRow(float* data, int64_t heads, int64_t head_dim) {
  TensorView view = TensorView::Matrix(data, kernels::DType::kF32, 1, head_dim);
  view.rank = 3;
  view.shape[1] = heads;
  view.shape[2] = head_dim;
  view.strides[0] = heads * head_dim;
  view.strides[1] = head_dim;
  view.strides[2] = 1;
  return view;
}

}  // namespace

absl::StatusOr<std::unique_ptr<LiveShadow>> LiveShadow::Create(kernels::Backend* backend,
                                                               const SparsityPlan* plan,
                                                               SparsityPlan baseline,
                                                               double sample_rate) {
  if (backend->device() != kernels::Device::kCpu) {
    return absl::InvalidArgumentError(
        "live fidelity is measured where queries and keys lie in host memory only; set "
        "fidelity.sample_rate to 0 or serve with --device cpu.");
  }
  if (plan->dual_chunk) {
    return absl::InvalidArgumentError(
        "live fidelity compares one attention call of a layer with another, which dual chunk "
        "attention computes in parts; set fidelity.sample_rate to 0.");
  }
  return std::unique_ptr<LiveShadow>(
      new LiveShadow(backend, plan, std::move(baseline), sample_rate));
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

void LiveShadow::Watch(size_t layer, const HeadSegment& segment) {
  const SparsePattern* found = nullptr;
  std::string why = "the baseline's patterns are cut at other heads";
  for (const HeadSegment& own : baseline_.layers[layer].segments) {
    if (segment.query.first < own.query.first ||
        segment.query.first + segment.query.count > own.query.first + own.query.count) {
      continue;
    }
    const SparsePattern& pattern = *baseline_.patterns[static_cast<size_t>(own.pattern)];
    if (pattern.ranking() != nullptr) {
      why = "the baseline chooses keys by its queries";
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
  return true;
}

ShadowReport LiveShadow::Take() { return std::exchange(report_, {}); }

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

void LiveShadow::SelectCommon(const AttentionCall& call, const SparsePattern& baseline, int64_t row,
                              int64_t position) {
  const kernels::KvSelection& served = call.params->selection;
  const int32_t heads = call.segment->query.count;
  // A baseline whose heads differ needs a list for each.
  const bool per_head = baseline_keys_.list_heads != kernels::ListHeads::kShared;
  const int32_t lists = per_head ? heads : served.num_list_heads;
  int32_t tile = 0;
  while (tile < served.num_tiles &&
         (row < served.tiles[tile].row_begin ||
          row >= served.tiles[tile].row_begin + served.tiles[tile].num_rows)) {
    ++tile;
  }
  SelectionBuilder& out = common_keys_;
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
  const int64_t heads = served.q.shape[1];
  const int64_t dim = served.q.shape[2];
  for (std::vector<float>* out : {&baseline_out_, &common_out_}) {
    out->assign(static_cast<size_t>(heads * dim), 0);
  }
  for (std::vector<float>* lse : {&baseline_lse_, &common_lse_}) {
    lse->assign(static_cast<size_t>(heads), 0);
  }
  const QueryRun run{.sequence = sequence_,
                     .num_rows = 1,
                     .first_position = position,
                     .numerics = NumericsClass::kGenerated};
  baseline_keys_.Clear();
  baseline.Select({&run, 1}, &baseline_keys_);
  kernels::AttentionParams params = served;
  params.q.shape[0] = 1;
  params.q.data = served.q.ptr<float>() + row * served.q.strides[0];
  params.counters = nullptr;
  params.selection = baseline_keys_.View();
  params.out = OneRow(baseline_out_.data(), heads, dim);
  params.lse = baseline_lse_.data();
  RETURN_IF_ERROR(backend_->Attention(params));
  SelectCommon(call, baseline, row, position);
  params.selection = common_keys_.View();
  params.out = OneRow(common_out_.data(), heads, dim);
  params.lse = common_lse_.data();
  RETURN_IF_ERROR(backend_->Attention(params));

  // Sums of exp over the keys, so that their quotient is the share of the baseline's mass.
  double mass = 0, error = 0, norm = 0;
  for (int64_t h = 0; h < heads; ++h) {
    const auto i = static_cast<size_t>(h);
    mass += std::min(1.0, std::exp(static_cast<double>(common_lse_[i]) - baseline_lse_[i]));
    const float* out =
        served.out.ptr<float>() + row * served.out.strides[0] + h * served.out.strides[1];
    for (int64_t d = 0; d < dim; ++d) {
      const double expected = baseline_out_[static_cast<size_t>(h * dim + d)];
      error += (out[d] - expected) * (out[d] - expected);
      norm += expected * expected;
    }
  }
  report_.samples.push_back(
      {.layer = call.layer,
       .segment = static_cast<int32_t>(
           call.segment - plan_->layers[static_cast<size_t>(call.layer)].segments.data()),
       .captured_mass = mass / static_cast<double>(heads),
       .output_error = norm > 0 ? std::sqrt(error / norm) : 0});
  return absl::OkStatus();
}

}  // namespace longstride::model::fidelity

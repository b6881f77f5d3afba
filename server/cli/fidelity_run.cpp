#include "server/cli/fidelity_run.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_format.h"
#include "config/base/version.h"
#include "model/fidelity/comparison.h"
#include "model/sparsity/hash.h"
#include "server/cli/fidelity_layers.h"
#include "server/cli/fidelity_progress.h"
#include "server/cli/runtime.h"

namespace longstride::cli {
namespace {

using model::SparsityPlan;
using model::fidelity::BootstrapOptions;
using model::fidelity::CapturedMass;
using model::fidelity::Comparison;
using model::fidelity::Estimate;
using model::fidelity::Lane;
using model::fidelity::LaneOptions;
using model::fidelity::LayerCounters;
using model::fidelity::SpeedSample;
using model::fidelity::TextWindow;

// The model's own cache serves nobody here: its lanes have caches of their own.
constexpr int64_t kUnusedCacheBytes = int64_t{256} << 20;
// Steps of the noise floor: one token, and a page with one token less and more.
const std::vector<int32_t> kNoiseCuts = {1, 63, 64, 65};
constexpr size_t kNoiseWindows = 2;
constexpr int kSpeedRepetitions = 3;
constexpr int32_t kSpeedDecodeTokens = 32;

class Runner {
 public:
  Runner(const ServerConfig& config, const FidelityQuestion& question)
      : config_(config), question_(question), bootstrap_{.seed = question.seed} {}

  absl::StatusOr<FidelityReport> Run() {
    RETURN_IF_ERROR(Load());
    RETURN_IF_ERROR(CutText());
    if (question_.target) RETURN_IF_ERROR(Search());
    RETURN_IF_ERROR(MakePlanLane());
    RETURN_IF_ERROR(Compare());
    if (question_.tasks) {
      RETURN_IF_ERROR(AnswerTasks());
    } else {
      report_.tasks_reason = "not asked for";
    }
    RETURN_IF_ERROR(MeasureSpeeds());
    AddNotes();
    progress_.Finish();
    return std::move(report_);
  }

 private:
  absl::Status Load() {
    ServerConfig config = config_;
    config.kv.memory = kUnusedCacheBytes;
    progress_.Update("loading the model", 0, 0);
    ASSIGN_OR_RETURN(model_, LoadModel(config));
    if (!model_->spec().causal) {
      return absl::InvalidArgumentError(
          StrCat("the model ", model_->name(), " is an encoder, and fidelity compares what models "
                 "predict next; give a generating model."));
    }
    if (question_.window_tokens > model_->max_context()) {
      return absl::InvalidArgumentError(StrCat("--window-tokens: got ", question_.window_tokens,
                                               "; this model serves at most ",
                                               model_->max_context(), " tokens."));
    }
    lengths_ = question_.task_lengths;
    if (lengths_.empty()) lengths_ = {question_.window_tokens / 2, question_.window_tokens};
    for (const int32_t length : lengths_) {
      if (length > model_->max_context()) {
        return absl::InvalidArgumentError(StrCat("--task-lengths: got ", length,
                                                 "; this model serves at most ",
                                                 model_->max_context(), " tokens."));
      }
    }
    ASSIGN_OR_RETURN(SparsityPlan native, Resolve(SparsityPolicy{}, model_->options().kv_dtype));
    report_.baseline = Describe(native, R"({"name": "native", "default": {"pattern": "native"}})");
    if (question_.plan) {
      ASSIGN_OR_RETURN(plan_, Resolve(question_.plan->policy, model_->options().kv_dtype));
      report_.plan = Describe(plan_, question_.plan->text);
    }
    ASSIGN_OR_RETURN(baseline_, MakeLane(std::move(native), model_->options().kv_dtype));
    report_.version = Version();
    report_.commit = BuildCommit();
    report_.compiler = BuildCompiler();
    report_.device = model_->backend().Describe();
    report_.seed = question_.seed;
    report_.model = model_->name();
    report_.family = model_->spec().family;
    report_.weights_type = model_->spec().weights_type;
    report_.model_digest = model_->model_digest();
    report_.kv_dtype = kernels::KvDTypeName(model_->options().kv_dtype);
    report_.max_context = model_->max_context();
    return absl::OkStatus();
  }

  absl::StatusOr<SparsityPlan> Resolve(const SparsityPolicy& policy, kernels::KvDType dtype) const {
    return SparsityPlan::Resolve(policy, model_->spec(), dtype, model_->max_context());
  }

  FidelityReport::Plan Describe(const SparsityPlan& plan, const std::string& text) const {
    const int64_t step = config_.scheduler.max_step_tokens;
    const int64_t context = model_->max_context();
    return {.name = plan.name,
            .digest = plan.digest,
            .text = text,
            .kv_bytes_at_context =
                plan.CacheBytes(std::max<int64_t>(0, context - step), std::min(step, context))};
  }

  LaneOptions OptionsOf(kernels::KvDType dtype) const {
    const int32_t longest =
        std::max(question_.window_tokens, *std::max_element(lengths_.begin(), lengths_.end()));
    return {.kv_dtype = dtype,
            .max_tokens = longest,
            .step_tokens = static_cast<int32_t>(config_.scheduler.max_step_tokens)};
  }
  absl::StatusOr<std::unique_ptr<Lane>> MakeLane(SparsityPlan plan, kernels::KvDType dtype) const {
    return Lane::Create(model_.get(), std::move(plan), OptionsOf(dtype));
  }

  // What plans read the text as.
  model::NumericsClass Numerics() const {
    return question_.generated ? model::NumericsClass::kGenerated : model::NumericsClass::kPrompt;
  }

  absl::Status CutText() {
    ASSIGN_OR_RETURN(
        model::fidelity::WindowSet set,
        CutWindows(model_->tokenizer(), question_.data,
                   {.window_tokens = question_.window_tokens, .max_tokens = question_.max_tokens}));
    windows_ = std::move(set.windows);
    for (size_t d = 0; d < question_.data.size(); ++d) {
      const model::fidelity::Document& document = question_.data[d];
      report_.data.push_back({.name = document.name,
                              .sha256 = model::Sha256Hex(document.text),
                              .bytes = static_cast<int64_t>(document.text.size()),
                              .tokens = set.document_tokens[d]});
      if (set.document_tokens[d] == 0) {
        report_.notes.push_back(StrCat(document.name,
                                       " gave no window: it is shorter than one, or the budget was "
                                       "spent before its turn."));
      }
    }
    report_.window_tokens = question_.window_tokens;
    report_.windows = static_cast<int64_t>(windows_.size());
    report_.tokens = report_.windows * question_.window_tokens;
    return absl::OkStatus();
  }

  // Splits the windows; the report is about the half that the search did not see.
  absl::Status Search() {
    std::vector<TextWindow> search, check;
    for (size_t i = 0; i < windows_.size(); ++i) {
      (i % 2 == 0 ? search : check).push_back(std::move(windows_[i]));
    }
    if (check.size() < 2) {
      return absl::InvalidArgumentError(
          StrCat("--target: ", search.size() + check.size(),
                 " windows are too few to search on one "
                 "half and check on the other; give text for four or more, or a larger "
                 "--max-tokens."));
    }
    FidelityReport::Search found{.target = question_.target_text,
                                 .result = {},
                                 .search_windows = static_cast<int64_t>(search.size()),
                                 .check_windows = static_cast<int64_t>(check.size())};
    model::fidelity::SearchOptions options{.lane = OptionsOf(model_->options().kv_dtype),
                                           .window_tokens = question_.window_tokens,
                                           .numerics = Numerics(),
                                           .bootstrap = bootstrap_};
    options.progress = [this](const std::string& stage, int64_t done, int64_t total) {
      progress_.Update(stage, done, total);
    };
    ASSIGN_OR_RETURN(found.result, SearchPlans(model_.get(), *question_.target, baseline_.get(),
                                               search, check, options));
    if (found.result.chosen < 0) return NotReached(found);
    const auto& chosen = found.result.rungs[static_cast<size_t>(found.result.chosen)];
    plan_ = chosen.rung.plan;
    report_.plan = Describe(plan_, chosen.rung.plan_text);
    report_.search = std::move(found);
    windows_ = std::move(check);
    report_.windows = static_cast<int64_t>(windows_.size());
    report_.tokens = report_.windows * question_.window_tokens;
    return absl::OkStatus();
  }

  static absl::Status NotReached(const FidelityReport::Search& search) {
    const auto& rungs = search.result.rungs;
    const auto nearest = std::min_element(
        rungs.begin(), rungs.end(),
        [](const auto& a, const auto& b) { return a.searched.kl.value < b.searched.kl.value; });
    const bool on_half = std::any_of(rungs.begin(), rungs.end(),
                                     [](const auto& rung) { return rung.holds_searched; });
    return absl::FailedPreconditionError(absl::StrFormat(
        "--target %s: none of %d plans holds%s; the nearest (%s) has KL %.3g and the same "
        "likeliest "
        "token at %.2f%% of the positions. Loosen the target, or serve the native plan.",
        search.target, rungs.size(), on_half ? " on the unseen half of the text" : "",
        nearest->rung.description, nearest->searched.kl.value,
        nearest->searched.same_top.value * 100));
  }

  absl::Status MakePlanLane() {
    ASSIGN_OR_RETURN(plan_lane_, MakeLane(plan_, model_->options().kv_dtype));
    return absl::OkStatus();
  }

  absl::Status Compare() {
    const SparsityPlan& native = baseline_->plan();
    CapturedMass mass(&native, {&plan_});
    LayerCounters base_counters(native.layers.size(), &mass);
    LayerCounters plan_counters(native.layers.size());
    baseline_->decoder().SetObserver(&base_counters);
    plan_lane_->decoder().SetObserver(&plan_counters);

    ASSIGN_OR_RETURN(const std::unique_ptr<Lane> noise,
                     MakeLane(native, model_->options().kv_dtype));
    std::vector<Comparison> comparisons = {{.lane = plan_lane_.get()}};
    comparisons[0].numerics = Numerics();
    report_.generated = question_.generated;
    std::vector<FidelityReport::Yardstick> yardsticks;
    std::unique_ptr<Lane> q8;
    yardsticks.push_back({.name = "8-bit KV cache",
                          .description = "the baseline with keys and values stored as q8"});
    if (model_->options().kv_dtype != kernels::KvDType::kQ8) {
      ASSIGN_OR_RETURN(SparsityPlan plan, Resolve(SparsityPolicy{}, kernels::KvDType::kQ8));
      ASSIGN_OR_RETURN(q8, MakeLane(std::move(plan), kernels::KvDType::kQ8));
      comparisons.push_back({.lane = q8.get()});
    } else {
      yardsticks.back().reason = "the baseline's own cache is q8 already";
    }
    std::unique_ptr<model::Model> other;
    std::unique_ptr<Lane> other_lane;
    yardsticks.push_back({.name = "other weights",
                          .description = "another checkpoint of the same model, its own plan"});
    if (question_.scale_model.empty()) {
      yardsticks.back().reason = "no --scale-model was given";
    } else {
      RETURN_IF_ERROR(LoadOther(&other, &other_lane));
      yardsticks.back().name = StrCat(other->spec().weights_type, " weights");
      yardsticks.back().description =
          StrCat("checkpoint ", other->name(), ", digest ", other->model_digest());
      comparisons.push_back({.lane = other_lane.get()});
    }
    comparisons.push_back({.lane = noise.get(), .cuts = kNoiseCuts});

    model::fidelity::ComparisonOptions options{.rows_per_window = question_.rows_per_window,
                                               .seed = question_.seed};
    options.step_rows = std::min(options.step_rows, model_->max_logits_rows());
    int64_t done = 0;
    options.progress = [&](int64_t tokens) {
      progress_.Update("comparing", done + tokens, report_.tokens);
    };
    // The noise floor takes steps of one token, so a few windows must do.
    const std::span<const TextWindow> all(windows_);
    const size_t head = std::min(kNoiseWindows, all.size());
    RETURN_IF_ERROR(CompareLanes(baseline_.get(), comparisons, all.first(head),
                                 model_->spec().vocab_size, &mass, options));
    done = static_cast<int64_t>(head) * question_.window_tokens;
    const Comparison of_noise = std::move(comparisons.back());
    comparisons.pop_back();
    options.seed += 1;
    RETURN_IF_ERROR(CompareLanes(baseline_.get(), comparisons, all.subspan(head),
                                 model_->spec().vocab_size, &mass, options));
    baseline_->decoder().SetObserver(nullptr);
    plan_lane_->decoder().SetObserver(nullptr);

    report_.noise = {.name = "noise floor",
                     .description = absl::StrFormat(
                         "the baseline against itself, its steps cut into 1, 63, 64 and 65 tokens, "
                         "%d windows",
                         head),
                     .divergence = SummarizeDivergence(of_noise.windows, bootstrap_)};
    report_.divergence = SummarizeDivergence(comparisons[0].windows, bootstrap_);
    report_.buckets = SummarizeByPosition(comparisons[0].windows, bootstrap_);
    size_t next = 1;
    for (FidelityReport::Yardstick& yardstick : yardsticks) {
      if (yardstick.reason.empty()) {
        yardstick.divergence = SummarizeDivergence(comparisons[next++].windows, bootstrap_);
      }
    }
    report_.yardsticks = std::move(yardsticks);
    report_.baseline.measured_kv_bytes = baseline_->max_kv_bytes();
    report_.plan.measured_kv_bytes = plan_lane_->max_kv_bytes();
    DescribeLayers({.baseline = &native,
                    .plan = &plan_,
                    .baseline_counters = &base_counters,
                    .plan_counters = &plan_counters,
                    .mass = &mass,
                    .numerics = comparisons[0].numerics},
                   question_.window_tokens, bootstrap_, &report_);
    return absl::OkStatus();
  }

  absl::Status LoadOther(std::unique_ptr<model::Model>* other, std::unique_ptr<Lane>* lane) const {
    ServerConfig config = config_;
    config.model = question_.scale_model;
    config.kv.memory = kUnusedCacheBytes;
    ASSIGN_OR_RETURN(*other, LoadModel(config));
    ASSIGN_OR_RETURN(const std::string text, model_->tokenizer().Decode(windows_[0].tokens, true));
    const auto ours = model_->tokenizer().Encode(text);
    const auto theirs = (*other)->tokenizer().Encode(text);
    if (!ours.ok() || !theirs.ok() || *ours != *theirs ||
        (*other)->spec().vocab_size != model_->spec().vocab_size) {
      return absl::InvalidArgumentError(
          StrCat("--scale-model: ", (*other)->name(), " is not the same model as ", model_->name(),
                 ": it makes other tokens of the same text; give another quantisation of it."));
    }
    ASSIGN_OR_RETURN(SparsityPlan plan,
                     SparsityPlan::Resolve(SparsityPolicy{}, (*other)->spec(),
                                           (*other)->options().kv_dtype, (*other)->max_context()));
    ASSIGN_OR_RETURN(*lane, Lane::Create(other->get(), std::move(plan),
                                         OptionsOf((*other)->options().kv_dtype)));
    return absl::OkStatus();
  }

  absl::Status AnswerTasks() {
    std::vector<model::fidelity::TaskPair> pairs;
    int32_t context = 0;
    const auto total =
        static_cast<int64_t>(std::size(model::fidelity::kTaskKinds) * lengths_.size()) *
        question_.task_contexts;
    for (const auto kind : model::fidelity::kTaskKinds) {
      for (const int32_t length : lengths_) {
        for (int32_t c = 0; c < question_.task_contexts; ++c, ++context) {
          progress_.Update("answering tasks", context, total);
          const uint64_t seed = question_.seed * 100003 + static_cast<uint64_t>(context);
          ASSIGN_OR_RETURN(const auto task, MakeTask(model_->tokenizer(), kind, length, seed));
          RETURN_IF_ERROR(AnswerTask(task, context, model_->spec().vocab_size, baseline_.get(),
                                     plan_lane_.get(), &pairs));
        }
      }
    }
    report_.tasks = SummarizeTasks(pairs, bootstrap_);
    return absl::OkStatus();
  }

  absl::Status MeasureSpeeds() {
    const std::vector<int32_t>& text = windows_[0].tokens;
    const int32_t decode = std::min(kSpeedDecodeTokens, static_cast<int32_t>(text.size()) / 4);
    std::vector<SpeedSample> samples[2];
    for (int r = 0; r < kSpeedRepetitions; ++r) {
      progress_.Update("measuring speed", r, kSpeedRepetitions);
      int side = 0;
      for (Lane* lane : {baseline_.get(), plan_lane_.get()}) {
        ASSIGN_OR_RETURN(SpeedSample sample, MeasureSpeed(text, decode, lane));
        samples[side++].push_back(sample);
      }
    }
    report_.speed_decode_tokens = decode;
    report_.speed_prompt_tokens = static_cast<int64_t>(text.size()) - decode;
    int side = 0;
    for (FidelityReport::Plan* plan : {&report_.baseline, &report_.plan}) {
      const auto& of = samples[side++];
      plan->prefill = SpreadOf(of, &SpeedSample::prefill_tokens_per_second);
      plan->decode = SpreadOf(of, &SpeedSample::decode_tokens_per_second);
      plan->prefill_attention = SpreadOf(of, &SpeedSample::prefill_attention_share);
      plan->decode_attention = SpreadOf(of, &SpeedSample::decode_attention_share);
    }
    return absl::OkStatus();
  }

  void AddNotes() {
    if (plan_.digest == baseline_->plan().digest) {
      report_.notes.push_back("This plan is the checkpoint's own; nothing differs.");
      return;
    }
    if (!plan_.one_numerics_class && !question_.generated) {
      report_.notes.push_back(
          "This plan reads other keys for generated tokens than for a prompt; all but the decode "
          "rate "
          "is about prompts. --generated measures the others.");
    }
    const bool sparser =
        std::any_of(report_.layers.begin(), report_.layers.end(), [](const auto& layer) {
          return layer.work < layer.baseline_work ||
                 layer.achieved_density < layer.baseline_density;
        });
    if (!sparser) {
      report_.notes.push_back(StrCat("In ", question_.window_tokens,
                                     " tokens this plan reads no fewer keys than the baseline; "
                                     "raise --window-tokens to see what it leaves out."));
    }
    if (report_.windows < 8) {
      report_.notes.push_back(StrCat("Intervals over only ", report_.windows,
                                     " windows are rough; raise --max-tokens for better ones."));
    }
  }

  const ServerConfig& config_;
  const FidelityQuestion& question_;
  const BootstrapOptions bootstrap_;
  FidelityProgress progress_;
  FidelityReport report_;
  std::unique_ptr<model::Model> model_;
  std::vector<int32_t> lengths_;  // of the tasks
  std::vector<TextWindow> windows_;
  SparsityPlan plan_;
  std::unique_ptr<Lane> baseline_, plan_lane_;
};

}  // namespace

absl::StatusOr<FidelityReport> RunFidelity(const ServerConfig& config,
                                           const FidelityQuestion& question) {
  return Runner(config, question).Run();
}

}  // namespace longstride::cli

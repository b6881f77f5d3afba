#include "model/fidelity/plan_search.h"

#include <algorithm>
#include <iterator>
#include <memory>
#include <numeric>
#include <set>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "model/fidelity/comparison.h"

namespace longstride::model::fidelity {
namespace {

constexpr int32_t kSmallestWindow = 64;
constexpr int32_t kSinkTokens = 4;
// Rungs that run beside the baseline in one pass; each takes a cache and a step's logits.
constexpr size_t kLanesPerPass = 6;
constexpr char kTargetHelp[] =
    "allowed are kl<=NATS, top1>=SHARE and ppl<=RATIO, as in \"kl<=0.02,top1>=0.98\".";

absl::Status BadTarget(std::string_view got) {
  return absl::InvalidArgumentError(StrCat("--target: got \"", got, "\"; ", kTargetHelp));
}

std::string Ranges(const std::vector<int32_t>& ascending) {
  std::string out;
  for (size_t i = 0; i < ascending.size();) {
    size_t end = i;
    while (end + 1 < ascending.size() && ascending[end + 1] == ascending[end] + 1) ++end;
    StrAppend(&out, out.empty() ? "" : ",", ascending[i]);
    if (end > i) StrAppend(&out, "-", ascending[end]);
    i = end + 1;
  }
  return out;
}

// The rung's plan and density from its text.
absl::Status Resolve(const Model& model, int32_t window_tokens, NumericsClass numerics,
                     Rung* rung) {
  ASSIGN_OR_RETURN(const SparsityPolicy policy, SparsityPolicy::Parse(rung->plan_text));
  ASSIGN_OR_RETURN(rung->plan, SparsityPlan::Resolve(policy, model.spec(), model.options().kv_dtype,
                                                     model.max_context()));
  rung->density = rung->plan.Density(window_tokens - 1, numerics);
  return absl::OkStatus();
}

class Search {
 public:
  Search(Model* model, const Target& target, Lane* baseline, const SearchOptions& options)
      : model_(model), target_(target), baseline_(baseline), options_(options) {}

  absl::StatusOr<SearchResult> Run(std::span<const TextWindow> search,
                                   std::span<const TextWindow> check) {
    full_ = FullLayers(baseline_->plan(), options_.window_tokens);
    if (full_.empty()) {
      return absl::InvalidArgumentError(StrCat(
          "--target: no layer of this checkpoint sees all of a window of ", options_.window_tokens,
          " tokens, so there is nothing to make sparser; raise --window-tokens."));
    }
    RETURN_IF_ERROR(JudgeUniform(search));
    RETURN_IF_ERROR(JudgeRelaxed(search));
    RETURN_IF_ERROR(JudgeChoosing(search));
    std::stable_sort(
        result_.rungs.begin(), result_.rungs.end(),
        [](const RungResult& a, const RungResult& b) { return a.keys_share < b.keys_share; });
    RETURN_IF_ERROR(Check(check));
    return std::move(result_);
  }

 private:
  struct Verdict {
    DivergenceSummary summary;
    double keys_share = 1;
  };

  absl::StatusOr<Rung> Make(std::vector<int32_t> layers, int32_t window) const {
    return MakeRung(*model_, std::move(layers), window, static_cast<int32_t>(full_.size()),
                    options_.window_tokens);
  }

  // One window on all full layers; the mass that each layer keeps orders the relaxed rungs.
  absl::Status JudgeUniform(std::span<const TextWindow> windows) {
    std::vector<Rung> rungs;
    for (int32_t w = kSmallestWindow; w <= options_.window_tokens / 2; w *= 2) {
      ASSIGN_OR_RETURN(Rung rung, Make(full_, w));
      rungs.push_back(std::move(rung));
    }
    std::vector<const SparsityPlan*> plans;
    for (const Rung& rung : rungs) plans.push_back(&rung.plan);
    CapturedMass mass(&baseline_->plan(), plans);
    baseline_->decoder().SetObserver(&mass);
    std::vector<Verdict> verdicts;
    const absl::Status judged = Judge("uniform plans", rungs, windows, &mass, &verdicts);
    baseline_->decoder().SetObserver(nullptr);
    RETURN_IF_ERROR(judged);
    for (size_t r = 0; r < rungs.size(); ++r) {
      std::vector<int32_t> order = full_;
      std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
        return mass.LayerMean(r, a) < mass.LayerMean(r, b);
      });
      by_loss_.push_back({rungs[r].window, std::move(order)});
    }
    Keep(std::move(rungs), std::move(verdicts));
    return absl::OkStatus();
  }

  absl::Status JudgeChoosing(std::span<const TextWindow> windows) {
    struct Choice {
      std::string name, parameters, description;
    };
    std::vector<Choice> choices;
    const auto fraction = [&](const std::string& name, int32_t part) {
      choices.push_back({StrCat(name, "_1_of_", part),
                         StrCat(R"("pattern": ")", name, R"(", "fraction": )", 1.0 / part,
                                R"(, "sink_pages": 1)"),
                         StrCat(name, " 1/", part)});
    };
    for (const int32_t part : {2, 4, 8}) fraction("block_topk", part);
    if (options_.numerics == NumericsClass::kGenerated) {
      for (const int32_t part : {2, 4, 8, 16}) fraction("quest", part);
    } else {
      for (const int32_t percent : {80, 90, 95}) {
        choices.push_back({StrCat("xattention_", percent),
                           StrCat(R"("pattern": "xattention", "threshold": 0.)", percent),
                           StrCat("xattention 0.", percent)});
      }
    }
    std::vector<Rung> rungs;
    for (const Choice& c : choices) {
      ASSIGN_OR_RETURN(Rung rung,
                       MakeChoosingRung(*model_, full_, c.name, c.parameters, c.description,
                                        options_.window_tokens, options_.numerics));
      rungs.push_back(std::move(rung));
    }
    std::vector<Verdict> verdicts;
    RETURN_IF_ERROR(Judge("choosing plans", rungs, windows, nullptr, &verdicts));
    Keep(std::move(rungs), std::move(verdicts));
    return absl::OkStatus();
  }

  absl::Status JudgeRelaxed(std::span<const TextWindow> windows) {
    double best = 1;
    for (const RungResult& r : result_.rungs) {
      if (r.holds_searched) best = std::min(best, r.rung.density);
    }
    std::vector<Rung> rungs;
    std::set<std::string> digests;
    for (const auto& [window, order] : by_loss_) {
      for (const double share : {0.25, 0.5}) {
        const auto relaxed = std::max<size_t>(
            1, static_cast<size_t>(share * static_cast<double>(order.size()) + 0.5));
        if (relaxed >= order.size()) continue;
        std::vector<int32_t> layers(order.begin() + static_cast<std::ptrdiff_t>(relaxed),
                                    order.end());
        std::sort(layers.begin(), layers.end());
        ASSIGN_OR_RETURN(Rung rung, Make(std::move(layers), window));
        if (rung.density >= best || !digests.insert(rung.plan.digest).second) continue;
        rungs.push_back(std::move(rung));
      }
    }
    std::stable_sort(rungs.begin(), rungs.end(),
                     [](const Rung& a, const Rung& b) { return a.density > b.density; });
    for (size_t begin = 0; begin < rungs.size(); begin += kLanesPerPass) {
      const auto from = rungs.begin() + static_cast<std::ptrdiff_t>(begin);
      const auto count = static_cast<std::ptrdiff_t>(std::min(kLanesPerPass, rungs.size() - begin));
      std::vector<Rung> part(std::make_move_iterator(from), std::make_move_iterator(from + count));
      std::vector<Verdict> verdicts;
      RETURN_IF_ERROR(Judge("relaxed plans", part, windows, nullptr, &verdicts));
      const bool any = std::any_of(verdicts.begin(), verdicts.end(),
                                   [&](const Verdict& v) { return target_.Holds(v.summary); });
      Keep(std::move(part), std::move(verdicts));
      if (!any) break;
    }
    return absl::OkStatus();
  }

  void Keep(std::vector<Rung> rungs, std::vector<Verdict> verdicts) {
    for (size_t r = 0; r < rungs.size(); ++r) {
      RungResult result{.rung = std::move(rungs[r]),
                        .keys_share = verdicts[r].keys_share,
                        .searched = std::move(verdicts[r].summary)};
      // What reads all that the baseline reads is no find.
      result.holds_searched =
          target_.Holds(result.searched) && result.keys_share < baseline_->keys_share();
      result_.rungs.push_back(std::move(result));
    }
  }

  absl::Status Check(std::span<const TextWindow> windows) {
    for (size_t r = 0; r < result_.rungs.size(); ++r) {
      RungResult& result = result_.rungs[r];
      if (!result.holds_searched) continue;
      std::vector<Verdict> verdicts;
      const Rung* rung = &result.rung;
      RETURN_IF_ERROR(Judge("check on unseen text", {rung, 1}, windows, nullptr, &verdicts));
      result.checked = verdicts[0].summary;
      result.holds_checked = target_.Holds(verdicts[0].summary);
      if (!result.holds_checked) continue;
      result_.chosen = static_cast<int>(r);
      return absl::OkStatus();
    }
    return absl::OkStatus();
  }

  // A few rungs at a time beside the baseline; mass is measured in the first pass only.
  absl::Status Judge(const std::string& stage, std::span<const Rung> rungs,
                     std::span<const TextWindow> windows, CapturedMass* mass,
                     std::vector<Verdict>* verdicts) {
    const size_t passes = (rungs.size() + kLanesPerPass - 1) / kLanesPerPass;
    const int64_t pass_tokens = static_cast<int64_t>(windows.size()) * options_.window_tokens;
    for (size_t pass = 0; pass < passes; ++pass) {
      const size_t begin = pass * kLanesPerPass;
      const auto part = rungs.subspan(begin, std::min(kLanesPerPass, rungs.size() - begin));
      std::vector<std::unique_ptr<Lane>> lanes;
      std::vector<Comparison> comparisons;
      for (const Rung& rung : part) {
        ASSIGN_OR_RETURN(auto lane, Lane::Create(model_, rung.plan, options_.lane));
        comparisons.push_back({.lane = lane.get(), .numerics = options_.numerics});
        lanes.push_back(std::move(lane));
      }
      ComparisonOptions comparison{.seed = options_.bootstrap.seed};
      comparison.progress = [&](int64_t tokens) {
        if (options_.progress) {
          options_.progress(stage, static_cast<int64_t>(pass) * pass_tokens + tokens,
                            static_cast<int64_t>(passes) * pass_tokens);
        }
      };
      if (pass > 0) baseline_->decoder().SetObserver(nullptr);
      RETURN_IF_ERROR(CompareLanes(baseline_, comparisons, windows, model_->spec().vocab_size,
                                   pass == 0 ? mass : nullptr, comparison));
      for (const Comparison& c : comparisons) {
        verdicts->push_back(
            {SummarizeDivergence(c.windows, options_.bootstrap), c.lane->keys_share()});
      }
    }
    return absl::OkStatus();
  }

  Model* model_;
  const Target& target_;
  Lane* baseline_;
  const SearchOptions& options_;
  std::vector<int32_t> full_;
  std::vector<std::pair<int32_t, std::vector<int32_t>>> by_loss_;  // per window, most lost first
  SearchResult result_;
};

}  // namespace

absl::StatusOr<Target> Target::Parse(const std::string& text) {
  Target target;
  for (const absl::string_view piece : absl::StrSplit(text, ',')) {
    const std::string part(absl::StripAsciiWhitespace(piece));
    const size_t sign = part.find_first_of("<>");
    if (sign == std::string::npos || sign + 2 >= part.size() || part[sign + 1] != '=') {
      return BadTarget(part);
    }
    const std::string name = part.substr(0, sign);
    std::optional<double>* field = name == "kl"     ? &target.max_kl
                                   : name == "top1" ? &target.min_same_top
                                   : name == "ppl"  ? &target.max_perplexity_ratio
                                                    : nullptr;
    double value = 0;
    if (field == nullptr || field->has_value() || (part[sign] == '>') != (name == "top1") ||
        !absl::SimpleAtod(part.substr(sign + 2), &value) || !(value >= 0) ||
        (name == "top1" && value > 1)) {
      return BadTarget(part);
    }
    *field = value;
  }
  return target;
}

bool Target::Holds(const DivergenceSummary& summary) const {
  return (!max_kl || summary.kl.value <= *max_kl) &&
         (!min_same_top || summary.same_top.value >= *min_same_top) &&
         (!max_perplexity_ratio || summary.perplexity_ratio.value <= *max_perplexity_ratio);
}

std::vector<int32_t> FullLayers(const SparsityPlan& native, int32_t window_tokens) {
  std::vector<int32_t> out;
  for (size_t l = 0; l < native.layers.size(); ++l) {
    const auto& segments = native.layers[l].segments;
    const bool full = std::all_of(segments.begin(), segments.end(), [&](const HeadSegment& s) {
      return native.patterns[static_cast<size_t>(s.pattern)]->VisibleKeys(window_tokens - 1) >=
             window_tokens;
    });
    if (full) out.push_back(static_cast<int32_t>(l));
  }
  return out;
}

absl::StatusOr<Rung> MakeRung(const Model& model, std::vector<int32_t> layers, int32_t window,
                              int32_t full_layers, int32_t window_tokens) {
  Rung rung;
  const auto windowed = static_cast<int32_t>(layers.size());
  const std::string name =
      StrCat("window", window, "_sinks", kSinkTokens, "_on_", windowed, "_of_", full_layers);
  rung.plan_text =
      StrCat(R"({"name": ")", name, R"(", "default": {"pattern": "native"}, )",
             R"("layers": [{"layers": ")", Ranges(layers), R"(", "pattern": "window", "window": )",
             window, R"(, "sink_tokens": )", kSinkTokens, "}]}");
  rung.description = StrCat("window ", window, " + ", kSinkTokens, " sinks on ", windowed,
                            windowed == 1 ? " layer" : " layers");
  if (windowed < full_layers) StrAppend(&rung.description, ", ", full_layers - windowed, " full");
  rung.window = window;
  rung.windowed_layers = std::move(layers);
  // A window is the same for both classes.
  RETURN_IF_ERROR(Resolve(model, window_tokens, NumericsClass::kPrompt, &rung));
  return rung;
}

absl::StatusOr<Rung> MakeChoosingRung(const Model& model, const std::vector<int32_t>& layers,
                                      const std::string& name, const std::string& parameters,
                                      const std::string& description, int32_t window_tokens,
                                      NumericsClass numerics) {
  Rung rung;
  rung.plan_text = StrCat(R"({"name": ")", name, "_on_", layers.size(),
                          R"(", "default": {"pattern": "native"}, "layers": [{"layers": ")",
                          Ranges(layers), R"(", )", parameters, "}]}");
  rung.description =
      StrCat(description, " on ", layers.size(), layers.size() == 1 ? " layer" : " layers");
  RETURN_IF_ERROR(Resolve(model, window_tokens, numerics, &rung));
  return rung;
}

absl::StatusOr<SearchResult> SearchPlans(Model* model, const Target& target, Lane* baseline,
                                         std::span<const TextWindow> search_windows,
                                         std::span<const TextWindow> check_windows,
                                         const SearchOptions& options) {
  return Search(model, target, baseline, options).Run(search_windows, check_windows);
}

}  // namespace longstride::model::fidelity

#include "model/sparsity/sparsity_plan.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <tuple>
#include <utility>

#include "model/sparsity/hash.h"
#include "model/sparsity/layer_rules.h"

namespace longstride::model {
namespace {

constexpr int kDefaultRule = -1;

// What a page must keep so that readers of both retentions find their keys.
Retention Union(const Retention& a, const Retention& b) {
  if (a == b) return a;
  if (a.keeps_all() || b.keeps_all()) return {};
  if (a.chunk == 0 && b.chunk == 0) {
    return {.window = std::max(a.window, b.window),
            .sink_tokens = std::max(a.sink_tokens, b.sink_tokens),
            .chunk = 0};
  }
  if (a.window == 0 && b.window == 0) {
    // A chunk's start is also one of every divisor's chunks, never later than theirs.
    const int32_t large = std::max(a.chunk, b.chunk);
    const int32_t small = std::min(a.chunk, b.chunk);
    if (large % small == 0) {
      return {.window = 0, .sink_tokens = std::max(a.sink_tokens, b.sink_tokens), .chunk = large};
    }
  }
  return {};
}

// What pages carry beside keys and values.
struct Summaries {
  bool any = false;
  bool segment_means = false;
  bool value_mean = false;
  int32_t index_dim = 0;  // index keys
  bool operator==(const Summaries&) const = default;
};

void AddSummaries(const SparsePattern& pattern, const Indexer& indexer, Summaries* out) {
  out->any = out->any || pattern.reads_means();
  out->value_mean = out->value_mean || pattern.reads_means();
  const PageRanking* ranking = pattern.ranking();
  if (ranking == nullptr) return;
  if (ranking->by_index) {
    out->index_dim = indexer.head_dim;
    return;
  }
  out->any = out->any || kernels::UsesSummaries(ranking->score);
  out->segment_means = out->segment_means || ranking->score == kernels::PageScore::kCompressedKeys;
}

// The parts of a pattern, or itself.
std::vector<std::shared_ptr<const SparsePattern>> PartsOf(
    const std::shared_ptr<const SparsePattern>& pattern) {
  const auto parts = pattern->parts();
  if (parts.empty()) return {pattern};
  return {parts.begin(), parts.end()};
}

// A run of query heads of one layer under one rule, whole KV heads or a part of one.
struct RuleRange {
  HeadRange heads;
  int rule = kDefaultRule;
};

// Resolves one plan; keeps patterns made so far, so that equal layers share them.
class Resolver {
 public:
  Resolver(const SparsityPolicy& policy, const ModelSpec& spec, SparsityPlan* plan)
      : policy_(policy), spec_(spec), plan_(plan) {}

  absl::Status Run(kernels::KvDType dtype) {
    RETURN_IF_ERROR(CheckRules());
    for (size_t l = 0; l < spec_.layers.size(); ++l) {
      RETURN_IF_ERROR(ResolveLayer(static_cast<int32_t>(l)));
    }
    FinishGroups(dtype);
    FinishClasses();
    plan_->digest = Digest128(FunctionText());
    return absl::OkStatus();
  }

 private:
  const PatternPolicy& RulePolicy(int rule) const {
    return rule == kDefaultRule ? policy_.default_policy
                                : policy_.rules[static_cast<size_t>(rule)].policy;
  }

  // Rules that name what is not there, and rules that no layer or head is left for, are checked as
  // well: a mistake in them must not wait for another checkpoint.
  absl::Status CheckRules() {
    const auto num_layers = static_cast<int32_t>(spec_.layers.size());
    RETURN_IF_ERROR(MakeFor(0, kDefaultRule, AllHeads(0)).status());
    for (size_t r = 0; r < policy_.rules.size(); ++r) {
      const LayerRule& rule = policy_.rules[r];
      RETURN_IF_ERROR(CheckLayers(rule, spec_));
      for (int32_t l = 0; l < num_layers; ++l) {
        if (!Matches(rule, l)) continue;
        const int32_t num_heads = Attention(l).num_heads;
        if (rule.heads.Max() >= num_heads) {
          return rule.policy.Error(StrCat("names query head ", rule.heads.Max(), "; layer ", l,
                                          " has heads 0 to ", num_heads - 1, "."));
        }
        RETURN_IF_ERROR(MakeFor(l, static_cast<int>(r), AllHeads(l)).status());
      }
    }
    return absl::OkStatus();
  }

  const AttentionSpec& Attention(int32_t layer) const {
    return spec_.layers[static_cast<size_t>(layer)].attention;
  }
  HeadRange AllHeads(int32_t layer) const { return {0, Attention(layer).num_heads}; }
  bool Matches(const LayerRule& rule, int32_t layer) const {
    return Covers(rule, spec_, layer, plan_->max_context);
  }

  // The pattern of a rule for some heads of a layer. Owned by the memo until the plan uses it.
  absl::StatusOr<std::shared_ptr<const SparsePattern>> MakeFor(int32_t layer, int rule,
                                                               HeadRange heads) {
    const AttentionSpec& attention = Attention(layer);
    const MemoKey key = {
        rule, heads.first, heads.count, attention.num_heads, attention.gates, attention.native};
    auto it = memo_.find(key);
    if (it == memo_.end()) {
      const PatternContext context = {.heads = heads,
                                      .num_query_heads = attention.num_heads,
                                      .native = attention.native,
                                      .max_positions = plan_->max_context,
                                      .causal = spec_.causal};
      ASSIGN_OR_RETURN(std::unique_ptr<SparsePattern> made, MakePattern(RulePolicy(rule), context));
      if (spec_.dual_chunk && made->ranking() != nullptr) {
        return RulePolicy(rule).Error(
            StrCat("the pattern \"", RulePolicy(rule).pattern,
                   "\" ranks keys by one query, but the checkpoint's dual chunk attention "
                   "rotates a query in three ways; choose a pattern that follows from positions "
                   "alone, such as native, dense or window."));
      }
      if (std::ssize(made->parts()) != attention.gates) {
        return RulePolicy(rule).Error(StrCat(
            "the pattern \"", RulePolicy(rule).pattern, "\" is of one attention, but in layer ",
            layer, " the checkpoint sums ", attention.gates, " by gates; choose native or nsa."));
      }
      it = memo_.emplace(key, std::move(made)).first;
    }
    return it->second;
  }

  // Index of an equal pattern of the plan, which is added where there is none.
  int32_t PatternIndex(const std::shared_ptr<const SparsePattern>& pattern) {
    const auto [known, added] = pattern_index_.try_emplace(
        pattern->Describe(), static_cast<int32_t>(plan_->patterns.size()));
    if (added) plan_->patterns.push_back(pattern);
    return known->second;
  }

  // The layer's query heads cut where the rule changes and at KV heads, so that a piece is either
  // whole KV heads or a part of one.
  std::vector<RuleRange> CutByRules(int32_t layer) const {
    const AttentionSpec& attention = Attention(layer);
    const int32_t per_kv = attention.num_heads / attention.num_kv_heads;
    std::vector<int> rule_of(static_cast<size_t>(attention.num_heads), kDefaultRule);
    for (size_t r = 0; r < policy_.rules.size(); ++r) {
      if (!Matches(policy_.rules[r], layer)) continue;
      for (int32_t h = 0; h < attention.num_heads; ++h) {
        if (policy_.rules[r].heads.Contains(h))
          rule_of[static_cast<size_t>(h)] = static_cast<int>(r);
      }
    }
    std::vector<RuleRange> ranges;
    for (int32_t begin = 0; begin < attention.num_heads;) {
      const int rule = rule_of[static_cast<size_t>(begin)];
      int32_t end = begin;
      while (end < attention.num_heads && rule_of[static_cast<size_t>(end)] == rule) ++end;
      if (begin % per_kv != 0 || end - begin < per_kv) {
        end = std::min(end, (begin / per_kv + 1) * per_kv);
      } else {
        end = end / per_kv * per_kv;
      }
      ranges.push_back({{begin, end - begin}, rule});
      begin = end;
    }
    return ranges;
  }

  absl::Status ResolveLayer(int32_t layer) {
    const AttentionSpec& attention = Attention(layer);
    const int32_t per_kv = attention.num_heads / attention.num_kv_heads;
    const std::vector<RuleRange> ranges = CutByRules(layer);

    struct Keep {
      Retention retention;
      Summaries summaries;
      bool operator==(const Keep&) const = default;
    };
    std::vector<Keep> keep(static_cast<size_t>(attention.num_kv_heads));
    std::vector<bool> seen(keep.size(), false);
    for (const RuleRange& range : ranges) {
      ASSIGN_OR_RETURN(const auto whole, MakeFor(layer, range.rule, range.heads));
      for (const auto& pattern : PartsOf(whole)) {
        for (int32_t h = range.heads.first; h < range.heads.first + range.heads.count; h += 1) {
          const auto kv = static_cast<size_t>(h / per_kv);
          Retention& retention = keep[kv].retention;
          retention = seen[kv] ? Union(retention, pattern->retention()) : pattern->retention();
          AddSummaries(*pattern, attention.indexer, &keep[kv].summaries);
          seen[kv] = true;
        }
      }
    }

    LayerPlan layer_plan;
    layer_plan.parts = std::max(attention.gates, 1);
    std::vector<HeadSegment> segments;  // part by part of each range
    for (int32_t kv = 0; kv < attention.num_kv_heads;) {
      int32_t kv_end = kv;
      while (kv_end < attention.num_kv_heads &&
             keep[static_cast<size_t>(kv_end)] == keep[static_cast<size_t>(kv)]) {
        ++kv_end;
      }
      const Keep& kept = keep[static_cast<size_t>(kv)];
      const int32_t group =
          GroupIndex(layer, kept.retention, kept.summaries, {kv, kv_end - kv});
      for (const RuleRange& range : ranges) {
        const int32_t begin = std::max(range.heads.first, kv * per_kv);
        const int32_t end = std::min(range.heads.first + range.heads.count, kv_end * per_kv);
        if (begin >= end) continue;
        const HeadRange heads = {begin, end - begin};
        ASSIGN_OR_RETURN(const auto whole, MakeFor(layer, range.rule, heads));
        int32_t part = 0;
        for (const auto& pattern : PartsOf(whole)) {
          segments.push_back({.query = heads,
                              .kv = {begin / per_kv, (end - 1) / per_kv - begin / per_kv + 1},
                              .pattern = PatternIndex(pattern),
                              .group = group,
                              .part = part++});
        }
      }
      kv = kv_end;
    }
    for (int32_t part = 0; part < layer_plan.parts; ++part) {
      for (const HeadSegment& segment : segments) {
        if (segment.part == part) AddSegment(segment, per_kv, &layer_plan);
      }
    }
    RETURN_IF_ERROR(CheckSharedIndices(layer, layer_plan));
    plan_->layers.push_back(std::move(layer_plan));
    return absl::OkStatus();
  }

  // A layer that reads the tokens which the layer before it chose needs that layer to choose them.
  absl::Status CheckSharedIndices(int32_t layer, const LayerPlan& plan) const {
    const auto by_index = [this](const HeadSegment& s) {
      const PageRanking* ranking = plan_->patterns[static_cast<size_t>(s.pattern)]->ranking();
      return ranking != nullptr && ranking->by_index;
    };
    const auto same = [](const HeadSegment& a, const HeadSegment& b) {
      return a.pattern == b.pattern && a.query.first == b.query.first &&
             a.query.count == b.query.count;
    };
    if (Attention(layer).indexer.num_heads > 0 ||
        std::none_of(plan.segments.begin(), plan.segments.end(), by_index) ||
        (layer > 0 &&
         std::equal(plan.segments.begin(), plan.segments.end(),
                    plan_->layers[static_cast<size_t>(layer) - 1].segments.begin(),
                    plan_->layers[static_cast<size_t>(layer) - 1].segments.end(), same))) {
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError(
        StrCat("layer ", layer, " has no indexer and reads the tokens that the layer before it ",
               "chooses, but the plan gives that layer other patterns; give both the same."));
  }

  // Neighbours with the same function become one attention call.
  static void AddSegment(const HeadSegment& segment, int32_t per_kv, LayerPlan* plan) {
    const auto whole = [per_kv](const HeadSegment& s) {
      return s.query.first % per_kv == 0 && s.query.count % per_kv == 0;
    };
    if (!plan->segments.empty()) {
      HeadSegment& last = plan->segments.back();
      const bool same = last.pattern == segment.pattern && last.group == segment.group &&
                        last.part == segment.part;
      const bool one_kv_head =
          last.kv.count == 1 && segment.kv.count == 1 && last.kv.first == segment.kv.first;
      if (same && (one_kv_head || (whole(last) && whole(segment)))) {
        last.query.count += segment.query.count;
        last.kv.count = segment.kv.first + segment.kv.count - last.kv.first;
        return;
      }
    }
    plan->segments.push_back(segment);
  }

  int32_t GroupIndex(int32_t layer, const Retention& keep, const Summaries& summaries,
                     HeadRange kv) {
    const int32_t head_dim = Attention(layer).head_dim;
    const bool latent = Attention(layer).is_latent();
    for (size_t g = 0; g < plan_->groups.size(); ++g) {
      CacheGroup& group = plan_->groups[g];
      if (group.retention == keep && group.summaries == summaries.any &&
          group.segment_means == summaries.segment_means &&
          group.value_mean == summaries.value_mean && group.index_dim == summaries.index_dim &&
          group.first_kv_head == kv.first && group.num_kv_heads == kv.count &&
          group.head_dim == head_dim && group.latent == latent) {
        group.layers.push_back(layer);
        return static_cast<int32_t>(g);
      }
    }
    plan_->groups.push_back({.name = "",
                             .retention = keep,
                             .layers = {layer},
                             .first_kv_head = kv.first,
                             .num_kv_heads = kv.count,
                             .head_dim = head_dim,
                             .summaries = summaries.any,
                             .segment_means = summaries.segment_means,
                             .value_mean = summaries.value_mean,
                             .latent = latent,
                             .index_dim = summaries.index_dim,
                             .page_bytes = 0});
    return static_cast<int32_t>(plan_->groups.size()) - 1;
  }

  static std::string RetentionName(const Retention& keep) {
    if (keep.keeps_all()) return "full";
    std::string name;
    if (keep.window > 0) StrAppend(&name, "window", keep.window);
    if (keep.chunk > 0) StrAppend(&name, name.empty() ? "" : "_", "chunk", keep.chunk);
    if (keep.sink_tokens > 0) StrAppend(&name, "_sinks", keep.sink_tokens);
    return name;
  }

  // Names (with heads and head size only where needed to tell groups apart) and page sizes.
  void FinishGroups(kernels::KvDType dtype) {
    std::map<std::string, int> uses;
    for (CacheGroup& group : plan_->groups) {
      group.page_bytes = static_cast<int64_t>(group.layers.size()) * LayerPageBytes(group, dtype);
      group.name = RetentionName(group.retention);
      if (group.summaries) {
        group.name += group.segment_means ? "_segments"
                      : group.value_mean  ? "_means"
                                          : "_summaries";
      }
      if (group.index_dim > 0) group.name += "_index";
      ++uses[group.name];
    }
    for (CacheGroup& group : plan_->groups) {
      if (uses[group.name] < 2) continue;
      StrAppend(&group.name, "_heads", group.first_kv_head, "-",
                group.first_kv_head + group.num_kv_heads - 1, "_dim", group.head_dim);
    }
  }

  void FinishClasses() {
    if (!spec_.causal) {
      plan_->chunk_alignment = (plan_->max_context + kernels::kPageTokens - 1) /
                               kernels::kPageTokens * kernels::kPageTokens;
    }
    for (const auto& pattern : plan_->patterns) {
      const PageRanking* ranking = pattern->ranking();
      if (ranking == nullptr) continue;
      if (!ranking->generated_alike) plan_->one_numerics_class = false;
      plan_->chunk_alignment = std::max(plan_->chunk_alignment, ranking->pooled_rows);
    }
  }

  // Text that is equal exactly where the same keys are read.
  std::string FunctionText() const {
    std::string text = "longstride sparsity plan 1\n";
    for (size_t l = 0; l < plan_->layers.size(); ++l) {
      for (const HeadSegment& segment : plan_->layers[l].segments) {
        StrAppend(&text, l, " ", segment.query.first, "+", segment.query.count, " ",
                  segment.part > 0 ? StrCat("part ", segment.part, " ") : "",
                  plan_->patterns[static_cast<size_t>(segment.pattern)]->Describe(), "\n");
      }
    }
    return text;
  }

  using MemoKey = std::tuple<int, int32_t, int32_t, int32_t, int32_t, NativeSparsity>;
  const SparsityPolicy& policy_;
  const ModelSpec& spec_;
  SparsityPlan* plan_;
  std::map<MemoKey, std::shared_ptr<const SparsePattern>> memo_;
  std::map<std::string, int32_t> pattern_index_;
};

}  // namespace

absl::StatusOr<SparsityPlan> SparsityPlan::Resolve(const SparsityPolicy& policy,
                                                   const ModelSpec& spec, kernels::KvDType dtype,
                                                   int32_t max_context) {
  if (spec.layers.empty()) return absl::InvalidArgumentError("the checkpoint has no layers.");
  for (const LayerSpec& layer : spec.layers) {
    const AttentionSpec& a = layer.attention;
    if (a.num_kv_heads <= 0 || a.head_dim <= 0 || a.num_heads <= 0 ||
        a.num_heads % a.num_kv_heads != 0) {
      return absl::InvalidArgumentError(
          StrCat("a layer has ", a.num_heads, " query heads and ", a.num_kv_heads,
                 " key/value heads of size ", a.head_dim,
                 "; the first number must be a positive multiple of the second."));
    }
  }
  SparsityPlan plan;
  plan.name = policy.name;
  plan.fidelity_report = policy.fidelity_report;
  plan.max_context = max_context > 0 ? max_context : spec.max_positions;
  plan.causal = spec.causal;
  plan.dual_chunk = spec.dual_chunk;
  ASSIGN_OR_RETURN(const SparsityPolicy rules, ExpandHeadTables(policy, spec, plan.max_context));
  RETURN_IF_ERROR(Resolver(rules, spec, &plan).Run(dtype));
  return plan;
}

int32_t LayerPlan::num_heads() const {
  const HeadSegment& last = segments.back();  // of whatever part
  return last.query.first + last.query.count;
}

std::string_view SparsityPlan::WhyNotOneSoftmax() const {
  if (dual_chunk) return "dual chunk attention scores keys by three rotations of a query";
  const bool parts =
      std::any_of(layers.begin(), layers.end(), [](const LayerPlan& l) { return l.parts > 1; });
  return parts ? "layers sum several attentions, each a softmax of its own" : "";
}

double SparsityPlan::KeysSeen(int32_t index, int64_t position, NumericsClass numerics) const {
  const SparsePattern& pattern = *patterns[static_cast<size_t>(index)];
  if (causal) return pattern.VisibleKeys(position, numerics);
  double sum = 0;
  for (int64_t i = 0; i <= position; ++i) sum += pattern.VisibleKeys(i);
  return sum / static_cast<double>(position + 1);
}

double SparsityPlan::Density(int64_t position, NumericsClass numerics) const {
  std::vector<double> seen;
  for (size_t p = 0; p < patterns.size(); ++p) {
    seen.push_back(KeysSeen(static_cast<int32_t>(p), position, numerics));
  }
  double sum = 0;
  for (const LayerPlan& layer : layers) {
    double visible = 0;
    for (const HeadSegment& segment : layer.segments) {
      visible += seen[static_cast<size_t>(segment.pattern)] * segment.query.count;
    }
    sum += visible / layer.num_heads();
  }
  return sum / static_cast<double>(layers.size()) / static_cast<double>(position + 1);
}

int64_t SparsityPlan::CacheBytes(int64_t tokens, int64_t step_tokens) const {
  return std::accumulate(groups.begin(), groups.end(), int64_t{0},
                         [&](int64_t sum, const CacheGroup& group) {
                           return sum + PagesNeeded(group, tokens, step_tokens) * group.page_bytes;
                         });
}

}  // namespace longstride::model

// Query-dependent patterns through the decoder: every family in every way that a sequence may be
// computed, against dense attention with the mask that a naive reading of the family gives.
#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <optional>
#include <set>
#include <tuple>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/model/decoder/naive_forward.h"
#include "tests/model/decoder/paged_runner.h"
#include "tests/model/decoder/tiny_model.h"

namespace longstride::model {
namespace {

using kernels::BackendKind;
using ::testing::HasSubstr;

constexpr int64_t kPage = 64;

// One family as a naive reader understands it.
struct Naive {
  bool bound = true;        // Quest's bound, else the mean key
  bool dense_prompt = true;  // else prompt rows choose by tiles of 128
  bool per_query_head = false;
  int64_t budget_pages = 0;  // or
  double fraction = 0;
  int64_t sinks = 0, recent = 1;
  // Or the share of attention that prompt tiles keep, by antidiagonals; or (with a segment) pages of
  // columns and diagonals, so many or as hold that share. Generated tokens are dense.
  double mass = 0;
  int64_t stride = 0;
  int64_t segment = 0, vertical = 0, slash = 0;
  double tau = 0;                    // with a segment: query-aware lists
  std::optional<double> similarity;  // shares by means
  // Or rows that choose one by one from `rows_from` on: by compressed keys, or blocks of so many
  // pages.
  bool compressed = false;
  int64_t block_pages = 0;
  int64_t rows_from = 0;
  bool generated = true;

  bool by_rows() const { return compressed || block_pages > 0; }
  bool by_shares() const { return mass > 0 || segment > 0; }
};

struct Case {
  std::string name;
  std::string plan;
  // Which rule a query head of a layer follows; null: dense.
  std::function<const Naive*(int32_t layer, int32_t head)> rule;
  int32_t alignment = 1;

  friend void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }
};

Case Uniform(std::string name, const std::string& parameters, const Naive& naive) {
  const auto rule = std::make_shared<Naive>(naive);
  return {.name = std::move(name),
          .plan = StrCat(R"({"default": {)", parameters, "}}"),
          .rule = [rule](int32_t, int32_t) { return rule.get(); },
          .alignment = naive.dense_prompt || naive.by_rows()
                           ? 1
                           : std::max<int32_t>(128, static_cast<int32_t>(naive.segment))};
}

std::vector<Case> Cases() {
  std::vector<Case> cases = {
      Uniform("quest_tokens",
              R"("pattern": "quest", "budget_tokens": 200, "sink_pages": 1, "recent_pages": 2)",
              {.budget_pages = 4, .sinks = 1, .recent = 2}),
      Uniform("quest_fraction", R"("pattern": "quest", "fraction": 0.3)", {.fraction = 0.3}),
      Uniform("block_topk", R"("pattern": "block_topk", "budget_tokens": 256, "sink_pages": 1)",
              {.bound = false, .dense_prompt = false, .budget_pages = 4, .sinks = 1}),
      Uniform("block_topk_heads",
              R"("pattern": "block_topk", "fraction": 0.4, "per_query_head": true)",
              {.bound = false, .dense_prompt = false, .per_query_head = true, .fraction = 0.4}),
      Uniform(
          "xattention", R"("pattern": "xattention", "threshold": 0.6, "stride": 8)",
          {.dense_prompt = false, .per_query_head = true, .sinks = 1, .mass = 0.6, .stride = 8}),
      Uniform("xattention_kv_heads",
              R"("pattern": "xattention", "threshold": 0.7, "sink_pages": 0, "recent_pages": 3,
                 "per_query_head": false)",
              {.dense_prompt = false, .recent = 3, .mass = 0.7, .stride = 16}),
      Uniform("vertical_slash",
              R"("pattern": "vertical_slash", "vertical_tokens": 65, "slash_tokens": 64,
                 "segment": 128)",
              {.dense_prompt = false,
               .per_query_head = true,
               .sinks = 1,
               .segment = 128,
               .vertical = 2,
               .slash = 1}),
      Uniform("vertical_slash_gamma",
              R"("pattern": "vertical_slash", "gamma": 0.3, "segment": 256, "sink_pages": 0,
                 "per_query_head": false)",
              {.dense_prompt = false, .mass = 0.3, .segment = 256}),
      Uniform("vertical_slash_tau",
              R"("pattern": "vertical_slash", "gamma": 0.4, "tau": 0.16, "segment": 128)",
              {.dense_prompt = false,
               .per_query_head = true,
               .sinks = 1,
               .mass = 0.4,
               .segment = 128,
               .tau = 0.16}),
      Uniform("spargeattn", R"("pattern": "spargeattn", "threshold": 0.5, "similarity": 0.02)",
              {.dense_prompt = false,
               .per_query_head = true,
               .sinks = 1,
               .mass = 0.5,
               .similarity = 0.02}),
      Uniform("spargeattn_kv_heads",
              R"("pattern": "spargeattn", "threshold": 0.7, "similarity": -1, "sink_pages": 0,
                 "per_query_head": false)",
              {.dense_prompt = false, .mass = 0.7, .similarity = -1.0}),
  };
  cases.push_back(Uniform(
      "infllm_v2",
      R"("pattern": "infllm_v2", "topk": 2, "init_blocks": 1, "window_size": 64, "dense_len": 210)",
      {.budget_pages = 3, .sinks = 1, .recent = 2, .compressed = true, .rows_from = 209}));
  cases.push_back(Uniform(
      "infllm_v2_always",
      R"("pattern": "infllm_v2", "topk": 3, "init_blocks": 0, "window_size": 0, "dense_len": 0)",
      {.budget_pages = 3, .compressed = true, .rows_from = 192}));
  cases.push_back(Uniform("moba", R"("pattern": "moba", "chunk_size": 64, "topk": 3)",
                          {.per_query_head = true,
                           .budget_pages = 3,
                           .block_pages = 1,
                           .rows_from = 192,
                           .generated = false}));
  cases.push_back(Uniform(
      "moba_generated", R"("pattern": "moba", "chunk_size": 128, "topk": 2, "generated": true)",
      {.per_query_head = true, .budget_pages = 2, .block_pages = 2, .rows_from = 256}));
  // Layer 0 dense; from layer 1 on: heads 0 and 1 (one KV head) quest, head 2 block_topk alone, head
  // 3 dense.
  const auto quest = std::make_shared<Naive>(Naive{.budget_pages = 3});
  const auto topk =
      std::make_shared<Naive>(Naive{.bound = false, .dense_prompt = false, .budget_pages = 3});
  cases.push_back(
      {.name = "mixed",
       .plan = R"({"default": {"pattern": "dense"}, "layers": [
           {"layers": "1-2", "heads": "0-1", "pattern": "quest", "budget_tokens": 192},
           {"layers": "1-2", "heads": "2", "pattern": "block_topk", "budget_tokens": 192}]})",
       .rule = [quest, topk](int32_t layer, int32_t head) -> const Naive* {
         if (layer == 0 || head == 3) return nullptr;
         return head == 2 ? topk.get() : quest.get();
       },
       .alignment = 128});
  // The same by a table of heads.
  cases.push_back(cases.back());
  cases.back().name = "head_table";
  cases.back().plan = R"({"default": {"pattern": "dense"}, "layers": [
      {"layers": "1-2", "head_table": {
         "model": "",
         "patterns": {"full": {"pattern": "dense"},
                      "quest": {"pattern": "quest", "budget_tokens": 192},
                      "block": {"pattern": "block_topk", "budget_tokens": 192}},
         "heads": [[], ["quest", "quest", "block", "full"], ["quest", "quest", "block", "full"]]}}]})";
  return cases;
}

// What the naive reader lets each query head of each layer and position read; filled while the naive
// forward pass runs.
class NaiveMask {
 public:
  NaiveMask(const ModelSpec& spec, const Case& c, int64_t num_prompt)
      : spec_(spec), case_(c), num_prompt_(num_prompt) {}

  void Watch(int32_t layer, const Rows& queries, const Rows& keys) {
    const AttentionSpec& a = spec_.layers[static_cast<size_t>(layer)].attention;
    for (int32_t h = 0; h < a.num_heads; ++h) {
      const Naive* rule = case_.rule(layer, h);
      if (rule == nullptr) continue;
      for (int64_t i = 0; i < static_cast<int64_t>(queries.size()); ++i) {
        if (rule->by_rows()) {
          if (i < rule->rows_from || (i >= num_prompt_ && !rule->generated)) continue;
          pages_[{layer, h, i}] = rule->compressed
                                      ? ChooseByCompressedKeys(*rule, a, h, i, queries, keys)
                                      : ChooseBlocks(*rule, a, h, i, queries, keys);
          continue;
        }
        if (i < num_prompt_ ? rule->dense_prompt : rule->by_shares()) continue;
        int64_t begin = i, end = i + 1;
        if (i < num_prompt_) {
          begin = i / 128 * 128;
          end = std::min(begin + 128, num_prompt_);
        }
        if (rule->by_shares()) {
          if (end - begin == 1) continue;
          if (i > begin) {
            pages_[{layer, h, i}] = pages_[{layer, h, begin}];
          } else {
            pages_[{layer, h, i}] =
                rule->similarity ? ChooseByMeans(*rule, layer, h, begin, end, queries, keys)
                : rule->segment > 0
                    ? ChooseVerticalSlash(*rule, layer, h, begin, end, queries, keys)
                    : ChooseByMass(*rule, layer, h, begin, end, queries, keys);
          }
          continue;
        }
        pages_[{layer, h, i}] = Choose(*rule, layer, h, begin, end, queries, keys);
      }
    }
  }

  bool Visible(int32_t layer, int32_t head, int64_t i, int64_t j) const {
    if (j > i) return false;
    const auto it = pages_.find({layer, head, i});
    return it == pages_.end() || it->second.contains(j / kPage);
  }

  // The smallest distance between a page that was taken for its score and one that was not.
  double margin() const { return margin_; }
  int64_t aware_lists = 0, slash_lists = 0;  // of vertical_slash with a tau

 private:
  std::set<int64_t> Choose(const Naive& rule, int32_t layer, int32_t head, int64_t begin,
                           int64_t end, const Rows& queries, const Rows& keys) {
    const AttentionSpec& a = spec_.layers[static_cast<size_t>(layer)].attention;
    const int32_t group = a.num_heads / a.num_kv_heads;
    const int64_t last = (end - 1) / kPage;
    const int64_t first_own = std::min(begin / kPage, last - rule.recent + 1);
    std::set<int64_t> chosen;
    std::vector<std::pair<double, int64_t>> others;
    for (int64_t page = 0; page <= last; ++page) {
      if (page < rule.sinks || page >= first_own) {
        chosen.insert(page);
        continue;
      }
      double best = -1e300;
      for (int32_t h = 0; h < a.num_heads; ++h) {
        // Heads of one list: the KV head's that follow the same rule, or the head itself.
        if (h / group != head / group || case_.rule(layer, h) != &rule) continue;
        if (rule.per_query_head && h != head) continue;
        best = std::max(best, Score(rule, a, h, page, begin, end, queries, keys));
      }
      others.emplace_back(-best, page);
    }
    std::sort(others.begin(), others.end());
    const int64_t pages = last + 1;
    const int64_t budget =
        rule.budget_pages > 0
            ? rule.budget_pages
            : static_cast<int64_t>(std::ceil(rule.fraction * static_cast<double>(pages) - 1e-9));
    const int64_t take = std::clamp<int64_t>(budget - static_cast<int64_t>(chosen.size()), 0,
                                             static_cast<int64_t>(others.size()));
    for (int64_t n = 0; n < take; ++n) chosen.insert(others[static_cast<size_t>(n)].second);
    if (take > 0 && take < static_cast<int64_t>(others.size())) {
      margin_ = std::min(margin_, others[static_cast<size_t>(take)].first -
                                      others[static_cast<size_t>(take - 1)].first);
    }
    return chosen;
  }

  // InfLLM-v2: the first pages, the window's, and by the attention to the means of 32 keys
  // every 16.
  std::set<int64_t> ChooseByCompressedKeys(const Naive& rule, const AttentionSpec& a, int32_t head,
                                           int64_t i, const Rows& queries, const Rows& keys) {
    const int32_t group = a.num_heads / a.num_kv_heads, kv_head = head / group;
    std::vector<double> sums(static_cast<size_t>((i - 15) / 16), 0.0);
    for (int32_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
      std::vector<double> weights;
      for (size_t c = 0; c < sums.size(); ++c) {
        double s = 0;
        for (size_t j = c * 16; j < c * 16 + 32; ++j) s += Product(a, h, i, j, queries, keys) / 32;
        weights.push_back(std::exp(s * a.scale));
      }
      const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
      for (size_t c = 0; c < sums.size(); ++c) sums[c] += weights[c] / total;
    }
    std::vector<double> scores;
    for (int64_t page = 0; page <= i / kPage; ++page) {
      double best = 0;
      for (int64_t c = std::max<int64_t>(4 * page - 1, 0); c < 4 * page + 4; ++c) {
        if (c < static_cast<int64_t>(sums.size()))
          best = std::max(best, sums[static_cast<size_t>(c)]);
      }
      const bool forced = page < rule.sinks || page > i / kPage - rule.recent;
      scores.push_back(forced ? 1e300 : best);
    }
    return Best(scores, rule.budget_pages);
  }

  // MoBA: the query's own block and the others by their mean key.
  std::set<int64_t> ChooseBlocks(const Naive& rule, const AttentionSpec& a, int32_t head, int64_t i,
                                 const Rows& queries, const Rows& keys) {
    const int64_t width = rule.block_pages * kPage;
    std::vector<double> scores;
    for (int64_t block = 0; block < i / width; ++block) {
      double s = 0;
      for (int64_t j = block * width; j < (block + 1) * width; ++j) {
        s +=
            Product(a, head, i, static_cast<size_t>(j), queries, keys) / static_cast<double>(width);
      }
      scores.push_back(s);
    }
    scores.push_back(1e300);
    std::set<int64_t> pages;
    for (const int64_t block : Best(scores, rule.budget_pages)) {
      for (int64_t p = 0; p < rule.block_pages; ++p) pages.insert(block * rule.block_pages + p);
    }
    return pages;
  }

  static double Product(const AttentionSpec& a, int32_t head, int64_t i, size_t j,
                        const Rows& queries, const Rows& keys) {
    const int32_t kv_head = head / (a.num_heads / a.num_kv_heads);
    double sum = 0;
    for (int32_t d = 0; d < a.head_dim; ++d) {
      sum += queries[static_cast<size_t>(i)][static_cast<size_t>(head * a.head_dim + d)] *
             keys[j][static_cast<size_t>(kv_head * a.head_dim + d)];
    }
    return sum;
  }

  // Indices of the largest scores.
  std::set<int64_t> Best(const std::vector<double>& scores, int64_t count) {
    std::vector<std::pair<double, int64_t>> order;
    for (size_t n = 0; n < scores.size(); ++n) {
      order.emplace_back(-scores[n], static_cast<int64_t>(n));
    }
    std::sort(order.begin(), order.end());
    const auto taken = static_cast<size_t>(std::min<int64_t>(count, std::ssize(order)));
    if (taken < order.size() && order[taken - 1].first > -1e299) {
      // Neighbours share a compressed key: such a tie is exact everywhere, and the lower page's.
      const double margin = order[taken].first - order[taken - 1].first;
      if (margin != 0) margin_ = std::min(margin_, margin);
    }
    std::set<int64_t> best;
    for (size_t n = 0; n < taken; ++n) best.insert(order[n].second);
    return best;
  }

  // Pages by columns and diagonals of what the segment's last 64 queries attend to.
  std::set<int64_t> ChooseVerticalSlash(const Naive& rule, int32_t layer, int32_t head,
                                        int64_t begin, int64_t end, const Rows& queries,
                                        const Rows& keys) {
    const AttentionSpec& a = spec_.layers[static_cast<size_t>(layer)].attention;
    const int32_t group = a.num_heads / a.num_kv_heads;
    const int64_t first = begin / rule.segment * rule.segment;
    const int64_t segment_end = std::min(first + rule.segment, num_prompt_);
    std::vector<double> columns(static_cast<size_t>(segment_end), 0.0), diagonals = columns;
    for (int32_t h = 0; h < a.num_heads; ++h) {
      if (rule.per_query_head ? h != head : h / group != head / group) continue;
      for (int64_t i = std::max(first, segment_end - 64); i < segment_end; ++i) {
        std::vector<double> weights;
        for (int64_t j = 0; j <= i; ++j) {
          double sum = 0;
          for (int32_t d = 0; d < a.head_dim; ++d) {
            sum += queries[static_cast<size_t>(i)][static_cast<size_t>(h * a.head_dim + d)] *
                   keys[static_cast<size_t>(j)][static_cast<size_t>(h / group * a.head_dim + d)];
          }
          weights.push_back(std::exp(sum * a.scale));
        }
        const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
        for (int64_t j = 0; j <= i; ++j) {
          columns[static_cast<size_t>(j)] += weights[static_cast<size_t>(j)] / total;
          diagonals[static_cast<size_t>(i - j)] += weights[static_cast<size_t>(j)] / total;
        }
      }
    }
    const int64_t last = (end - 1) / kPage;
    double mass = rule.mass;
    bool aware = false;
    if (rule.tau > 0) {
      const std::vector<double> means = SharesByMeans(
          rule, layer, head, std::max(first, segment_end - 64), segment_end, queries, keys);
      const double total = std::accumulate(columns.begin(), columns.end(), 0.0);
      double divergence = 0;
      for (size_t page = 0; page < means.size(); ++page) {
        double column = 0;
        for (size_t j = page * kPage; j < std::min(columns.size(), (page + 1) * kPage); ++j) {
          column += columns[j] / total;
        }
        const double middle = (column + means[page]) / 2;
        divergence += column / 2 * std::log(column / middle);
        divergence += means[page] / 2 * std::log(means[page] / middle);
      }
      margin_ = std::min(margin_, std::abs(std::sqrt(divergence) - rule.tau));
      aware = std::sqrt(divergence) < rule.tau;
      if (aware) mass = 0;
      ++(aware ? aware_lists : slash_lists);
    }
    std::set<int64_t> chosen = HeaviestRuns(columns, rule.vertical, mass);
    std::erase_if(chosen, [&](int64_t page) { return page > last; });
    for (int64_t page = 0; page <= last; ++page) {
      if (page < rule.sinks || page >= std::min(begin / kPage, last - rule.recent + 1)) {
        chosen.insert(page);
      }
    }
    for (const int64_t run : HeaviestRuns(diagonals, rule.slash, mass)) {
      for (int64_t i = begin; i < end; ++i) {
        for (const int64_t j : {i - run * 64, i - run * 64 - 63}) {
          if (j >= 0) chosen.insert(j / kPage);
        }
      }
      if (end - 1 - run * 64 >= 0 && begin - run * 64 - 63 < 0) chosen.insert(0);
    }
    if (!aware) return chosen;
    return FillUp(rule.mass, SharesByMeans(rule, layer, head, begin, end, queries, keys),
                  std::move(chosen));
  }

  // The best pages beside `chosen` until all that is chosen holds the mass.
  std::set<int64_t> FillUp(double mass, const std::vector<double>& shares,
                           std::set<int64_t> chosen) {
    std::vector<std::pair<double, int64_t>> others;
    double kept = 0;
    for (size_t page = 0; page < shares.size(); ++page) {
      const auto id = static_cast<int64_t>(page);
      if (chosen.contains(id)) {
        kept += shares[page];
      } else {
        others.emplace_back(-shares[page], id);
      }
    }
    std::sort(others.begin(), others.end());
    for (size_t n = 0; n < others.size(); ++n) {
      margin_ = std::min(margin_, std::abs(kept - mass));
      if (kept >= mass) {
        if (n > 0) margin_ = std::min(margin_, others[n].first - others[n - 1].first);
        break;
      }
      kept -= others[n].first;
      chosen.insert(others[n].second);
    }
    return chosen;
  }

  static double MeanCosine(const std::vector<std::vector<double>>& vectors) {
    double sum = 0;
    for (const auto& a : vectors) {
      for (const auto& b : vectors) {
        sum += std::inner_product(a.begin(), a.end(), b.begin(), 0.0) /
               std::sqrt(std::inner_product(a.begin(), a.end(), a.begin(), 0.0) *
                         std::inner_product(b.begin(), b.end(), b.begin(), 0.0));
      }
    }
    return sum / static_cast<double>(vectors.size() * vectors.size());
  }

  // Part of rows [begin, end): one head's channels.
  static std::vector<std::vector<double>> Vectors(const Rows& rows, int64_t begin, int64_t end,
                                                  int32_t head, int32_t dim) {
    std::vector<std::vector<double>> out;
    for (int64_t i = begin; i < end; ++i) {
      const auto first = rows[static_cast<size_t>(i)].begin() + head * dim;
      out.emplace_back(first, first + dim);
    }
    return out;
  }

  // The softmax of products of mean queries and pages' mean keys, over pages whose keys are alike;
  // the mean over the heads of a list.
  std::vector<double> SharesByMeans(const Naive& rule, int32_t layer, int32_t head, int64_t begin,
                                    int64_t end, const Rows& queries, const Rows& keys,
                                    std::vector<bool>* alike = nullptr,
                                    bool* rows_alike = nullptr) {
    const AttentionSpec& a = spec_.layers[static_cast<size_t>(layer)].attention;
    const int32_t group = a.num_heads / a.num_kv_heads;
    const auto pages = static_cast<size_t>((end - 1) / kPage + 1);
    std::vector<double> shares(pages, 0.0);
    int32_t heads = 0;
    for (int32_t h = 0; h < a.num_heads; ++h) {
      if (rule.per_query_head ? h != head : h / group != head / group) continue;
      ++heads;
      const auto rows = Vectors(queries, begin, end, h, a.head_dim);
      std::vector<double> weights;
      for (size_t page = 0; page < pages; ++page) {
        const auto first = static_cast<int64_t>(page) * kPage;
        const auto page_keys =
            Vectors(keys, first, std::min(end, first + kPage), h / group, a.head_dim);
        bool counts = true;
        if (rule.similarity) {
          const double cosine = MeanCosine(page_keys);
          margin_ = std::min(margin_, std::abs(cosine - *rule.similarity));
          counts = cosine > *rule.similarity;
          (*alike)[page] = counts;
        }
        double score = 0;
        for (int32_t d = 0; d < a.head_dim; ++d) {
          double q = 0, k = 0;
          for (const auto& row : rows)
            q += row[static_cast<size_t>(d)] / static_cast<double>(rows.size());
          for (const auto& key : page_keys) {
            k += key[static_cast<size_t>(d)] / static_cast<double>(page_keys.size());
          }
          score += q * k;
        }
        weights.push_back(counts ? std::exp(score * a.scale) : 0.0);
      }
      if (rule.similarity) {
        const double cosine = MeanCosine(rows);
        margin_ = std::min(margin_, std::abs(cosine - *rule.similarity));
        if (cosine <= *rule.similarity) *rows_alike = false;
      }
      const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
      for (size_t page = 0; page < pages && total > 0; ++page)
        shares[page] += weights[page] / total;
    }
    for (double& share : shares) share /= heads;
    return shares;
  }

  // SpargeAttn's block map.
  std::set<int64_t> ChooseByMeans(const Naive& rule, int32_t layer, int32_t head, int64_t begin,
                                  int64_t end, const Rows& queries, const Rows& keys) {
    const int64_t last = (end - 1) / kPage;
    std::vector<bool> alike(static_cast<size_t>(last + 1), true);
    bool rows_alike = true;
    const std::vector<double> shares =
        SharesByMeans(rule, layer, head, begin, end, queries, keys, &alike, &rows_alike);
    std::set<int64_t> chosen;
    std::vector<std::pair<double, int64_t>> ranked;
    for (int64_t page = 0; page <= last; ++page) {
      const auto at = static_cast<size_t>(page);
      const bool forced =
          page < rule.sinks || page >= std::min(begin / kPage, last - rule.recent + 1);
      if (!rows_alike || !alike[at] || forced) chosen.insert(page);
      if (alike[at]) ranked.emplace_back(-shares[at], page);
    }
    std::sort(ranked.begin(), ranked.end());
    double sum = 0;
    for (size_t n = 0; n < ranked.size(); ++n) {
      sum -= ranked[n].first;
      if (n > 0 && rows_alike) margin_ = std::min(margin_, std::abs(sum - rule.mass));
      if (n > 0 && sum > rule.mass) {
        if (rows_alike) margin_ = std::min(margin_, ranked[n].first - ranked[n - 1].first);
        break;
      }
      chosen.insert(ranked[n].second);
    }
    return chosen;
  }

  // Runs of 64 weights by their heaviest.
  std::set<int64_t> HeaviestRuns(const std::vector<double>& weights, int64_t count, double mass) {
    std::vector<std::pair<double, int64_t>> runs;
    for (size_t i = 0; i < weights.size(); ++i) {
      if (i % 64 == 0) runs.emplace_back(0.0, static_cast<int64_t>(i / 64));
      runs.back().first = std::min(runs.back().first, -weights[i]);
    }
    std::sort(runs.begin(), runs.end());
    if (mass > 0) {
      std::vector<double> sorted = weights;
      std::sort(sorted.rbegin(), sorted.rend());
      const double wanted = mass * std::accumulate(sorted.begin(), sorted.end(), 0.0);
      int64_t n = 0;
      double sum = 0;
      for (; sum < wanted; ++n) sum += sorted[static_cast<size_t>(n)];
      // One weight more or less may be another run.
      if (n % 64 == 0 || n % 64 == 63) margin_ = std::min(margin_, std::abs(sum - wanted));
      count = std::max(count, n / 64 + 1);
    }
    std::set<int64_t> taken;
    for (size_t n = 0; n < runs.size() && static_cast<int64_t>(n) < count; ++n) {
      taken.insert(runs[n].second);
    }
    if (count > 0 && count < static_cast<int64_t>(runs.size())) {
      const auto at = static_cast<size_t>(count);
      margin_ = std::min(margin_, runs[at].first - runs[at - 1].first);
    }
    return taken;
  }

  // Pages by the shares that antidiagonals give them, of the heads of one list together.
  std::set<int64_t> ChooseByMass(const Naive& rule, int32_t layer, int32_t head, int64_t begin,
                                 int64_t end, const Rows& queries, const Rows& keys) {
    const AttentionSpec& a = spec_.layers[static_cast<size_t>(layer)].attention;
    const int32_t group = a.num_heads / a.num_kv_heads;
    const int64_t last = (end - 1) / kPage;
    std::vector<double> shares(static_cast<size_t>(last + 1), 0.0);
    for (int32_t h = 0; h < a.num_heads; ++h) {
      if (rule.per_query_head ? h != head : h / group != head / group) continue;
      for (int64_t n = begin / rule.stride; n * rule.stride < end; ++n) {
        std::vector<double> weights;
        for (int64_t m = 0; m <= n; ++m) {
          double sum = 0;
          for (int64_t t = 0; t < rule.stride; ++t) {
            const int64_t i = (n + 1) * rule.stride - 1 - t, j = m * rule.stride + t;
            for (int32_t d = 0; i < end && j < end && d < a.head_dim; ++d) {
              sum += queries[static_cast<size_t>(i)][static_cast<size_t>(h * a.head_dim + d)] *
                     keys[static_cast<size_t>(j)][static_cast<size_t>(h / group * a.head_dim + d)];
            }
          }
          weights.push_back(std::exp(sum * a.scale / static_cast<double>(rule.stride)));
        }
        const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
        for (size_t m = 0; m < weights.size(); ++m) {
          shares[m * static_cast<size_t>(rule.stride) / kPage] += weights[m] / total;
        }
      }
    }
    const double total = std::accumulate(shares.begin(), shares.end(), 0.0);
    std::set<int64_t> chosen;
    for (int64_t page = 0; page <= last; ++page) {
      shares[static_cast<size_t>(page)] /= total;
      if (page < rule.sinks || page >= std::min(begin / kPage, last - rule.recent + 1)) {
        chosen.insert(page);
      }
    }
    return FillUp(rule.mass, shares, std::move(chosen));
  }

  static double Score(const Naive& rule, const AttentionSpec& a, int32_t head, int64_t page,
                      int64_t begin, int64_t end, const Rows& queries, const Rows& keys) {
    const int32_t kv_head = head / (a.num_heads / a.num_kv_heads);
    double score = 0;
    for (int32_t d = 0; d < a.head_dim; ++d) {
      double q = 0, min = 1e300, max = -1e300, mean = 0;
      for (int64_t i = begin; i < end; ++i) {
        q += queries[static_cast<size_t>(i)][static_cast<size_t>(head * a.head_dim + d)] /
             static_cast<double>(end - begin);
      }
      for (int64_t j = page * kPage; j < (page + 1) * kPage; ++j) {
        const double k = keys[static_cast<size_t>(j)][static_cast<size_t>(kv_head * a.head_dim + d)];
        min = std::min(min, k);
        max = std::max(max, k);
        mean += k / kPage;
      }
      score += rule.bound ? std::max(q * min, q * max) : q * mean;
    }
    return score;
  }

  const ModelSpec& spec_;
  const Case& case_;
  int64_t num_prompt_;
  std::map<std::tuple<int32_t, int32_t, int64_t>, std::set<int64_t>> pages_;
  double margin_ = 1e300;
};

std::vector<int32_t> Tokens(size_t n, std::mt19937* random) {
  std::vector<int32_t> tokens(n);
  for (int32_t& t : tokens) t = static_cast<int32_t>((*random)() % 97);
  return tokens;
}

std::vector<int32_t> Part(const std::vector<int32_t>& tokens, size_t begin, size_t end) {
  return {tokens.begin() + static_cast<std::ptrdiff_t>(begin),
          tokens.begin() + static_cast<std::ptrdiff_t>(end)};
}

// Logits of a prompt computed in chunks and of the output behind it.
FloatRows Compute(PagedRunner* runner, int sequence, const std::vector<int32_t>& prompt,
                  int32_t prompt_chunk, const std::vector<int32_t>& output, int32_t output_chunk) {
  FloatRows rows = runner->Prefill(sequence, prompt, prompt_chunk);
  const FloatRows more =
      runner->Prefill(sequence, output, output_chunk, 0, NumericsClass::kGenerated);
  rows.insert(rows.end(), more.begin(), more.end());
  return rows;
}

// The first row that differs, or -1.
int64_t FirstDifference(const FloatRows& a, const FloatRows& b) {
  if (a.size() != b.size()) return static_cast<int64_t>(std::min(a.size(), b.size()));
  for (size_t r = 0; r < a.size(); ++r) {
    if (a[r] != b[r]) return static_cast<int64_t>(r);
  }
  return -1;
}

class RankedPatternTest : public ::testing::TestWithParam<Case> {
 protected:
  static constexpr size_t kPrompt = 430, kAll = 440;
  TinyModel model_{{.layers = 3}};
  unsigned seed_ = std::random_device()();
  std::mt19937 random_{seed_};
  testing::ScopedTrace trace_{__FILE__, __LINE__, StrCat("seed ", seed_)};

  static bool ByShares() {
    const Naive* rule = GetParam().rule(1, 0);
    return rule != nullptr && rule->by_shares();
  }
  static bool GeneratedReadAll() {
    const Naive* rule = GetParam().rule(1, 0);
    return rule != nullptr && rule->by_rows() && !rule->generated;
  }
  // Rows that choose one by one come close to a tie more often than tiles do.
  static double LeastMargin() {
    const Naive* rule = GetParam().rule(1, 0);
    if (rule != nullptr && rule->by_rows()) return rule->compressed ? 2e-7 : 2e-6;
    return ByShares() ? 2e-5 : 1e-4;
  }
};

constexpr auto kGenerated = NumericsClass::kGenerated;

TEST_P(RankedPatternTest, MatchesTheNaiveMask) {
  std::vector<int32_t> tokens;
  NaiveOutput want, dense;
  std::unique_ptr<NaiveMask> mask;
  // A tie of two pages within float32's error may go either way: such text is passed over. Shares of
  // attention are sums of many terms below 1, and closer to each other.
  const double kLeastMargin = LeastMargin();
  for (int attempt = 0; attempt < 12; ++attempt) {
    tokens = Tokens(kAll, &random_);
    mask = std::make_unique<NaiveMask>(model_.spec, GetParam(), kPrompt);
    want = NaiveForward(
        model_.spec, tokens,
        [&](int32_t l, int32_t h, int64_t i, int64_t j) { return mask->Visible(l, h, i, j); }, 0,
        [&](int32_t l, const Rows& q, const Rows& k) { mask->Watch(l, q, k); });
    if (mask->margin() > kLeastMargin) break;
  }
  ASSERT_GT(mask->margin(), kLeastMargin);
  if (const Naive* rule = GetParam().rule(1, 0); rule != nullptr && rule->tau > 0) {
    EXPECT_GT(mask->aware_lists, 0);
    EXPECT_GT(mask->slash_lists, 0);
  }
  for (const BackendKind kind : Backends()) {
    PagedRunner runner(&model_.spec, GetParam().plan, kind);
    const FloatRows got =
        Compute(&runner, 0, Part(tokens, 0, kPrompt), 512, Part(tokens, kPrompt, kAll), 1);
    ASSERT_EQ(got.size(), want.logits.size());
    if (ByShares()) {  // what was read can only be counted
      int64_t visible = 0;
      for (int64_t i = 0; i < static_cast<int64_t>(kPrompt); ++i) {
        for (int32_t l = 0; l < 3; ++l) {
          for (int32_t h = 0; h < model_.spec.layers[0].attention.num_heads; ++h) {
            for (int64_t j = 0; j <= i; ++j) visible += mask->Visible(l, h, i, j) ? 1 : 0;
          }
        }
      }
      PagedRunner counting(&model_.spec, GetParam().plan, kind);
      counting.Prefill(0, Part(tokens, 0, kPrompt), 512);
      EXPECT_EQ(counting.counters[0].keys_visible, visible);
      EXPECT_GE(counting.counters[0].keys_read, visible);
      EXPECT_LT(visible, counting.counters[0].keys_total);
    }
    double worst = 0, moved = 0;
    for (size_t r = 0; r < got.size(); ++r) {
      for (size_t c = 0; c < got[r].size(); ++c) {
        worst = std::max(worst, std::abs(got[r][c] - want.logits[r][c]));
      }
    }
    EXPECT_LT(worst, 2e-3) << "backend " << static_cast<int>(kind);
    // The same text under dense attention is something else.
    PagedRunner all(&model_.spec, "{}", kind);
    const FloatRows other = all.Prefill(0, tokens, 512);
    for (size_t c = 0; c < got.back().size(); ++c) {
      moved = std::max<double>(moved, std::abs(got.back()[c] - other.back()[c]));
    }
    EXPECT_TRUE(GeneratedReadAll() || moved > 1e-2) << "the pattern changes nothing";
  }
}

// Chunks of every allowed size, decoding after a prefix hit, preemption and resumption, company and
// fewer wanted rows: the same bits.
TEST_P(RankedPatternTest, HowItIsComputedDoesNotChangeBits) {
  const std::vector<int32_t> tokens = Tokens(kAll, &random_);
  const std::vector<int32_t> prompt = Part(tokens, 0, kPrompt), output = Part(tokens, kPrompt, kAll);
  for (const BackendKind kind : Backends()) {
    PagedRunner runner(&model_.spec, GetParam().plan, kind, kernels::KvDType::kF16, 1024);
    EXPECT_EQ(runner.plan().chunk_alignment, GetParam().alignment);
    const Naive* rule = GetParam().rule(1, 0);
    EXPECT_EQ(runner.plan().one_numerics_class,
              rule != nullptr && rule->by_rows() && rule->generated);
    const FloatRows want = Compute(&runner, 0, prompt, 1024, output, 1);
    const int32_t tile = GetParam().alignment;
    const std::vector<int32_t> chunks = tile > 1 ? std::vector<int32_t>{tile, 2 * tile, 3 * tile}
                                                 : std::vector<int32_t>{1, 63, 64, 65, 128};
    int sequence = 1;
    for (const int32_t chunk : chunks) {
      EXPECT_EQ(FirstDifference(Compute(&runner, sequence, prompt, chunk, output, 7), want), -1)
          << "chunk " << chunk;
      runner.Drop(sequence++);
    }
    // A prefix hit: pages (whole tiles) of the first sequence, the rest computed; then preempted
    // in decoding and resumed, its output replayed in its own class.
    const int32_t hit = 256;
    runner.Share(0, sequence, hit);
    const FloatRows after_hit(want.begin() + hit, want.end());
    const std::vector<int32_t> rest = Part(prompt, hit, kPrompt);
    EXPECT_EQ(FirstDifference(Compute(&runner, sequence, rest, 1024, output, 1), after_hit), -1);
    runner.Drop(sequence);
    runner.Share(0, sequence, hit);
    EXPECT_EQ(FirstDifference(Compute(&runner, sequence, rest, 256, output, 1024), after_hit), -1);
    // Only the last row of each chunk is wanted; on two threads, with others decoding beside it.
    PagedRunner busy(&model_.spec, GetParam().plan, kind, kernels::KvDType::kF16, 1024, 2);
    const std::vector<int32_t> other = Tokens(200, &random_);
    busy.Prefill(5, other, 1024);
    for (size_t at = 0; at < kAll;) {
      const bool generated = at >= kPrompt;
      const size_t count = generated ? 1 : std::min<size_t>(256, kPrompt - at);
      ASSERT_TRUE(busy.Step({{.sequence = 1,
                              .tokens = Part(tokens, at, at + count),
                              .num_logits = 1,
                              .numerics = generated ? kGenerated : NumericsClass::kPrompt},
                             {.sequence = 5,
                              .tokens = {other[at % 200]},
                              .num_logits = 1,
                              .numerics = kGenerated}})
                      .ok());
      at += count;
      EXPECT_TRUE(busy.logits[0] == want[at - 1]) << "row " << at - 1;
    }
  }
}

// What is read is what was asked for, and what the pattern says it will be.
TEST_P(RankedPatternTest, CountsTheKeysThatAreRead) {
  if (ByShares()) GTEST_SKIP() << "how much is read is known afterwards only";
  const std::vector<int32_t> tokens = Tokens(kAll, &random_);
  PagedRunner runner(&model_.spec, GetParam().plan, BackendKind::kCpu);
  const auto expect = [&](int64_t begin, int64_t end, NumericsClass numerics) {
    for (size_t p = 0; p < runner.plan().patterns.size(); ++p) {
      double heads = 0;
      for (const LayerPlan& layer : runner.plan().layers) {
        for (const HeadSegment& segment : layer.segments) {
          if (segment.pattern == static_cast<int32_t>(p)) heads += segment.query.count;
        }
      }
      double visible = 0;
      for (int64_t i = begin; i < end; ++i) {
        visible += heads * runner.plan().patterns[p]->VisibleKeys(i, numerics);
      }
      EXPECT_EQ(static_cast<double>(runner.counters[p].keys_visible), visible);
    }
  };
  runner.Prefill(0, Part(tokens, 0, 384), 384);  // whole tiles
  expect(0, 384, NumericsClass::kPrompt);
  runner.Prefill(0, {tokens[384]}, 1, 0, kGenerated);
  expect(384, 385, kGenerated);
  EXPECT_LT(runner.plan().Density(384, GeneratedReadAll() ? NumericsClass::kPrompt : kGenerated),
            0.95);
}

INSTANTIATE_TEST_SUITE_P(Families, RankedPatternTest, ::testing::ValuesIn(Cases()),
                         [](const auto& info) { return info.param.name; });

// A budget of the whole context is dense attention to the bit.
TEST(RankedPatterns, AFullBudgetIsDense) {
  const TinyModel model({.layers = 3, .sinks = true, .softcap = 5.0f});
  std::mt19937 random(std::random_device{}());
  const std::vector<int32_t> tokens = Tokens(400, &random);
  std::vector<std::pair<BackendKind, kernels::KvDType>> cases;
  for (const BackendKind kind : Backends()) {
    cases.emplace_back(kind, kernels::KvDType::kQ8);
    cases.emplace_back(kind, kernels::KvDType::kFp8);
  }
  for (const auto& [kind, dtype] : cases) {
    SCOPED_TRACE(kernels::KvDTypeName(dtype));
    const auto run = [&, kind = kind, dtype = dtype](const std::string& plan) {
      PagedRunner runner(&model.spec, plan, kind, dtype);
      return Compute(&runner, 0, Part(tokens, 0, 390), 256, Part(tokens, 390, 400), 1);
    };
    const FloatRows dense = run("{}");
    const FloatRows quest = run(R"({"default": {"pattern": "quest", "budget_tokens": 1024}})");
    EXPECT_EQ(FirstDifference(quest, dense), -1);
    const FloatRows topk = run(R"({"default": {"pattern": "block_topk", "fraction": 1}})");
    EXPECT_EQ(FirstDifference(topk, dense), -1);
    for (const char* rule : {R"("pattern": "xattention", "threshold": 1)",
                             R"("pattern": "vertical_slash", "gamma": 1, "segment": 128)",
                             R"("pattern": "vertical_slash", "gamma": 1, "tau": 1, "segment": 128)",
                             R"("pattern": "spargeattn", "threshold": 1)",
                             R"("pattern": "vertical_slash", "vertical_tokens": 512,
                                "slash_tokens": 0, "segment": 256)"}) {
      const FloatRows all = run(StrCat(R"({"default": {)", rule, "}}"));
      EXPECT_EQ(FirstDifference(all, dense), -1) << rule;
    }
  }
}

// A prompt's rows that choose one by one go through the kernels of generated rows: near the
// reference, and the same bits however the prompt is cut.
TEST(RankedPatterns, TensorCoresKeepBitsOfRowsThatStandAlone) {
  if (Backends().back() != BackendKind::kCuda) GTEST_SKIP() << "no CUDA device";
  const TinyModel model({.layers = 1, .heads = 8, .kv_heads = 2, .head_dim = 64, .dim = 128});
  std::mt19937 random(std::random_device{}());
  const std::vector<int32_t> tokens = Tokens(700, &random);
  for (const char* rule :
       {R"("pattern": "infllm_v2", "topk": 3, "window_size": 64, "dense_len": 300)",
        R"("pattern": "moba", "chunk_size": 128, "topk": 2)"}) {
    SCOPED_TRACE(rule);
    const std::string plan = StrCat(R"({"default": {)", rule, "}}");
    PagedRunner reference(&model.spec, plan, BackendKind::kReference, kernels::KvDType::kF16, 1024);
    const FloatRows want = reference.Prefill(0, tokens, 1024);
    PagedRunner device(&model.spec, plan, BackendKind::kCuda, kernels::KvDType::kF16, 1024);
    const FloatRows once = device.Prefill(0, tokens, 1024);
    // Near ties may fall the other way: few rows do.
    std::vector<double> errors;
    for (size_t r = 0; r < want.size(); ++r) {
      double worst = 0;
      for (size_t c = 0; c < want[r].size(); ++c) {
        worst = std::max<double>(worst, std::abs(once[r][c] - want[r][c]));
      }
      errors.push_back(worst);
    }
    std::sort(errors.begin(), errors.end());
    EXPECT_LT(errors[errors.size() * 19 / 20], 2e-2);
    int sequence = 1;
    for (const int32_t chunk : {1, 63, 64, 65, 301}) {
      EXPECT_EQ(FirstDifference(device.Prefill(sequence, tokens, chunk), once), -1) << chunk;
      device.Drop(sequence++);
    }
  }
}

TEST(RankedPatterns, PromptsBeginTheirChunksAtTiles) {
  const TinyModel model({.layers = 1});
  PagedRunner runner(&model.spec, R"({"default": {"pattern": "block_topk", "fraction": 0.5}})");
  ASSERT_TRUE(runner.Step({{.sequence = 0, .tokens = std::vector<int32_t>(100, 1)}}).ok());
  const absl::Status status = runner.Step({{.sequence = 0, .tokens = {1, 2}}});
  EXPECT_THAT(std::string(status.message()), HasSubstr("begins at position 100"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("multiples of 128"));
}

// Pages that carry summaries cost them, and only groups that are ranked do.
TEST(RankedPatterns, SummariesAreCountedInPages) {
  const TinyModel model({.layers = 3});
  PagedRunner dense(&model.spec, "{}", BackendKind::kReference, kernels::KvDType::kF16);
  PagedRunner runner(
      &model.spec,
      R"({"layers": [{"layers": "1-2", "pattern": "quest", "budget_tokens": 128}]})",
      BackendKind::kReference, kernels::KvDType::kF16);
  const std::vector<CacheGroup>& groups = runner.plan().groups;
  ASSERT_EQ(groups.size(), 2u);
  EXPECT_EQ(groups[0].name, "full");
  EXPECT_FALSE(groups[0].summaries);
  EXPECT_EQ(groups[1].name, "full_summaries");
  // Two KV heads of 16 channels: 3 rows of f16 each.
  EXPECT_EQ(groups[1].page_bytes, 2 * (dense.plan().groups[0].page_bytes / 3 + 2 * 3 * 16 * 2));
}

}  // namespace
}  // namespace longstride::model

// What choosing a prompt's pages by its queries costs and saves: one layer's prefill of a long
// prompt, chunk by chunk through the backend's own interface, with dense attention and with a
// family's estimate and attention over what it chose, beside the layer's matrix products. The
// family's threshold (xattention: the share of attention; vertical_slash: pages of columns and of
// diagonals) is searched first until the keys that are read are the wanted fraction of dense
// attention's. block_topk has a budget instead, the same at every length: how its time grows with
// the length is the question (--compare 0 leaves dense attention and the products out).
//
//   prefill_selection_bench [--device cpu|cuda] [--family xattention|vertical_slash|block_topk]
//       [--length N] [--keys N, block_topk's budget] [--compare 0|1] ...
//
// Queries and keys are random with the structure that prompts show. With unit vectors that every
// head draws for itself, and s = sqrt(head_dim):
//   - sinks: every query has 2.2 sqrt(s) along a, the keys of page 0 have as much;
//   - places: pages draw one of 48 topics in runs of 1 to 8 pages; a topic is a direction, along
//   which the
//     keys of its pages have 2.0 sqrt(s), and queries 2.0 sqrt(s) along their own page's and 1.4
//     sqrt(s) along that of one earlier page, drawn anew for each page;
//   - columns: one key in 512 has 2.4 sqrt(s) along b, and all queries have as much;
//   - all of it in noise of unit variance for each channel.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace longstride::kernels {
namespace {

struct Options {
  std::map<std::string, std::string> values = {
      {"device", "cpu"}, {"family", "xattention"}, {"length", "131072"}, {"chunk", "8192"},
      {"q-heads", "32"}, {"kv-heads", "8"},        {"dim", "128"},       {"density", "0.1"},
      {"stride", "16"},  {"segment", "2048"},      {"width", "4096"},    {"ffn", "14336"},
      {"threads", "0"},  {"keys", "8192"},         {"compare", "1"}};
  int64_t Int(const char* name) const { return std::atoll(values.at(name).c_str()); }
  double Number(const char* name) const { return std::atof(values.at(name).c_str()); }
};

void Check(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(1);
}

template <typename T>
T Take(absl::StatusOr<T> value) {
  Check(value.status());
  return *std::move(value);
}

TensorView View(void* data, Device device, std::initializer_list<int64_t> dims,
                DType type = DType::kF32) {
  return TensorView::Contiguous(data, type, dims.begin(), static_cast<int>(dims.size()), device);
}

PageScore ScoreOf(const std::string& family) {
  const std::map<std::string, PageScore> scores = {{"xattention", PageScore::kAntidiagonal},
                                                   {"vertical_slash", PageScore::kVerticalSlash},
                                                   {"block_topk", PageScore::kMean}};
  const auto it = scores.find(family);
  if (it == scores.end()) {
    std::fprintf(stderr, "unknown family %s\n", family.c_str());
    std::exit(2);
  }
  return it->second;
}

class Bench {
 public:
  explicit Bench(const Options& o)
      : length_(o.Int("length")),
        chunk_(o.Int("chunk")),
        q_heads_(o.Int("q-heads")),
        kv_heads_(o.Int("kv-heads")),
        dim_(o.Int("dim")),
        width_(o.Int("width")),
        ffn_(o.Int("ffn")),
        wanted_(o.Number("density")),
        score_(ScoreOf(o.values.at("family"))),
        list_heads_(score_ == PageScore::kMean ? ListHeads::kPerKvHead : ListHeads::kPerQHead),
        top_pages_(o.Int("keys") / kPageTokens),
        compare_(o.Int("compare") != 0),
        stride_(static_cast<int32_t>(o.Int("stride"))),
        segment_(static_cast<int32_t>(o.Int("segment"))) {
    cuda_ = o.values.at("device") == "cuda";
    backend_ = Take(MakeBackend(cuda_ ? BackendKind::kCuda : BackendKind::kCpu,
                                {.num_threads = static_cast<int>(o.Int("threads"))}));
    pages_ = length_ / kPageTokens;
    page_table_.resize(static_cast<size_t>(pages_));
    std::iota(page_table_.begin(), page_table_.end(), 0);
    std::shuffle(page_table_.begin(), page_table_.end(), random_);
    MakeInputs();
    for (int64_t at = 0; at < length_; at += chunk_) chunks_.push_back(MakeChunk(at));
    int64_t entries = 0;
    for (const Chunk& c : chunks_) entries = std::max(entries, c.num_entries);
    made_ = Take(backend_->Allocate(entries * 4));
    out_ = Take(backend_->Allocate(chunk_ * q_heads_ * dim_ * 4));
    std::vector<int32_t> all(static_cast<size_t>(pages_));
    std::iota(all.begin(), all.end(), 0);
    all_ = all;
  }

  void Run() {
    if (score_ == PageScore::kMean) {
      density_ = Density();
    } else {
      Search();
    }
    const double estimate = Time([&](const Chunk& c) { Select(c); });
    const double both = Time([&](const Chunk& c) {
      Select(c);
      Attend(c, true);
    });
    std::printf("%s; %lld tokens in chunks of %lld, heads %lld/%lld of %lld\n",
                backend_->Describe().c_str(), static_cast<long long>(length_),
                static_cast<long long>(chunk_), static_cast<long long>(q_heads_),
                static_cast<long long>(kv_heads_), static_cast<long long>(dim_));
    switch (score_) {
      case PageScore::kAntidiagonal:
        std::printf("xattention, stride %d, mass %.4f: ", stride_, mass_);
        break;
      case PageScore::kVerticalSlash:
        std::printf("vertical_slash, segment %d, %d + %d pages: ", segment_, budget_, budget_);
        break;
      default:
        std::printf("block_topk, %lld keys: ", static_cast<long long>(top_pages_ * kPageTokens));
    }
    std::printf("density %.2f%%\n", 100 * density_);
    std::printf("a layer: estimate %.2f ms, estimate + attention %.2f ms\n", estimate, both);
    if (!compare_) return;
    const double products = Products();
    const double dense = Time([&](const Chunk& c) { Attend(c, false); });
    const double again = Time([&](const Chunk& c) { Attend(c, false); });
    const double saved = dense - (both - estimate);
    std::printf("         dense attention %.2f ms (again %.2f), matrix products %.2f ms\n", dense,
                again, products);
    std::printf("estimate / attention time saved: %.1f%%; end to end: %.2fx\n",
                100 * estimate / saved, (products + std::min(dense, again)) / (products + both));
  }

 private:
  struct Chunk {
    std::vector<QueryTile> tiles;
    std::vector<int32_t> counts, list_count, kv_lens, all_count, pages, page_tokens;
    std::vector<int64_t> list_begin, all_begin;
    int64_t num_entries = 0;
    TensorView q;
  };

  std::vector<float> Direction() {
    std::vector<float> v(static_cast<size_t>(dim_));
    double norm = 0;
    for (float& x : v) {
      x = normal_(random_);
      norm += x * x;
    }
    for (float& x : v) x /= static_cast<float>(std::sqrt(norm));
    return v;
  }

  // Head by head on the host, into [rows, heads, dim] of a chunk, and the keys into the cache.
  void MakeInputs() {
    const double s = std::sqrt(static_cast<double>(dim_)), root = std::sqrt(s);
    constexpr int kTopics = 48;
    const KvDType dtype = cuda_ ? KvDType::kBF16 : KvDType::kF16;
    const int64_t head = KvHeadPageBytes(dtype, static_cast<int32_t>(dim_));
    const int64_t plane = head * kv_heads_;
    const int64_t summary =
        (PageSummaryBytes(dtype, static_cast<int32_t>(dim_)) * kv_heads_ + 63) / 64 * 64;
    const int64_t page_bytes = 2 * plane + (UsesSummaries(score_) ? summary : 0);
    memory_ = Take(backend_->Allocate(page_bytes * pages_));
    cache_ = {.k = memory_.data(),
              .v = memory_.as<char>() + plane,
              .page_stride = page_bytes,
              .head_stride = head,
              .num_pages = static_cast<int32_t>(pages_),
              .num_heads = static_cast<int32_t>(kv_heads_),
              .head_dim = static_cast<int32_t>(dim_),
              .dtype = dtype,
              .summaries = UsesSummaries(score_) ? memory_.as<char>() + 2 * plane : nullptr};
    struct Head {
      std::vector<float> sink, column;
      std::vector<std::vector<float>> topics;
    };
    std::vector<Head> heads;
    for (int64_t h = 0; h < kv_heads_; ++h) {
      Head made{Direction(), Direction(), {}};
      for (int t = 0; t < kTopics; ++t) made.topics.push_back(Direction());
      heads.push_back(std::move(made));
    }
    std::vector<int> topic;
    while (static_cast<int64_t>(topic.size()) < pages_) {
      topic.insert(topic.end(), 1 + random_() % 8, static_cast<int>(random_() % kTopics));
    }
    // Noise is drawn once and read from another place for every row: what counts is that it
    // differs.
    std::vector<float> noise(1 << 20);
    for (float& x : noise) x = normal_(random_);
    const int64_t group = q_heads_ / kv_heads_;
    std::vector<float> q(static_cast<size_t>(chunk_ * q_heads_ * dim_));
    std::vector<float> k(static_cast<size_t>(chunk_ * kv_heads_ * dim_));
    for (int64_t begin = 0; begin < length_; begin += chunk_) {
      std::vector<int32_t> ids, slots;
      for (int64_t i = begin; i < begin + chunk_; ++i) {
        const int64_t page = i / kPageTokens;
        ids.push_back(page_table_[static_cast<size_t>(page)]);
        slots.push_back(static_cast<int32_t>(i % kPageTokens));
        const bool column = random_() % 512 == 0;
        for (int64_t h = 0; h < q_heads_; ++h) {
          const Head& made = heads[static_cast<size_t>(h / group)];
          const auto& own = made.topics[static_cast<size_t>(topic[static_cast<size_t>(page)])];
          const int64_t earlier = (page * 7919 + h * 104729) % (page + 1);
          const auto& other = made.topics[static_cast<size_t>(topic[static_cast<size_t>(earlier)])];
          const size_t at = random_() % (noise.size() - static_cast<size_t>(dim_));
          float* x = q.data() + ((i - begin) * q_heads_ + h) * dim_;
          for (int64_t d = 0; d < dim_; ++d) {
            const auto c = static_cast<size_t>(d);
            x[d] = noise[at + c] + static_cast<float>(2.2 * root) * made.sink[c] +
                   static_cast<float>(2.4 * root) * made.column[c] +
                   static_cast<float>(2.0 * root) * own[c] +
                   static_cast<float>(1.4 * root) * other[c];
          }
          if (h % group != 0) continue;
          const size_t key_at = random_() % (noise.size() - static_cast<size_t>(dim_));
          float* y = k.data() + ((i - begin) * kv_heads_ + h / group) * dim_;
          for (int64_t d = 0; d < dim_; ++d) {
            const auto c = static_cast<size_t>(d);
            y[d] = noise[key_at + c] + static_cast<float>(2.0 * root) * own[c] +
                   (page == 0 ? static_cast<float>(2.2 * root) * made.sink[c] : 0.0f) +
                   (column ? static_cast<float>(2.4 * root) * made.column[c] : 0.0f);
          }
        }
      }
      const TensorView host_k = View(k.data(), Device::kCpu, {chunk_, kv_heads_, dim_});
      const TensorView host_q = View(q.data(), Device::kCpu, {chunk_, q_heads_, dim_});
      if (!cuda_) q_host_.push_back(q);
      q_.push_back(cuda_ ? Take(backend_->Resident(host_q))
                         : View(q_host_.back().data(), Device::kCpu, {chunk_, q_heads_, dim_}));
      const TensorView part = Take(backend_->Resident(host_k));
      Check(backend_->BeginStep({}));
      Check(backend_->KvWrite(
          {.k = part, .v = part, .cache = cache_, .page_ids = ids.data(), .slots = slots.data()}));
      Check(backend_->EndStep());
    }
  }

  Chunk MakeChunk(int64_t at) {
    Chunk c;
    c.q = q_[static_cast<size_t>(at / chunk_)];
    for (int64_t i = 0; i < chunk_; i += 128) {
      c.tiles.push_back({0, static_cast<int32_t>(i), 128, static_cast<int32_t>(at + i)});
      const int64_t candidates = CandidatePages(c.tiles.back());
      c.all_count.push_back(static_cast<int32_t>(candidates));
      c.counts.push_back(static_cast<int32_t>(
          score_ == PageScore::kMean ? std::min(candidates, top_pages_) : candidates));
    }
    for (int64_t i = at; i < at + chunk_; i += kPageTokens) {
      c.pages.push_back(page_table_[static_cast<size_t>(i / kPageTokens)]);
    }
    c.page_tokens.assign(c.pages.size(), kPageTokens);
    c.kv_lens = {static_cast<int32_t>(at + chunk_)};
    for (int64_t h = 0; h < ListHeadCount(); ++h) {
      for (const int32_t count : c.counts) {
        c.list_begin.push_back(c.num_entries);
        c.list_count.push_back(count);
        c.num_entries += count;
      }
    }
    c.all_begin.assign(c.tiles.size(), 0);
    return c;
  }

  PageTable Table() const { return {page_table_.data(), pages_, 1}; }

  int64_t ListHeadCount() const {
    return list_heads_ == ListHeads::kPerKvHead ? kv_heads_ : q_heads_;
  }

  // Its pages' summaries are part of what a ranking by them costs.
  void Select(const Chunk& c) {
    if (UsesSummaries(score_)) {
      Check(backend_->SummarizePages({.cache = cache_,
                                      .page_ids = c.pages.data(),
                                      .counts = c.page_tokens.data(),
                                      .num_pages = static_cast<int32_t>(c.pages.size())}));
    }
    Check(backend_->SelectPages({.q = c.q,
                                 .cache = cache_,
                                 .page_table = Table(),
                                 .score = score_,
                                 .list_heads = list_heads_,
                                 .sink_pages = 1,
                                 .recent_pages = 1,
                                 .scale = Scale(),
                                 .mass = score_ == PageScore::kAntidiagonal ? mass_ : 0.0f,
                                 .stride = stride_,
                                 .segment = segment_,
                                 .vertical_pages = budget_,
                                 .slash_pages = budget_,
                                 .num_tiles = static_cast<int32_t>(c.tiles.size()),
                                 .tiles = c.tiles.data(),
                                 .counts = c.counts.data(),
                                 .list_begin = c.list_begin.data(),
                                 .entries = made_.as<int32_t>(),
                                 .num_entries = c.num_entries}));
  }

  void Attend(const Chunk& c, bool made) {
    AttentionParams p;
    p.q = c.q;
    p.cache = cache_;
    p.page_table = Table();
    p.kv_lens = c.kv_lens.data();
    p.scale = Scale();
    p.out = View(out_.data(), out_.device(), {chunk_, q_heads_, dim_});
    p.counters = &counters_;
    KvSelection& s = p.selection;
    s.num_tiles = static_cast<int32_t>(c.tiles.size());
    s.tiles = c.tiles.data();
    s.edges = edges_.data();
    s.entries_made = made;
    s.entries_padded = made && score_ != PageScore::kMean;
    if (made) {
      s.list_heads = list_heads_;
      s.num_list_heads = static_cast<int32_t>(ListHeadCount());
      s.list_begin = c.list_begin.data();
      s.list_count = c.list_count.data();
      s.entries = made_.as<int32_t>();
      s.num_entries = c.num_entries;
    } else {
      s.list_begin = c.all_begin.data();
      s.list_count = c.all_count.data();
      s.entries = all_.data();
      s.num_entries = pages_;
    }
    Check(backend_->Attention(p));
  }

  float Scale() const { return 1.0f / std::sqrt(static_cast<float>(dim_)); }

  // Keys that the family's attention sees, of those that dense attention does.
  double Density() {
    counters_ = {};
    for (const Chunk& c : chunks_) {
      Check(backend_->BeginStep({}));
      Select(c);
      Attend(c, true);
      Check(backend_->EndStep());
    }
    const double dense = static_cast<double>(length_) * static_cast<double>(length_ + 1) / 2;
    return static_cast<double>(counters_.keys_visible) / dense / static_cast<double>(q_heads_);
  }

  // Bisects the threshold until the density is within a fiftieth of what is wanted.
  void Search() {
    double low = 0.02, high = 0.999;
    int32_t fewest = 1, most = static_cast<int32_t>(pages_);
    for (int i = 0; i < 12; ++i) {
      mass_ = static_cast<float>((low + high) / 2);
      budget_ = (fewest + most) / 2;
      density_ = Density();
      if (std::abs(density_ / wanted_ - 1) < 0.02) return;
      if (density_ < wanted_) {
        low = mass_;
        fewest = budget_;
      } else {
        high = mass_;
        most = budget_;
      }
    }
  }

  // The matrix products of a layer of this shape over the whole prompt, in milliseconds.
  double Products() {
    if (!cuda_) return 0;
    const auto weight = [&](int64_t rows, int64_t cols) {
      std::vector<uint16_t> values(static_cast<size_t>(rows * cols));
      for (uint16_t& v : values) v = static_cast<uint16_t>(0x3c00 + random_() % 256);
      bool keeps = false;
      const TensorView view = View(values.data(), Device::kCpu, {rows, cols}, DType::kBF16);
      const TensorView parts[] = {view};
      return Take(backend_->PrepareLinear(parts, &keeps));
    };
    const auto qkv = weight((q_heads_ + 2 * kv_heads_) * dim_, width_);
    const auto out = weight(width_, q_heads_ * dim_);
    const auto up = weight(2 * ffn_, width_);
    const auto down = weight(width_, ffn_);
    std::vector<float> x(static_cast<size_t>(chunk_ * ffn_));
    for (float& v : x) v = normal_(random_);
    const TensorView in = Take(backend_->Resident(View(x.data(), Device::kCpu, {chunk_, ffn_})));
    Buffer result = Take(backend_->Allocate(chunk_ * 2 * ffn_ * 4));
    const auto multiply = [&](const LinearWeight& w) {
      Check(backend_->Linear({.x = View(in.data, Device::kCuda, {chunk_, w.cols()}),
                              .weight = &w,
                              .out = View(result.data(), Device::kCuda, {chunk_, w.rows()})}));
    };
    return Time([&](const Chunk&) {
      multiply(*qkv);
      multiply(*out);
      multiply(*up);
      multiply(*down);
    });
  }

  // The prompt's time in milliseconds, the least of three; a step each chunk, waits included.
  template <typename Op>
  double Time(const Op& op) {
    double best = 1e30;
    for (int i = 0; i < 3; ++i) {
      double total = 0;
      for (const Chunk& c : chunks_) {
        const auto start = std::chrono::steady_clock::now();
        Check(backend_->BeginStep({}));
        op(c);
        Check(backend_->EndStep());
        total += std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
                     .count();
      }
      best = std::min(best, total);
    }
    return best;
  }

  const int64_t length_, chunk_, q_heads_, kv_heads_, dim_, width_, ffn_;
  const double wanted_;
  const PageScore score_;
  const ListHeads list_heads_;
  const int64_t top_pages_;
  const bool compare_;
  const int32_t stride_, segment_;
  bool cuda_ = false;
  int64_t pages_ = 0;
  float mass_ = 0.9f;
  int32_t budget_ = 16;
  double density_ = 0;
  std::mt19937 random_{11};
  std::normal_distribution<float> normal_;
  std::unique_ptr<Backend> backend_;
  Buffer memory_, made_, out_;
  PagedKv cache_;
  std::vector<int32_t> page_table_, all_;
  std::vector<TensorView> q_;
  std::vector<std::vector<float>> q_host_;
  std::vector<Chunk> chunks_;
  std::vector<EdgeRule> edges_ = std::vector<EdgeRule>(256);
  AttentionCounters counters_;
};

}  // namespace
}  // namespace longstride::kernels

int main(int argc, char** argv) {
  longstride::kernels::Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = std::string(argv[i]).substr(2);
    if (!options.values.contains(name)) {
      std::fprintf(stderr, "unknown option %s\n", argv[i]);
      return 2;
    }
    options.values[name] = argv[i + 1];
  }
  longstride::kernels::Bench(options).Run();
  return 0;
}

// What choosing pages by the query costs and saves in decoding: attention over all keys beside ranking
// pages and attention over the best of them, layer after layer through the backend's own interface.
//
//   selection_bench [--device cpu|cuda] [--length N] [--batch N] [--fraction X] [--layers N] ...
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace longstride::kernels {
namespace {

struct Options {
  std::map<std::string, std::string> values = {
      {"device", "cpu"},   {"length", "131072"}, {"batch", "1"},       {"q-heads", "32"},
      {"kv-heads", "8"},   {"dim", "128"},       {"fraction", "0.05"}, {"layers", "4"},
      {"repeats", "10"},   {"threads", "0"}};
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

TensorView Heads(void* data, Device device, int64_t rows, int64_t heads, int64_t dim) {
  const int64_t dims[3] = {rows, heads, dim};
  return TensorView::Contiguous(data, DType::kF32, dims, 3, device);
}

class Bench {
 public:
  explicit Bench(const Options& o)
      : length_(o.Int("length") / kPageTokens * kPageTokens),
        batch_(o.Int("batch")),
        q_heads_(o.Int("q-heads")),
        kv_heads_(o.Int("kv-heads")),
        dim_(o.Int("dim")),
        layers_(o.Int("layers")),
        repeats_(o.Int("repeats")) {
    const bool cuda = o.values.at("device") == "cuda";
    backend_ = Take(MakeBackend(cuda ? BackendKind::kCuda : BackendKind::kCpu,
                                {.num_threads = static_cast<int>(o.Int("threads"))}));
    pages_ = length_ / kPageTokens;
    FillCaches(cuda ? KvDType::kBF16 : KvDType::kF16);
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    std::vector<float> q(static_cast<size_t>(batch_ * q_heads_ * dim_));
    for (float& x : q) x = normal(random);
    q_ = Take(backend_->Resident(Heads(q.data(), Device::kCpu, batch_, q_heads_, dim_)));
    if (!cuda) {
      q_host_ = q;
      q_.data = q_host_.data();
    }
    out_ = Take(backend_->Allocate(batch_ * q_heads_ * dim_ * 4));
    const auto count = static_cast<int32_t>(
        std::max<int64_t>(2, static_cast<int64_t>(o.Number("fraction") * double(pages_))));
    for (int32_t s = 0; s < batch_; ++s) {
      tiles_.push_back({s, s, 1, static_cast<int32_t>(length_ - 1)});
      kv_lens_.push_back(static_cast<int32_t>(length_));
    }
    generated_.assign(static_cast<size_t>(batch_), 1);
    counts_.assign(static_cast<size_t>(batch_), count);
    edges_.assign(static_cast<size_t>(kv_heads_), {});
    for (int64_t i = 0; i < kv_heads_ * batch_; ++i) {
      made_begin_.push_back(i * count);
      made_count_.push_back(count);
    }
    made_ = Take(backend_->Allocate(kv_heads_ * batch_ * count * 4));
    all_.resize(static_cast<size_t>(pages_));
    std::iota(all_.begin(), all_.end(), 0);
    all_begin_.assign(static_cast<size_t>(batch_), 0);
    all_count_.assign(static_cast<size_t>(batch_), static_cast<int32_t>(pages_));
  }

  void Run() {
    const double dense = Time([&](int64_t l) { Attend(l, false); });
    const double select = Time([&](int64_t l) { Select(l); });
    const double both = Time([&](int64_t l) {
      Select(l);
      Attend(l, true);
    });
    const double chosen = static_cast<double>(counts_[0]) / static_cast<double>(pages_);
    const double bytes = static_cast<double>(batch_ * kv_heads_) *
                         (chosen * static_cast<double>(length_ * dim_ * 4) +
                          static_cast<double>(pages_ * 2 * dim_ * 2));
    std::printf("%s; %lld tokens, batch %lld, heads %lld/%lld of %lld, %.1f%% of the pages\n",
                backend_->Describe().c_str(), static_cast<long long>(length_),
                static_cast<long long>(batch_), static_cast<long long>(q_heads_),
                static_cast<long long>(kv_heads_), static_cast<long long>(dim_), 100 * chosen);
    std::printf("per layer: dense %.1f us; ranking %.1f us; ranking + attention %.1f us: %.2fx; "
                "%.1f MB at %.2f TB/s\n",
                dense, select, both, dense / both, bytes * 1e-6, bytes / both * 1e-6);
  }

 private:
  void FillCaches(KvDType dtype) {
    const int64_t head = KvHeadPageBytes(dtype, static_cast<int32_t>(dim_));
    const int64_t plane = head * kv_heads_;
    const int64_t page =
        2 * plane + (PageSummaryBytes(dtype, static_cast<int32_t>(dim_)) * kv_heads_ + 63) / 64 * 64;
    const auto num_pages = static_cast<int32_t>(pages_ * batch_);
    constexpr int64_t kRows = 4096;
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    std::vector<float> rows(static_cast<size_t>(2 * kRows * kv_heads_ * dim_));
    for (float& x : rows) x = normal(random);
    const TensorView source = Take(
        backend_->Resident(Heads(rows.data(), Device::kCpu, 2 * kRows, kv_heads_, dim_)));
    page_table_.resize(static_cast<size_t>(num_pages));
    std::iota(page_table_.begin(), page_table_.end(), 0);
    std::shuffle(page_table_.begin(), page_table_.end(), random);
    for (int64_t l = 0; l < layers_; ++l) {
      memory_.push_back(Take(backend_->Allocate(page * num_pages)));
      char* base = memory_.back().as<char>();
      caches_.push_back({.k = base,
                         .v = base + plane,
                         .page_stride = page,
                         .head_stride = head,
                         .num_pages = num_pages,
                         .num_heads = static_cast<int32_t>(kv_heads_),
                         .head_dim = static_cast<int32_t>(dim_),
                         .dtype = dtype,
                         .summaries = base + 2 * plane});
      for (int64_t at = 0; at < num_pages * kPageTokens; at += kRows) {
        const int64_t n = std::min(kRows, num_pages * kPageTokens - at);
        std::vector<int32_t> ids, slots, pages, counts;
        for (int64_t t = at; t < at + n; ++t) {
          ids.push_back(page_table_[static_cast<size_t>(t / kPageTokens)]);
          slots.push_back(static_cast<int32_t>(t % kPageTokens));
          if (slots.back() != 0) continue;
          pages.push_back(ids.back());
          counts.push_back(kPageTokens);
        }
        TensorView part = source;
        part.shape[0] = n;
        // Other rows in every page.
        part.data = source.ptr<float>() + (at / kRows * 37 + l * 11) % kRows * source.strides[0];
        Check(backend_->BeginStep({}));
        Check(backend_->KvWrite({.k = part,
                                 .v = part,
                                 .cache = caches_.back(),
                                 .page_ids = ids.data(),
                                 .slots = slots.data()}));
        Check(backend_->SummarizePages({.cache = caches_.back(),
                                        .page_ids = pages.data(),
                                        .counts = counts.data(),
                                        .num_pages = static_cast<int32_t>(pages.size())}));
        Check(backend_->EndStep());
      }
    }
  }

  PageTable Table() const {
    return {page_table_.data(), pages_, static_cast<int32_t>(batch_)};
  }

  void Select(int64_t l) {
    Check(backend_->SelectPages({.q = q_,
                                 .cache = caches_[static_cast<size_t>(l)],
                                 .page_table = Table(),
                                 .score = PageScore::kBound,
                                 .list_heads = ListHeads::kPerKvHead,
                                 .num_tiles = static_cast<int32_t>(batch_),
                                 .tiles = tiles_.data(),
                                 .counts = counts_.data(),
                                 .list_begin = made_begin_.data(),
                                 .entries = made_.as<int32_t>(),
                                 .num_entries = kv_heads_ * batch_ * counts_[0]}));
  }

  void Attend(int64_t l, bool made) {
    AttentionParams p;
    p.q = q_;
    p.cache = caches_[static_cast<size_t>(l)];
    p.page_table = Table();
    p.kv_lens = kv_lens_.data();
    p.generated = generated_.data();
    p.scale = 0.09f;
    p.out = Heads(out_.data(), out_.device(), batch_, q_heads_, dim_);
    KvSelection& s = p.selection;
    s.num_tiles = static_cast<int32_t>(batch_);
    s.tiles = tiles_.data();
    s.edges = edges_.data();
    s.entries_made = made;
    if (made) {
      s.list_heads = ListHeads::kPerKvHead;
      s.num_list_heads = static_cast<int32_t>(kv_heads_);
      s.list_begin = made_begin_.data();
      s.list_count = made_count_.data();
      s.entries = made_.as<int32_t>();
      s.num_entries = kv_heads_ * batch_ * counts_[0];
    } else {
      s.list_begin = all_begin_.data();
      s.list_count = all_count_.data();
      s.entries = all_.data();
      s.num_entries = pages_;
    }
    Check(backend_->Attention(p));
  }

  // Median of the steps' times, per layer, in microseconds.
  template <typename Op>
  double Time(const Op& op) {
    std::vector<double> times;
    for (int64_t i = 0; i < repeats_ + 2; ++i) {
      Check(backend_->BeginStep({}));
      const auto start = std::chrono::steady_clock::now();
      for (int64_t l = 0; l < layers_; ++l) op(l);
      Check(backend_->EndStep());
      const std::chrono::duration<double, std::micro> took =
          std::chrono::steady_clock::now() - start;
      if (i >= 2) times.push_back(took.count() / static_cast<double>(layers_));
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }

  const int64_t length_, batch_, q_heads_, kv_heads_, dim_, layers_, repeats_;
  int64_t pages_ = 0;
  std::unique_ptr<Backend> backend_;
  std::vector<Buffer> memory_;
  std::vector<PagedKv> caches_;
  std::vector<int32_t> page_table_;
  std::vector<float> q_host_;
  TensorView q_;
  Buffer out_, made_;
  std::vector<QueryTile> tiles_;
  std::vector<int32_t> kv_lens_, counts_, all_, made_count_, all_count_;
  std::vector<int64_t> made_begin_, all_begin_;
  std::vector<uint8_t> generated_;
  std::vector<EdgeRule> edges_;
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

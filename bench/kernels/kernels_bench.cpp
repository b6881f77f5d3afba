// Speed of the cpu backend's kernels at the shapes of Gemma 3 270M and SmolLM2 135M, each as a
// share of what the machine can do at most. The limits are measured again before and after each
// line, so that a busy or throttled machine shows in both; times are the best of several rounds.
//
// Usage: kernels_bench [--threads N] [--isa NAME] [--rounds N] [--cpu-time] [filter]
// --cpu-time counts the process's processor time (with one thread: without what other processes
// took), for busy machines.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "bench/kernels/roofline.h"
#include "kernels/backend.h"
#include "kernels/quant.h"

namespace longstride::bench {
namespace {

using kernels::DType;
using kernels::TensorView;

struct Options {
  int threads = 0;
  std::string isa;
  int rounds = 5;
  std::string filter;
};

void Require(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(1);
}

class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options),
        backend_(Make(options)),
        pool_(ThreadsOf(backend_->Describe())),
        rng_(1) {}

  void RunAll() {
    std::printf("%s\n", backend_->Describe().c_str());
    const Roofline r = MeasureRoofline(pool_, options_.rounds);
    std::printf("limits: int8 %.0f GOP/s (%s), fp32 %.0f GFLOP/s, memory %.1f GB/s\n\n",
                r.int8_gops, r.int8_name, r.fp32_gflops, r.read_gbs);
    Linears();
    Attentions();
    Elementwise();
  }

 private:
  static std::unique_ptr<kernels::Backend> Make(const Options& o) {
    auto backend =
        kernels::MakeBackend(kernels::BackendKind::kCpu, {.num_threads = o.threads, .isa = o.isa});
    Require(backend.status());
    return *std::move(backend);
  }
  static int ThreadsOf(const std::string& description) {
    return std::max(1, std::atoi(description.c_str() + description.find(", ") + 2));
  }

  // Best time of one call, and the machine's limits around it.
  double Time(const std::function<void()>& call, Roofline* limits) {
    call();
    double best = 1e30;
    for (int round = 0; round < options_.rounds; ++round) {
      const Roofline r = MeasureRoofline(pool_, 1);
      limits->int8_gops = std::max(limits->int8_gops, r.int8_gops);
      limits->fp32_gflops = std::max(limits->fp32_gflops, r.fp32_gflops);
      limits->read_gbs = std::max(limits->read_gbs, r.read_gbs);
      const double end = Seconds() + 0.03;
      do {
        const double start = Seconds();
        call();
        best = std::min(best, Seconds() - start);
      } while (Seconds() < end);
    }
    return best;
  }

  bool Wanted(const std::string& name) const {
    return options_.filter.empty() || name.find(options_.filter) != std::string::npos;
  }

  void Linears();
  void Linear(DType type, int64_t n, int64_t k, int64_t m);
  void Attentions();
  void Attention(const char* what, int heads, int kv_heads, int dim, int64_t context, int64_t rows,
                 int window);
  void Elementwise();

  Options options_;
  std::unique_ptr<kernels::Backend> backend_;
  kernels::cpu::ThreadPool pool_;
  std::mt19937 rng_;
};

std::vector<uint8_t> RandomBlocks(DType type, int64_t rows, int64_t cols, std::mt19937& rng) {
  std::vector<uint8_t> bytes(static_cast<size_t>(rows * kernels::RowBytes(type, cols)));
  for (size_t i = 0; i + 4 <= bytes.size(); i += 4) {
    // Small exponents everywhere: whatever is read as a half, bfloat16 or float is finite.
    const uint32_t bits = rng() & 0x2fff2fff;
    std::memcpy(&bytes[i], &bits, 4);
  }
  return bytes;
}

void Bench::Linear(DType type, int64_t n, int64_t k, int64_t m) {
  char name[96];
  std::snprintf(name, sizeof(name), "linear %-5s %6lld x %4lld, M %4lld", kernels::DTypeName(type),
                static_cast<long long>(n), static_cast<long long>(k), static_cast<long long>(m));
  if (!Wanted(name)) return;
  std::vector<uint8_t> bytes = RandomBlocks(type, n, k, rng_);
  const TensorView part = TensorView::Matrix(bytes.data(), type, n, k);
  // As many copies as overflow the caches, so that decoding reads memory as it does in a model.
  const int64_t size = n * kernels::RowBytes(type, k);
  const int64_t copies = m <= 8 ? std::max<int64_t>(1, (int64_t{192} << 20) / size) : 1;
  std::vector<std::unique_ptr<kernels::LinearWeight>> weights;
  for (int64_t i = 0; i < copies; ++i) {
    auto weight = backend_->PrepareLinear({&part, 1}, nullptr);
    Require(weight.status());
    weights.push_back(*std::move(weight));
  }
  std::vector<float> x(m * k), out(m * n);
  std::normal_distribution<float> normal;
  for (float& v : x) v = normal(rng_);
  Roofline limits;
  const double seconds =
      Time(
          [&] {
            for (const auto& weight : weights) {
              Require(backend_->Linear({.x = TensorView::Matrix(x.data(), DType::kF32, m, k),
                                        .weight = weight.get(),
                                        .out = TensorView::Matrix(out.data(), DType::kF32, m, n)}));
            }
          },
          &limits) /
      static_cast<double>(copies);
  const double gops = 2.0 * m * n * k / seconds * 1e-9;
  const double gbs = static_cast<double>(size) / seconds * 1e-9;
  const bool quantized = kernels::IsQuantized(type);
  std::printf("%s: %9.1f us  %6.1f GOP/s (%4.1f%% of %s)  %5.1f GB/s of weights (%4.1f%%)\n", name,
              seconds * 1e6, gops, 100 * gops / (quantized ? limits.int8_gops : limits.fp32_gflops),
              quantized ? "int8" : "fp32", gbs, 100 * gbs / limits.read_gbs);
  std::fflush(stdout);
}

void Bench::Linears() {
  for (const DType type : {DType::kQ8_0, DType::kQ5_0, DType::kQ4_0, DType::kQ4_1, DType::kQ5_1,
                           DType::kMXFP4, DType::kBF16, DType::kF16, DType::kF32}) {
    for (const int64_t m : {1, 4, 8, 32, 512}) Linear(type, 4096, 640, m);
  }
  for (const DType type : {DType::kQ4_K, DType::kQ5_K, DType::kQ6_K}) {
    for (const int64_t m : {1, 4, 8, 32, 512}) Linear(type, 640, 2048, m);
  }
  for (const int64_t m : {1, 512}) {
    Linear(DType::kQ5_0, 1536, 640, m);  // Gemma 3 270M: q, k, v
    Linear(DType::kQ4_K, 640, 1024, m);  // attention output
    Linear(DType::kQ4_1, 960, 576, m);   // SmolLM2: q, k, v
    Linear(DType::kQ4_1, 3072, 576, m);  // gate, up
    Linear(DType::kQ4_1, 576, 1536, m);  // down
  }
  Linear(DType::kQ8_0, 262144, 640, 1);  // Gemma's LM head
  Linear(DType::kQ8_0, 49152, 576, 1);   // SmolLM2's
}

void Bench::Attention(const char* what, int heads, int kv_heads, int dim, int64_t context,
                      int64_t rows, int window) {
  char name[128];
  std::snprintf(name, sizeof(name), "attention %s %d/%d/%d, context %5lld, rows %3lld, window %d",
                what, heads, kv_heads, dim, static_cast<long long>(context),
                static_cast<long long>(rows), window);
  if (!Wanted(name)) return;
  const auto num_pages = static_cast<int32_t>((context + 63) / 64);
  const int64_t head_bytes = kernels::KvHeadPageBytes(kernels::KvDType::kF16, dim);
  // Several layers' caches, so that decoding reads memory as it does in a model.
  const int64_t layer_bytes = 2 * head_bytes * kv_heads * num_pages;
  const int64_t visible = window > 0 ? std::min<int64_t>(window, context) : context;
  const int64_t layers =
      rows <= 4 ? std::max<int64_t>(1, (int64_t{96} << 20) * context / visible / layer_bytes / 4)
                : 1;
  kernels::Buffer cache = *backend_->Allocate(layer_bytes * layers);
  for (int64_t i = 0; i < cache.bytes() / 2; ++i) {
    cache.as<uint16_t>()[i] = static_cast<uint16_t>(0x3000 | (rng_() & 0x8bff));
  }
  std::vector<int32_t> pages(num_pages);
  for (int32_t i = 0; i < num_pages; ++i) pages[i] = i;
  std::vector<float> q(rows * heads * dim), out(q.size());
  for (float& v : q) v = std::normal_distribution<float>()(rng_);
  std::vector<kernels::QueryTile> tiles;
  std::vector<int64_t> begins;
  std::vector<int32_t> counts, entries;
  for (int64_t i = context - rows; i < context;) {
    const int64_t end = std::min<int64_t>((i / 128 + 1) * 128, context);
    tiles.push_back({0, static_cast<int32_t>(i - (context - rows)), static_cast<int32_t>(end - i),
                     static_cast<int32_t>(i)});
    begins.push_back(static_cast<int64_t>(entries.size()));
    const int64_t low = window > 0 ? std::max<int64_t>(0, i - window + 1) : 0;
    for (int64_t e = low / 64; e <= (end - 1) / 64; ++e) entries.push_back(static_cast<int32_t>(e));
    counts.push_back(static_cast<int32_t>(entries.size() - begins.back()));
    i = end;
  }
  const kernels::EdgeRule edge{.causal = 1, .window = window};
  const auto kv_len = static_cast<int32_t>(context);
  kernels::AttentionCounters counters;
  kernels::AttentionParams p;
  const int64_t dims[3] = {rows, heads, dim};
  p.q = TensorView::Contiguous(q.data(), DType::kF32, dims, 3);
  p.out = TensorView::Contiguous(out.data(), DType::kF32, dims, 3);
  p.page_table = {pages.data(), num_pages, 1};
  p.kv_lens = &kv_len;
  p.selection.num_tiles = static_cast<int32_t>(tiles.size());
  p.selection.tiles = tiles.data();
  p.selection.list_begin = begins.data();
  p.selection.list_count = counts.data();
  p.selection.entries = entries.data();
  p.selection.num_entries = static_cast<int64_t>(entries.size());
  p.selection.edges = &edge;
  p.scale = 0.05f;
  p.counters = &counters;
  const auto call = [&] {
    for (int64_t layer = 0; layer < layers; ++layer) {
      char* base = cache.as<char>() + layer * layer_bytes;
      p.cache = {
          base, base + layer_bytes / 2, head_bytes * kv_heads, head_bytes, num_pages, kv_heads,
          dim,  kernels::KvDType::kF16};
      Require(backend_->Attention(p));
    }
  };
  call();
  const double visible_keys = static_cast<double>(counters.keys_visible) / layers;
  const double read = static_cast<double>(counters.keys_read) / layers;
  Roofline limits;
  const double seconds = Time(call, &limits) / static_cast<double>(layers);
  const double gflops = 4.0 * visible_keys * dim / seconds * 1e-9;
  const double gbs =
      4.0 * std::min<int64_t>(context, visible + rows) * kv_heads * dim / seconds * 1e-9;
  std::printf(
      "%s: %9.1f us  %6.1f GFLOP/s (%4.1f%% of fp32)  %5.1f GB/s (%4.1f%%)  read/visible %.2f\n",
      name, seconds * 1e6, gflops, 100 * gflops / limits.fp32_gflops, gbs,
      100 * gbs / limits.read_gbs, read / visible_keys);
  std::fflush(stdout);
}

void Bench::Attentions() {
  for (const int64_t context : {2048, 30720}) {
    for (const int window : {0, 512}) {
      Attention("prefill", 4, 1, 256, context, 512, window);
      Attention("prefill", 9, 3, 64, context, 512, window);
      Attention("decode ", 4, 1, 256, context, 1, window);
      Attention("decode ", 9, 3, 64, context, 1, window);
    }
  }
}

void Bench::Elementwise() {
  if (!Wanted("rows")) return;
  constexpr int64_t kRows = 512, kDim = 2048;
  std::vector<float> x(kRows * kDim, 0.5f), y(kRows * kDim, 0.25f), out(kRows * kDim),
      w(kDim, 1.0f);
  const TensorView vx = TensorView::Matrix(x.data(), DType::kF32, kRows, kDim);
  const TensorView vy = TensorView::Matrix(y.data(), DType::kF32, kRows, kDim);
  const TensorView vo = TensorView::Matrix(out.data(), DType::kF32, kRows, kDim);
  const TensorView vw = TensorView::Vector(w.data(), DType::kF32, kDim);
  std::vector<int32_t> positions(kRows);
  for (int64_t i = 0; i < kRows; ++i) positions[i] = static_cast<int32_t>(i);
  std::vector<float> frequencies(128, 0.01f);
  const int64_t dims[3] = {kRows, 8, 256};
  const auto line = [&](const char* name, const std::function<void()>& call) {
    Roofline limits;
    const double seconds = Time(call, &limits);
    std::printf("rows %-14s 512 x 2048: %8.1f us  %5.2f ns/element\n", name, seconds * 1e6,
                seconds * 1e9 / (kRows * kDim));
  };
  line("rms_norm", [&] { Require(backend_->RmsNorm({.x = vx, .weight = vw, .out = vo})); });
  line("gelu_tanh", [&] {
    Require(backend_->GatedActivation(
        {.gate = vx, .up = vy, .activation = kernels::Activation::kGeluTanh, .out = vo}));
  });
  line("silu", [&] { Require(backend_->GatedActivation({.gate = vx, .up = vy, .out = vo})); });
  line("add", [&] { Require(backend_->Add({.x = vx, .y = vy, .out = vo})); });
  line("rope", [&] {
    Require(backend_->Rope({.x = TensorView::Contiguous(out.data(), DType::kF32, dims, 3),
                            .positions = positions.data(),
                            .inv_freq = frequencies.data(),
                            .num_frequencies = 128}));
  });
}

}  // namespace
}  // namespace longstride::bench

int main(int argc, char** argv) {
  longstride::bench::Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (arg == "--threads" && i + 1 < argc) {
      options.threads = std::atoi(argv[++i]);
    } else if (arg == "--isa" && i + 1 < argc) {
      options.isa = argv[++i];
    } else if (arg == "--rounds" && i + 1 < argc) {
      options.rounds = std::max(1, std::atoi(argv[++i]));
    } else if (arg == "--cpu-time") {
      longstride::bench::UseCpuTime();
    } else if (!arg.empty() && arg[0] != '-') {
      options.filter = arg;
    } else {
      std::fprintf(
          stderr,
          "usage: kernels_bench [--threads N] [--isa NAME] [--rounds N] [--cpu-time] [filter]\n");
      return 2;
    }
  }
  longstride::bench::Bench(options).RunAll();
}

#include "tests/kernels/cuda/attention_case.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <thread>

namespace longstride::kernels::cuda {
namespace {

constexpr uint8_t kPoisonByte = 0x7f;  // a NaN of e4m3, and twice one in both 16-bit formats
constexpr int kOutPoisonByte = 0xd5;

void Must(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(error));
  std::exit(2);
}

}  // namespace

double AttentionCase::ToDouble(uint16_t bits) const {
  if (spec_.dtype == DType::kBF16) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float f;
    std::memcpy(&f, &wide, 4);
    return f;
  }
  __half_raw raw;
  raw.x = bits;
  return __half2float(__half(raw));
}

uint16_t AttentionCase::FromFloat(float value) const {
  if (spec_.dtype == DType::kBF16) return __nv_bfloat16_raw(__float2bfloat16(value)).x;
  return __half_raw(__float2half(value)).x;
}

float AttentionCase::StoreKv(std::vector<uint8_t>* page, size_t at, float value,
                             float scale) const {
  if (spec_.fp8) {
    const uint8_t code = __nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3);
    (*page)[at] = code;
    return __half2float(__half(__nv_cvt_fp8_to_halfraw(code, __NV_E4M3))) * scale;
  }
  const uint16_t bits = FromFloat(value);
  std::memcpy(page->data() + 2 * at, &bits, 2);
  return static_cast<float>(ToDouble(bits));
}

template <typename T>
T* AttentionCase::Upload(const std::vector<T>& host) {
  void* device = nullptr;
  Must(cudaMalloc(&device, std::max<size_t>(host.size() * sizeof(T), 16)));
  device_.push_back(device);
  Must(cudaMemcpy(device, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  return static_cast<T*>(device);
}

AttentionCase::AttentionCase(const CaseSpec& spec) : spec_(spec), rng_(spec.seed) {
  for (const CaseSequence& s : spec_.sequences) num_rows_ += s.num_rows;
  params_.scale = 1.0f / std::sqrt(static_cast<float>(spec_.head_dim));
  params_.softcap = spec_.softcap;
  MakePages();
  MakeSelection();
  MakeQueries();
}

AttentionCase::~AttentionCase() {
  for (void* p : device_) cudaFree(p);
}

void AttentionCase::MakePages() {
  const int32_t d = spec_.head_dim, heads = spec_.kv_heads;
  int64_t stride = 1;
  int32_t needed = 0;
  for (const CaseSequence& s : spec_.sequences) {
    const int32_t pages = (s.kv_len + kPageTokens - 1) / kPageTokens;
    stride = std::max<int64_t>(stride, pages);
    needed += pages;
  }
  const int32_t pool = std::max({spec_.pool_pages, spec_.first_pool_page + needed + 3, needed + 3});
  const KvDType dtype = spec_.fp8                     ? KvDType::kFp8
                        : spec_.dtype == DType::kBF16 ? KvDType::kBF16
                                                      : KvDType::kF16;
  const int64_t head_bytes = KvHeadPageBytes(dtype, d);
  const int64_t page_bytes = head_bytes * heads;
  PagedKv& cache = params_.cache;
  cache.page_stride = page_bytes;
  cache.head_stride = head_bytes;
  cache.num_pages = pool;
  cache.num_heads = heads;
  cache.head_dim = d;
  cache.dtype = dtype;
  if (spec_.fp8) cache.v_scale = 1.3f;
  for (void** half : {&cache.k, &cache.v}) {
    Must(cudaMalloc(half, static_cast<size_t>(pool) * page_bytes));
    device_.push_back(*half);
    Must(cudaMemset(*half, 0xff, static_cast<size_t>(pool) * page_bytes));  // NaN everywhere
  }
  std::vector<int32_t> ids;
  for (int32_t i = spec_.first_pool_page; i < pool; ++i) ids.push_back(i);
  std::shuffle(ids.begin(), ids.end(), rng_);
  std::vector<int32_t> table(stride * spec_.sequences.size(), kNoPage);
  std::vector<int32_t> lens;
  size_t next_id = 0;
  for (size_t q = 0; q < spec_.sequences.size(); ++q) {
    const int32_t n = spec_.sequences[q].kv_len;
    lens.push_back(n);
    auto& k = keys_.emplace_back(static_cast<size_t>(n) * heads * d);
    auto& v = values_.emplace_back(static_cast<size_t>(n) * heads * d);
    for (int32_t page = 0; page * kPageTokens < n; ++page) {
      const int32_t id = ids[next_id++];
      table[q * stride + page] = id;
      std::vector<uint8_t> both[2];
      for (int half = 0; half < 2; ++half) {
        auto& bits = both[half];
        bits.assign(page_bytes, kPoisonByte);
        for (int32_t h = 0; h < heads; ++h) {
          // Keys depend on their sequence and position alone, so that cut and batched cases agree.
          std::normal_distribution<float> normal;
          std::mt19937_64 gen(spec_.seed + ((q * 65536 + page) * 2 + half) * 256 + h);
          for (int32_t t = 0; t < kPageTokens && page * kPageTokens + t < n; ++t) {
            for (int32_t c = 0; c < d; ++c) {
              const size_t at = ((static_cast<size_t>(page) * kPageTokens + t) * heads + h) * d + c;
              (half == 0 ? k : v)[at] =
                  StoreKv(&bits, (static_cast<size_t>(h) * kPageTokens + t) * d + c, normal(gen),
                          half == 0 ? 1.0f : cache.v_scale);
            }
          }
        }
        Must(cudaMemcpy(static_cast<char*>(half == 0 ? cache.k : cache.v) + page_bytes * id,
                        bits.data(), page_bytes, cudaMemcpyHostToDevice));
      }
    }
  }
  params_.page_table = {Upload(table), stride, static_cast<int32_t>(spec_.sequences.size())};
  params_.kv_lens = Upload(lens);
}

void AttentionCase::MakeSelection() {
  int32_t row = 0;
  for (size_t q = 0; q < spec_.sequences.size(); ++q) {
    const CaseSequence& s = spec_.sequences[q];
    for (int32_t at = 0; at < s.num_rows;) {
      const int32_t position = s.first_position + at;
      const int32_t n = std::min(s.num_rows - at, spec_.query_tile - position % spec_.query_tile);
      tiles_.push_back({static_cast<int32_t>(q), row + at, n, position});
      at += n;
    }
    row += s.num_rows;
  }
  const int32_t list_heads = spec_.list_heads == ListHeads::kShared      ? 1
                             : spec_.list_heads == ListHeads::kPerKvHead ? spec_.kv_heads
                                                                         : spec_.query_heads;
  // The choice of an entry depends on (head, tile's absolute number, entry) alone, so that a prompt
  // cut in chunks has the lists of the whole.
  for (int32_t h = 0; h < list_heads; ++h) {
    edges_.push_back(spec_.edge);
    for (const QueryTile& t : tiles_) {
      const int64_t begin = static_cast<int64_t>(entries_.size());
      const int32_t kv_len = spec_.sequences[t.sequence].kv_len;
      std::mt19937_64 pick(spec_.seed * 1000003 + h * 7919 +
                           t.first_position / spec_.query_tile * 104729 + t.sequence);
      std::uniform_real_distribution<double> u;
      const bool empty = u(pick) < spec_.empty;
      const int32_t tile_end = (t.first_position / spec_.query_tile + 1) * spec_.query_tile - 1;
      const int32_t limit = spec_.edge.causal ? std::min(kv_len - 1, tile_end) : kv_len - 1;
      const int32_t last = limit / spec_.entry_tokens;
      const int32_t diagonal = tile_end / spec_.entry_tokens;
      for (int32_t e = 0; e <= last && !empty; ++e) {
        const double chance = u(pick), hole = u(pick);
        if (hole < spec_.holes) entries_.push_back(kNoEntry);
        if (e == diagonal || chance < spec_.density) entries_.push_back(e);
      }
      lists_.push_back({begin, static_cast<int32_t>(entries_.size() - begin)});
      max_list_pages_ =
          std::max(max_list_pages_, lists_.back().count * (spec_.entry_tokens / kPageTokens));
    }
  }
  std::vector<int64_t> begins;
  std::vector<int32_t> counts;
  for (const List& l : lists_) {
    begins.push_back(l.begin);
    counts.push_back(l.count);
  }
  KvSelection& sel = params_.selection;
  sel.list_heads = spec_.list_heads;
  sel.num_list_heads = list_heads;
  sel.entry_tokens = spec_.entry_tokens;
  sel.query_tile = spec_.query_tile;
  sel.num_tiles = static_cast<int32_t>(tiles_.size());
  sel.tiles = Upload(tiles_);
  sel.list_begin = Upload(begins);
  sel.list_count = Upload(counts);
  sel.entries = Upload(entries_);
  sel.num_entries = static_cast<int64_t>(entries_.size());
  sel.edges = Upload(edges_);
}

void AttentionCase::MakeQueries() {
  std::normal_distribution<float> normal;
  const int64_t elements = static_cast<int64_t>(num_rows_) * spec_.query_heads * spec_.head_dim;
  // A query's values depend on its position, so that a cut prompt has the queries of the whole.
  for (size_t q = 0; q < spec_.sequences.size(); ++q) {
    for (int32_t r = 0; r < spec_.sequences[q].num_rows; ++r) {
      std::mt19937_64 gen(spec_.seed * 31 + q * 1000000007ull + spec_.sequences[q].first_position +
                          r);
      std::normal_distribution<float> fresh;
      for (int32_t i = 0; i < spec_.query_heads * spec_.head_dim; ++i) {
        queries_.push_back(FromFloat(fresh(gen) * spec_.query_scale));
      }
    }
  }
  const int64_t dims[3] = {num_rows_, spec_.query_heads, spec_.head_dim};
  params_.q = TensorView::Contiguous(Upload(queries_), spec_.dtype, dims, 3, Device::kCuda);
  std::vector<uint16_t> out(elements);
  params_.out = TensorView::Contiguous(Upload(out), spec_.dtype, dims, 3, Device::kCuda);
  if (spec_.lse) {
    params_.lse = Upload(std::vector<float>(static_cast<size_t>(num_rows_) * spec_.query_heads));
  }
  if (spec_.sinks) {
    for (int32_t h = 0; h < spec_.query_heads; ++h) sinks_.push_back(normal(rng_) * 2.0f);
    params_.sinks = Upload(sinks_);
  }
}

void AttentionCase::Poison() {
  Must(cudaMemset(params_.out.data, kOutPoisonByte, params_.out.num_elements() * 2));
  if (params_.lse != nullptr) {
    Must(cudaMemset(params_.lse, kOutPoisonByte,
                    static_cast<size_t>(num_rows_) * spec_.query_heads * 4));
  }
}

std::vector<uint16_t> AttentionCase::ReadOut() const {
  std::vector<uint16_t> host(params_.out.num_elements());
  Must(cudaMemcpy(host.data(), params_.out.data, host.size() * 2, cudaMemcpyDeviceToHost));
  return host;
}

std::vector<float> AttentionCase::ReadLse() const {
  std::vector<float> host(params_.lse == nullptr ? 0 : num_rows_ * spec_.query_heads);
  if (!host.empty()) {
    Must(cudaMemcpy(host.data(), params_.lse, host.size() * 4, cudaMemcpyDeviceToHost));
  }
  return host;
}

void AttentionCase::ReferenceRow(int32_t tile, int32_t row, int32_t head, std::vector<double>* out,
                                 double* lse) const {
  const QueryTile& t = tiles_[tile];
  const int32_t d = spec_.head_dim, kv_head = head / (spec_.query_heads / spec_.kv_heads);
  const int32_t list_head = spec_.list_heads == ListHeads::kShared      ? 0
                            : spec_.list_heads == ListHeads::kPerKvHead ? kv_head
                                                                        : head;
  const List& list = lists_[static_cast<size_t>(list_head) * tiles_.size() + tile];
  const int32_t kv_len = spec_.sequences[t.sequence].kv_len;
  const int64_t i = t.first_position + row;
  const uint16_t* q =
      queries_.data() + ((static_cast<size_t>(t.row_begin) + row) * spec_.query_heads + head) * d;
  std::vector<double> qd(d);
  for (int32_t c = 0; c < d; ++c) qd[c] = ToDouble(q[c]);
  std::vector<std::pair<int32_t, double>> scores;
  double top = -std::numeric_limits<double>::infinity();
  for (int32_t n = 0; n < list.count; ++n) {
    const int32_t e = entries_[list.begin + n];
    if (e == kNoEntry) continue;
    for (int32_t j = e * spec_.entry_tokens; j < (e + 1) * spec_.entry_tokens && j < kv_len; ++j) {
      if (!EdgeAllows(spec_.edge, i, j)) continue;
      const float* k =
          keys_[t.sequence].data() + (static_cast<size_t>(j) * spec_.kv_heads + kv_head) * d;
      double dot = 0;
      for (int32_t c = 0; c < d; ++c) dot += qd[c] * k[c];
      dot *= params_.scale;
      if (spec_.softcap > 0) dot = spec_.softcap * std::tanh(dot / spec_.softcap);
      scores.emplace_back(j, dot);
      top = std::max(top, dot);
    }
  }
  out->assign(d, 0.0);
  if (scores.empty()) {
    *lse = -std::numeric_limits<double>::infinity();
    return;
  }
  double sum = 0;
  for (auto& [j, s] : scores) {
    const double p = std::exp(s - top);
    sum += p;
    const float* v =
        values_[t.sequence].data() + (static_cast<size_t>(j) * spec_.kv_heads + kv_head) * d;
    for (int32_t c = 0; c < d; ++c) (*out)[c] += p * v[c];
  }
  *lse = top + std::log(sum);
  if (spec_.sinks) sum += std::exp(static_cast<double>(sinks_[head]) - top);
  for (int32_t c = 0; c < d; ++c) (*out)[c] /= sum;
}

bool AttentionCase::Check(double tolerance) const {
  const std::vector<uint16_t> got = ReadOut();
  const std::vector<float> got_lse = ReadLse();
  const int32_t d = spec_.head_dim, heads = spec_.query_heads;
  const int workers = std::max(1u, std::thread::hardware_concurrency());
  std::vector<double> error(workers), norm(workers), worst(workers), worst_lse(workers);
  std::atomic<int64_t> next{0}, bad{0};
  const auto work = [&](int w) {
    std::vector<double> want;
    double want_lse = 0;
    for (int64_t unit; (unit = next++) < static_cast<int64_t>(tiles_.size()) * heads;) {
      const int32_t tile = static_cast<int32_t>(unit / heads),
                    head = static_cast<int32_t>(unit % heads);
      for (int32_t r = 0; r < tiles_[tile].num_rows; ++r) {
        ReferenceRow(tile, r, head, &want, &want_lse);
        const size_t at = (static_cast<size_t>(tiles_[tile].row_begin) + r) * heads + head;
        for (int32_t c = 0; c < d; ++c) {
          const double x = ToDouble(got[at * d + c]);
          if (!std::isfinite(x)) ++bad;
          error[w] += (x - want[c]) * (x - want[c]);
          norm[w] += want[c] * want[c];
          worst[w] = std::max(worst[w], std::fabs(x - want[c]));
        }
        if (!got_lse.empty()) {
          if (std::isinf(want_lse)) {
            if (got_lse[at] != -std::numeric_limits<float>::infinity()) ++bad;
          } else {
            const double e = std::fabs(got_lse[at] - want_lse);
            if (!(e < 1.0)) ++bad;
            worst_lse[w] = std::max(worst_lse[w], e);
          }
        }
      }
    }
  };
  std::vector<std::thread> threads;
  for (int w = 0; w < workers; ++w) threads.emplace_back(work, w);
  for (std::thread& t : threads) t.join();
  double e = 0, n = 0, most = 0, most_lse = 0;
  for (int w = 0; w < workers; ++w) {
    e += error[w];
    n += norm[w];
    most = std::max(most, worst[w]);
    most_lse = std::max(most_lse, worst_lse[w]);
  }
  const double relative = n > 0 ? std::sqrt(e / n) : std::sqrt(e);
  const bool good = bad == 0 && relative < tolerance && most_lse < 1e-3;
  std::printf("%-4s %-44s rel %.2e  max %.2e  lse %.1e  bad %lld\n", good ? "ok" : "FAIL",
              spec_.name.c_str(), relative, most, most_lse, static_cast<long long>(bad));
  return good;
}

}  // namespace longstride::kernels::cuda

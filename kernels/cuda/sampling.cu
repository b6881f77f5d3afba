// Computes Sample (op_params.h): the token that model/sampler.h defines, to the bit.
// Inputs: logits f32 [M, vocab], edited in place; one SampleRow and SampleResult a choice.
//
// Tokens rank by descending logit, then ascending id. Top-k and top-p both keep a head of that order:
// its end, the cut, is found by counting above seven pivots at a time until few tokens are left
// between two of them, which are sorted. Weights are integers, so sums need no order.
// A block for each choice, 1024 threads over the vocabulary. Bound: passes of one multiprocessor over
// a row in the L2 cache, about 5 us each for 128K tokens: 1 if greedy, 2 without filters, about 8 with
// top-p. Arch: any.
#include "kernels/cuda/sampling.h"

namespace longstride::kernels::cuda {
namespace {

constexpr int kThreads = 1024, kWarps = kThreads / 32;
constexpr int kPivots = 7;
constexpr int kListed = 2048;  // tokens that are sorted at most
constexpr uint64_t kNoCut = ~uint64_t{0};
constexpr uint32_t kAll = 0xffffffffu;

__device__ float Infinity() { return __int_as_float(0x7f800000); }

// Ascending with x; both zeros are one.
__device__ uint32_t KeyOf(float x) {
  const uint32_t bits = __float_as_uint(__fadd_rn(x, 0.0f));
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ float OfKey(uint32_t key) {
  return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}
__device__ uint64_t Rank(float x, int32_t token) {
  return static_cast<uint64_t>(~KeyOf(x)) << 32 | static_cast<uint32_t>(token);
}

__device__ float LogitOf(uint64_t rank) { return OfKey(~static_cast<uint32_t>(rank >> 32)); }

// model/sampler_kernels.cpp's Weight: the same operations, each rounded.
__device__ uint64_t Weight(float logit, float max, float scale) {
  const float x = __fmul_rn(__fsub_rn(logit, max), scale);
  if (!(x >= -87.0f)) return 0;
  constexpr float kMagic = 12582912.0f;
  const float n = __fsub_rn(__fadd_rn(__fmul_rn(x, 1.44269504088896341f), kMagic), kMagic);
  const float r = __fsub_rn(__fsub_rn(x, __fmul_rn(n, 0.693359375f)), __fmul_rn(n, -2.12194440e-4f));
  float p = __fadd_rn(__fmul_rn(r, 1.9875691500e-4f), 1.3981999507e-3f);
  p = __fadd_rn(__fmul_rn(p, r), 8.3334519073e-3f);
  p = __fadd_rn(__fmul_rn(p, r), 4.1665795894e-2f);
  p = __fadd_rn(__fmul_rn(p, r), 1.6666665459e-1f);
  p = __fadd_rn(__fmul_rn(p, r), 5.0000001201e-1f);
  p = __fadd_rn(__fadd_rn(__fmul_rn(p, __fmul_rn(r, r)), r), 1.0f);
  const float e = __fmul_rn(p, __int_as_float((static_cast<int>(n) + 127) << 23));
  return __float2ull_rz(e * static_cast<float>(uint64_t{1} << kWeightBits));
}

// A share of a sum of weights, rounded up.
__device__ uint64_t PartOf(float share, uint64_t mass) {
  return static_cast<uint64_t>(ceil(static_cast<double>(share) * static_cast<double>(mass)));
}

struct Shared {
  uint64_t sums[kPivots][kWarps];
  uint32_t counts[kPivots][kWarps];
  uint64_t list[kListed];
  uint64_t scan[kListed];
  uint64_t found;
  uint64_t rest;
  int32_t listed;
  int32_t warp;
};

template <typename T>
__device__ T WarpSum(T x) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kAll, x, step);
  return x;
}

// One row, as all threads of the block see it.
struct Row {
  float* logits;
  int32_t vocab;
  Shared& s;
  int thread = static_cast<int>(threadIdx.x);
  int warp = thread / 32, lane = thread % 32;

  // The sum of amount(x, token) over the row, for all threads.
  template <typename Amount>
  __device__ uint64_t Sum(const Amount& amount) {
    uint64_t mine = 0;
    for (int32_t i = thread; i < vocab; i += kThreads) mine += amount(logits[i], i);
    mine = WarpSum(mine);
    if (lane == 0) s.sums[0][warp] = mine;
    __syncthreads();
    const uint64_t total = WarpSum(s.sums[0][lane]);
    __syncthreads();
    return total;
  }

  // The least rank of the row; false where a logit is not a number.
  __device__ bool Best(uint64_t* best) {
    float most = -Infinity();
    int32_t at = 0;
    bool nan = false;
    constexpr int kAtOnce = 8;  // on their way together
    for (int32_t first = thread; first < vocab; first += kAtOnce * kThreads) {
      float x[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int32_t i = first + j * kThreads;
        x[j] = i < vocab ? logits[i] : -Infinity();
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        nan = nan || x[j] != x[j];
        if (x[j] > most) {  // of equals the first
          most = x[j];
          at = first + j * kThreads;
        }
      }
    }
    uint64_t mine = Rank(most, at);
    for (int step = 16; step > 0; step /= 2) mine = min(mine, __shfl_xor_sync(kAll, mine, step));
    if (lane == 0) s.sums[0][warp] = mine;
    nan = __syncthreads_or(nan);
    mine = s.sums[0][lane];
    for (int step = 16; step > 0; step /= 2) mine = min(mine, __shfl_xor_sync(kAll, mine, step));
    __syncthreads();
    *best = mine;
    return !nan;
  }

  // The first token at which the sum of amount(x, token) over the tokens up to it exceeds `target`.
  template <typename Amount>
  __device__ int32_t WalkTo(uint64_t target, const Amount& amount) {
    const int32_t chunk = ((vocab + kWarps - 1) / kWarps + 31) / 32 * 32;
    const int32_t begin = min(vocab, warp * chunk), end = min(vocab, begin + chunk);
    uint64_t mine = 0;
    for (int32_t i = begin + lane; i < end; i += 32) mine += amount(logits[i], i);
    mine = WarpSum(mine);
    if (lane == 0) s.sums[0][warp] = mine;
    __syncthreads();
    if (thread == 0) {
      int w = 0;
      uint64_t rest = target;
      while (w + 1 < kWarps && rest >= s.sums[0][w]) rest -= s.sums[0][w++];
      s.warp = w;
      s.rest = rest;
      s.found = static_cast<uint64_t>(max(vocab - 1, 0));
    }
    __syncthreads();
    if (warp == s.warp) {
      uint64_t rest = s.rest;
      for (int32_t first = begin; first < end; first += 32) {
        const int32_t i = first + lane;
        uint64_t sum = i < end ? amount(logits[i], i) : 0;
        for (int step = 1; step < 32; step *= 2) {
          const uint64_t before = __shfl_up_sync(kAll, sum, step);
          if (lane >= step) sum += before;
        }
        const uint32_t over = __ballot_sync(kAll, sum > rest);
        if (over != 0) {
          if (lane == 0) s.found = static_cast<uint64_t>(first + __ffs(over) - 1);
          break;
        }
        rest -= __shfl_sync(kAll, sum, 31);
      }
    }
    __syncthreads();
    const auto token = static_cast<int32_t>(s.found);
    __syncthreads();
    return token;
  }

  // The rank up to which amounts of the tokens within `cut` reach `target`, which they do. Amounts of
  // equal logits are equal. `unit`: how far apart logits are that matter.
  template <typename Amount>
  __device__ uint64_t CutAt(uint64_t target, uint64_t cut, float max, float unit,
                            const Amount& amount) {
    float low = -Infinity(), high = OfKey(KeyOf(max) + 1);
    uint64_t above = 0;  // amounts of high and up
    uint32_t count_above = 0, count = static_cast<uint32_t>(vocab);  // count: of low and up
    bool linear = false;
    for (int pass = 0; count - count_above > kListed && KeyOf(high) - KeyOf(low) > 1; ++pass) {
      float pivots[kPivots];
      const uint32_t low_key = KeyOf(low), keys = KeyOf(high) - low_key;
#pragma unroll
      for (int j = 0; j < kPivots; ++j) {
        if (pass == 0) {
          pivots[j] = max - unit * static_cast<float>(64 >> j);
        } else if (linear) {
          pivots[j] = low + (high - low) * (static_cast<float>(j + 1) / (kPivots + 1));
        } else {
          pivots[j] = OfKey(low_key + static_cast<uint32_t>(uint64_t{keys} * (j + 1) / (kPivots + 1)));
        }
      }
      uint64_t sums[kPivots] = {};
      uint32_t counts[kPivots] = {};
      for (int32_t i = thread; i < vocab; i += kThreads) {
        const float x = logits[i];
        const uint64_t a = Rank(x, i) <= cut ? amount(x) : 0;
#pragma unroll
        for (int j = 0; j < kPivots; ++j) {
          if (x >= pivots[j]) {
            sums[j] += a;
            ++counts[j];
          }
        }
      }
#pragma unroll
      for (int j = 0; j < kPivots; ++j) {
        sums[j] = WarpSum(sums[j]);
        counts[j] = WarpSum(counts[j]);
        if (lane == 0) {
          s.sums[j][warp] = sums[j];
          s.counts[j][warp] = counts[j];
        }
      }
      __syncthreads();
#pragma unroll
      for (int j = 0; j < kPivots; ++j) {
        sums[j] = WarpSum(s.sums[j][lane]);
        counts[j] = WarpSum(s.counts[j][lane]);
      }
      __syncthreads();
#pragma unroll
      for (int j = 0; j < kPivots; ++j) {
        if (!(pivots[j] > low && pivots[j] < high)) continue;
        if (sums[j] >= target) {
          low = pivots[j];
          count = counts[j];
        } else {
          high = pivots[j];
          above = sums[j];
          count_above = counts[j];
        }
      }
      // Linear steps are fast where they are possible; every other one is sure to halve the keys.
      linear = pass % 2 == 0 && low > -1e30f && high < 1e30f;
    }
    if (count - count_above > kListed) {
      const uint64_t each = amount(low);
      const uint64_t ties = each == 0 ? 1 : (target - above + each - 1) / each;
      return Rank(low, WalkTo(ties - 1, [&](float x, int32_t i) -> uint64_t {
                    return x == low && Rank(x, i) <= cut;
                  }));
    }
    return CutInList(target - above, cut, low, high, amount);
  }

  // The same among the tokens with low <= logit < high, kListed of them at most.
  template <typename Amount>
  __device__ uint64_t CutInList(uint64_t target, uint64_t cut, float low, float high,
                                const Amount& amount) {
    if (thread == 0) {
      s.listed = 0;
      s.found = cut;
    }
    __syncthreads();
    for (int32_t i = thread; i < vocab; i += kThreads) {
      const float x = logits[i];
      const uint64_t rank = Rank(x, i);
      if (x >= low && x < high && rank <= cut) s.list[atomicAdd(&s.listed, 1)] = rank;
    }
    __syncthreads();
    const int listed = s.listed;
    int size = 2;
    while (size < listed) size *= 2;
    for (int i = listed + thread; i < size; i += kThreads) s.list[i] = kNoCut;
    __syncthreads();
    for (int run = 2; run <= size; run *= 2) {
      for (int step = run / 2; step > 0; step /= 2) {
        for (int i = thread; i < size; i += kThreads) {
          const int other = i ^ step;
          if (other <= i) continue;
          const uint64_t a = s.list[i], b = s.list[other];
          if (((i & run) == 0) == (a > b)) {
            s.list[i] = b;
            s.list[other] = a;
          }
        }
        __syncthreads();
      }
    }
    for (int i = thread; i < size; i += kThreads) {
      s.scan[i] = i < listed ? amount(LogitOf(s.list[i])) : 0;
    }
    __syncthreads();
    for (int step = 1; step < size; step *= 2) {
      uint64_t add[kListed / kThreads];
#pragma unroll
      for (int j = 0; j < kListed / kThreads; ++j) {
        const int i = thread + j * kThreads;
        add[j] = i >= step && i < size ? s.scan[i - step] : 0;
      }
      __syncthreads();
#pragma unroll
      for (int j = 0; j < kListed / kThreads; ++j) {
        const int i = thread + j * kThreads;
        if (i < size) s.scan[i] += add[j];
      }
      __syncthreads();
    }
    for (int i = thread; i < listed; i += kThreads) {
      const bool before = i > 0 && s.scan[i - 1] >= target;
      if (s.scan[i] >= target && !before) s.found = s.list[i];
    }
    __syncthreads();
    const uint64_t found = s.found;
    __syncthreads();
    return found;
  }
};

__device__ float Finite(float x) {
  constexpr float kMax = 3.402823466e38f;
  return fminf(fmaxf(x, -kMax), kMax);
}

__device__ void Edit(const SampleLaunch& p, const SampleRow& choice, Row& row) {
  for (int e = row.thread; e < choice.num_edits; e += kThreads) {
    const LogitEdit edit = p.edits[choice.edits_begin + e];
    float x = row.logits[edit.token];
    p.originals[choice.edits_begin + e] = x;
    if (x == -Infinity()) continue;
    if (edit.penalised || edit.generated > 0) {
      if (edit.penalised) {
        x = x > 0.0f ? __fdiv_rn(x, choice.repetition_penalty)
                     : __fmul_rn(x, choice.repetition_penalty);
      }
      if (edit.generated > 0) {
        x = __fsub_rn(x, __fadd_rn(__fmul_rn(choice.frequency_penalty,
                                             static_cast<float>(edit.generated)),
                                   choice.presence_penalty));
      }
      x = Finite(x);
    }
    if (edit.bias != 0.0f) x = Finite(__fadd_rn(x, edit.bias));
    row.logits[edit.token] = edit.banned ? -Infinity() : x;
  }
  __syncthreads();
}

__device__ int32_t Draw(const SampleRow& choice, float max, Row& row) {
  const float scale = choice.inverse_temperature;
  const float unit = __fdividef(1.0f, scale);
  const auto weight = [=](float x) { return Weight(x, max, scale); };
  uint64_t cut = kNoCut;
  if (choice.top_k > 0) {
    cut = row.CutAt(static_cast<uint64_t>(choice.top_k), cut, max, unit,
                    [](float x) -> uint64_t { return 1; });
  }
  const auto mass_to_cut = [&] {
    return row.Sum([&](float x, int32_t i) { return Rank(x, i) <= cut ? weight(x) : 0; });
  };
  if (choice.top_p < 1.0f) {
    const uint64_t target = PartOf(choice.top_p, mass_to_cut());
    cut = row.CutAt(target > 0 ? target : 1, cut, max, unit, weight);
  }
  const uint64_t least =
      choice.min_p > 0.0f ? PartOf(choice.min_p, uint64_t{1} << kWeightBits) : 0;
  const auto kept = [&](float x, int32_t i) -> uint64_t {
    const uint64_t w = Rank(x, i) <= cut ? weight(x) : 0;
    return w < least ? 0 : w;
  };
  const uint64_t mass = row.Sum(kept);
  const uint64_t target =
      (__umul64hi(choice.uniform, mass) << 11) | ((choice.uniform * mass) >> 53);
  return row.WalkTo(target, kept);
}

__device__ void ReportTop(const SampleRow& choice, float max, Row& row, SampleResult& result) {
  if (choice.num_top < 0) return;
  const uint64_t mass = row.Sum([=](float x, int32_t) { return Weight(x, max, 1.0f); });
  if (row.thread == 0) result.mass = mass;
  if (choice.num_top == 0) return;
  const uint64_t cut = row.CutAt(static_cast<uint64_t>(choice.num_top), kNoCut, max, 1.0f,
                                 [](float x) -> uint64_t { return 1; });
  if (row.thread == 0) row.s.listed = 0;
  __syncthreads();
  for (int32_t i = row.thread; i < row.vocab; i += kThreads) {
    const float x = row.logits[i];
    if (Rank(x, i) > cut) continue;
    const int at = atomicAdd(&row.s.listed, 1);
    result.top_tokens[at] = i;
    result.top_logits[at] = x;
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kThreads) SampleKernel(const SampleLaunch p) {
  __shared__ Shared s;
  const SampleRow choice = p.rows[blockIdx.x];
  SampleResult& result = p.results[blockIdx.x];
  Row row{p.logits + choice.row * p.logits_stride, p.vocab, s};
  uint64_t best = 0;
  bool valid = row.Best(&best) && isfinite(LogitOf(best));
  if (row.thread == 0) {
    result.valid = 0;
    result.max = LogitOf(best);
  }
  if (!valid) return;
  ReportTop(choice, LogitOf(best), row, result);
  if (choice.num_edits > 0) {
    Edit(p, choice, row);
    valid = row.Best(&best) && isfinite(LogitOf(best));
    if (!valid) return;
  }
  const int32_t token = choice.inverse_temperature == 0.0f ? static_cast<int32_t>(best & kAll)
                                                           : Draw(choice, LogitOf(best), row);
  if (row.thread == 0) {
    result.token = token;
    result.logit = row.logits[token];
    result.valid = 1;
  }
  __syncthreads();
  for (int e = row.thread; e < choice.num_edits; e += kThreads) {
    if (p.edits[choice.edits_begin + e].token == token) {
      result.logit = p.originals[choice.edits_begin + e];
    }
  }
}

}  // namespace

cudaError_t LaunchSample(const SampleLaunch& launch, cudaStream_t stream) {
  if (launch.num_rows == 0) return cudaSuccess;
  SampleKernel<<<launch.num_rows, kThreads, 0, stream>>>(launch);
  return cudaGetLastError();
}

}  // namespace longstride::kernels::cuda

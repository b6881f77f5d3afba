// Lists of pages by shares of attention (page_shares.h): a thread block for each list. What decides are
// integers, shares in units of 2^-31, so that sums are the same in whatever order.
#include "kernels/cuda/device/math.cuh"
#include "kernels/cuda/selection/lists.cuh"
#include "kernels/cuda/selection/page_shares.h"

namespace longstride::kernels::cuda {
namespace {

constexpr float kShareUnits = 2147483648.0f;

struct TakeParams {
  SelectPagesParams p;
  ShareLaunch s;
  VerticalSlashLaunch v;
  int32_t first_tile;
  uint32_t* shares;
};

// The same for all threads, in an order that the grid does not change.
__device__ float BlockSum(float mine) {
  __shared__ float warps[kListThreads / 32];
#pragma unroll
  for (int step = 16; step > 0; step /= 2) mine += __shfl_xor_sync(kAllLanes, mine, step);
  __syncthreads();
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = mine;
  __syncthreads();
  float sum = 0.0f;
  for (int w = 0; w < kListThreads / 32; ++w) sum += warps[w];
  return sum;
}

__device__ __forceinline__ uint32_t UnitsOf(float weight, float total) {
  const float share = weight / total;
  return share > 0.0f ? __float2uint_rn(fminf(share, 1.0f) * kShareUnits) : 0u;
}

__device__ void TakeAll(int32_t pages, int32_t* out) {
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < pages; i += kListThreads) out[i] = i;
}

__device__ void Pad(int32_t begin, int32_t end, int32_t* out) {
  for (int32_t i = begin + static_cast<int32_t>(threadIdx.x); i < end; i += kListThreads) {
    out[i] = kNoEntry;
  }
}

// Block (tile, list head).
__global__ void __launch_bounds__(kListThreads) TakeBySharesKernel(const TakeParams a) {
  __shared__ ListShared s;
  const auto probe = static_cast<int32_t>(blockIdx.x);
  const auto list_head = static_cast<int32_t>(blockIdx.y);
  const int32_t tile_index = a.first_tile + probe;
  const QueryTile tile = a.p.tiles[tile_index];
  const int32_t pages = Candidates(tile), thread = static_cast<int32_t>(threadIdx.x);
  if (a.p.counts[tile_index] == 0) return;
  int32_t* out =
      a.p.entries + a.p.list_begin[static_cast<int64_t>(list_head) * a.p.num_tiles + tile_index];
  if (tile.num_rows == 1 || a.s.page_logs == nullptr) return TakeAll(pages, out);
  // A page's weights of the rows, which sum to 1 each, in ascending order of rows.
  const int32_t rows = (tile.num_rows + a.s.fold - 1) / a.s.fold;
  const int64_t first_head =
      probe * a.p.q.shape[1] + static_cast<int64_t>(list_head) * a.s.heads_per_list;
  uint32_t* shares =
      a.shares + (static_cast<int64_t>(probe) * gridDim.y + list_head) * a.s.max_pages;
  float mine = 0.0f;
  for (int32_t page = thread; page < pages; page += kListThreads) {
    float weight = 0.0f;
    for (int32_t h = 0; h < a.s.heads_per_list; ++h) {
      const int64_t first_row = (first_head + h) * a.s.groups;
      for (int32_t r = 0; r < rows; ++r) {
        const float x = Exp2(a.s.page_logs[(first_row + r) * a.s.max_pages + page] -
                             a.s.row_logs[first_row + r]);
        if (x >= 0.0f) weight += x;  // a row that is no numbers adds nothing
      }
    }
    shares[page] = __float_as_uint(weight);
    mine += weight;
  }
  const float total = BlockSum(mine);
  const int32_t tail = TailBegin(tile, a.p.recent_pages), sinks = min(a.p.sink_pages, tail);
  uint32_t forced = 0;
  for (int32_t page = thread; page < pages; page += kListThreads) {
    const uint32_t share = UnitsOf(__uint_as_float(shares[page]), total);
    shares[page] = share;
    if (page < sinks || page >= tail) forced += share;
  }
  uint32_t taken;
  BlockScan(forced, s, &taken);  // also: all shares are there
  const auto wanted = static_cast<uint32_t>(ceil(static_cast<double>(a.p.mass) * kShareUnits));
  for (int32_t i = thread; i < sinks; i += kListThreads) out[i] = i;
  int32_t written = sinks;
  if (taken < wanted) {
    const auto share_at = [shares](int32_t page) { return shares[page]; };
    const Largest largest = FindLargest<true>(sinks, tail, share_at, wanted - taken, s);
    written += WriteLargest(sinks, tail, share_at, largest, out + sinks, s);
  }
  for (int32_t i = thread; i < pages - tail; i += kListThreads) out[written + i] = tail + i;
  Pad(written + pages - tail, pages, out);
}

// Sums over the heads of a list, and the heaviest weight of each run of kPageTokens.
// Block (4 runs, list head, probe).
constexpr int kRunsOfBlock = 4;
__global__ void __launch_bounds__(kRunsOfBlock* kPageTokens) SumHeadsKernel(const TakeParams a) {
  __shared__ float most[2][2 * kRunsOfBlock];
  const QueryTile probe = a.s.probes[blockIdx.z];
  const int32_t pages = Candidates(probe), last = probe.first_position + probe.num_rows - 1;
  const int32_t first_run = static_cast<int32_t>(blockIdx.x) * kRunsOfBlock;
  if (first_run >= pages) return;
  const int32_t i = first_run * kPageTokens + static_cast<int32_t>(threadIdx.x);
  const int64_t list = static_cast<int64_t>(blockIdx.z) * gridDim.y + blockIdx.y;
  const int64_t pitch = a.s.max_pages * kPageTokens;
  // The diagonal lies in two pages at most, from each of which a part of the rows reaches it.
  const int32_t from_first = probe.first_position + kPageTokens - 1 - i;
  const int32_t page = from_first >= 0 ? from_first / kPageTokens : -1;
  const int32_t slot = i - probe.first_position + kPageTokens - 1 + page * kPageTokens;
  float column = 0.0f, diagonal = 0.0f;
  for (int32_t h = 0; i <= last && h < a.s.heads_per_list; ++h) {
    const int64_t head = blockIdx.z * a.p.q.shape[1] +
                         static_cast<int64_t>(blockIdx.y) * a.s.heads_per_list + h;
    column += a.v.columns[head * pitch + i];
    const float* slots = a.v.diagonals + (head * a.s.max_pages + page) * kDiagonalSlots + slot;
    if (page >= 0 && page < pages) diagonal += slots[0];
    if (page >= 1 && slot >= kPageTokens) diagonal += slots[-kDiagonalSlots - kPageTokens];
  }
  if (a.v.weights != nullptr && i < pages * kPageTokens) {
    a.v.weights[list * 2 * pitch + i] = column;
    a.v.weights[(list * 2 + 1) * pitch + i] = diagonal;
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    column = fmaxf(column, __shfl_xor_sync(kAllLanes, column, step));
    diagonal = fmaxf(diagonal, __shfl_xor_sync(kAllLanes, diagonal, step));
  }
  if (threadIdx.x % 32 == 0) {
    most[0][threadIdx.x / 32] = column;
    most[1][threadIdx.x / 32] = diagonal;
  }
  __syncthreads();
  if (threadIdx.x >= 2 * kRunsOfBlock) return;
  const int32_t which = static_cast<int32_t>(threadIdx.x) / kRunsOfBlock;
  const int32_t run = static_cast<int32_t>(threadIdx.x) % kRunsOfBlock;
  if (first_run + run >= pages) return;
  a.v.heaviest[(list * 2 + which) * a.s.max_pages + first_run + run] =
      fmaxf(most[which][2 * run], most[which][2 * run + 1]);
}

// Which pages (blockIdx.x 0) or runs of diagonals (1) of a list are taken. Block (2, list head, probe).
__global__ void __launch_bounds__(kListThreads) ChooseKernel(const TakeParams a) {
  __shared__ ListShared s;
  const QueryTile probe = a.s.probes[blockIdx.z];
  const int32_t pages = Candidates(probe), thread = static_cast<int32_t>(threadIdx.x);
  const int64_t at =
      (static_cast<int64_t>(blockIdx.z) * gridDim.y + blockIdx.y) * 2 + blockIdx.x;
  int32_t count = blockIdx.x == 0 ? a.p.vertical_pages : a.p.slash_pages;
  if (a.p.mass >= 1.0f) {
    count = pages;
  } else if (a.p.mass > 0.0f && !(a.v.query_aware != nullptr &&
                                  a.v.query_aware[blockIdx.z * gridDim.y + blockIdx.y] != 0)) {
    const float* weights = a.v.weights + at * (a.s.max_pages * kPageTokens);
    const int32_t size = probe.first_position + probe.num_rows;
    float mine = 0.0f;
    for (int32_t i = thread; i < size; i += kListThreads) mine += weights[i];
    const float total = BlockSum(mine);
    int32_t fewest = 0;
    if (total > 0.0f) {
      const auto wanted =
          static_cast<uint32_t>(ceil(static_cast<double>(a.p.mass) * kShareUnits));
      const Largest largest = FindLargest<true>(
          0, size, [&](int32_t i) { return UnitsOf(weights[i], total); }, wanted, s);
      fewest = largest.key == 0 ? size : static_cast<int32_t>(largest.above + largest.equals);
    }
    count = max(count, fewest / kPageTokens + 1);
  }
  count = min(count, pages);
  uint8_t* chosen = a.v.chosen + at * a.s.max_pages;
  const float* heaviest = a.v.heaviest + at * a.s.max_pages;
  const auto key_at = [heaviest](int32_t run) { return KeyOf(heaviest[run]); };
  Largest largest = {kAllLanes, 0, 0};
  if (count > 0) {
    largest = FindLargest<false>(0, pages, key_at, static_cast<uint32_t>(count), s);
  }
  uint32_t equals = 0;
  for (int32_t base = 0; base < pages; base += kListThreads) {
    const int32_t run = base + thread;
    const uint32_t key = run < pages ? key_at(run) : 0;
    const bool equal = run < pages && key == largest.key;
    uint32_t total;
    const uint32_t rank = equals + BlockScan(equal ? 1 : 0, s, &total);
    equals += total;
    if (run < pages) chosen[run] = key > largest.key || (equal && rank < largest.equals);
  }
}

// Block (tile, list head).
__global__ void __launch_bounds__(kListThreads) TakeVerticalSlashKernel(const TakeParams a) {
  __shared__ ListShared s;
  const auto list_head = static_cast<int32_t>(blockIdx.y);
  const int32_t tile_index = a.v.first_tile + static_cast<int32_t>(blockIdx.x);
  const QueryTile tile = a.p.tiles[tile_index];
  const int32_t pages = Candidates(tile), probe = a.v.probe_of[blockIdx.x];
  if (a.p.counts[tile_index] == 0) return;
  int32_t* out =
      a.p.entries + a.p.list_begin[static_cast<int64_t>(list_head) * a.p.num_tiles + tile_index];
  if (probe < 0) return TakeAll(pages, out);
  const uint8_t* columns =
      a.v.chosen + (static_cast<int64_t>(probe) * gridDim.y + list_head) * 2 * a.s.max_pages;
  const uint8_t* diagonals = columns + a.s.max_pages;
  const int32_t tail = TailBegin(tile, a.p.recent_pages);
  // The rows at positions first to last reach, along diagonals [64 run, 64 run + 63], the page's keys for
  // runs above (first - 127) / 64 - page and up to last / 64 - page.
  const int32_t before = tile.first_position - 2 * kPageTokens + 1;
  const int32_t floor = before >= 0 ? before / kPageTokens : (before - kPageTokens + 1) / kPageTokens;
  const int32_t last = (tile.first_position + tile.num_rows - 1) / kPageTokens;
  const auto take = [&](int32_t page) {
    if (page < a.p.sink_pages || page >= tail || columns[page]) return true;
    for (int32_t run = max(0, floor + 1 - page); run <= last - page; ++run) {
      if (diagonals[run]) return true;
    }
    return false;
  };
  if (a.v.query_aware == nullptr || a.v.query_aware[probe * gridDim.y + list_head] == 0) {
    Pad(WriteTaken(0, pages, take, out, s), pages, out);
    return;
  }
  // And the best by the tile's own means. What is taken has the key 0 from here on.
  float* shares =
      a.v.tile_shares + (static_cast<int64_t>(blockIdx.x) * gridDim.y + list_head) * a.s.max_pages;
  auto* keys = reinterpret_cast<uint32_t*>(shares);
  uint32_t mine = 0;
  for (int32_t page = static_cast<int32_t>(threadIdx.x); page < pages; page += kListThreads) {
    const uint32_t share = UnitsOf(shares[page], 1.0f);
    const bool taken = take(page);
    if (taken) mine += share;
    keys[page] = taken ? 0 : share + 1;
  }
  uint32_t sum;
  BlockScan(mine, s, &sum);
  const auto wanted = static_cast<uint32_t>(ceil(static_cast<double>(a.p.mass) * kShareUnits));
  Largest largest = {kAllLanes, 0, 0};
  const auto key_at = [keys](int32_t page) { return keys[page]; };
  if (a.p.mass >= 1.0f) {
    largest = {0, kAllLanes, 0};
  } else if (sum < wanted) {
    largest = FindLargest<true>(0, pages, key_at, wanted - sum, s);
  }
  uint32_t equals = 0;
  int32_t written = 0;
  for (int32_t base = 0; base < pages; base += kListThreads) {
    const int32_t page = base + static_cast<int32_t>(threadIdx.x);
    const uint32_t key = page < pages ? keys[page] : 0;
    const bool equal = page < pages && key == largest.key && key != 0;
    uint32_t total;
    const uint32_t rank = equals + BlockScan(equal ? 1 : 0, s, &total);
    equals += total;
    const bool best = key > largest.key || (equal && rank < largest.equals);
    const bool taken = page < pages && (key == 0 || best);
    const uint32_t at = BlockScan(taken ? 1 : 0, s, &total);
    if (taken) out[written + static_cast<int32_t>(at)] = page;
    written += static_cast<int32_t>(total);
  }
  Pad(written, pages, out);
}

// Block (list head, probe).
__global__ void __launch_bounds__(kListThreads) FindQueryAwareKernel(const TakeParams a) {
  const QueryTile probe = a.s.probes[blockIdx.y];
  const int32_t pages = Candidates(probe), thread = static_cast<int32_t>(threadIdx.x);
  const int32_t size = probe.first_position + probe.num_rows;
  const int64_t list = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
  const float* columns = a.v.weights + list * 2 * a.s.max_pages * kPageTokens;
  const float* shares = a.v.probe_shares + list * a.s.max_pages;
  float mine = 0.0f;
  for (int32_t i = thread; i < size; i += kListThreads) mine += columns[i];
  const float total = BlockSum(mine);
  float divergence = 0.0f;
  for (int32_t page = thread; page < pages; page += kListThreads) {
    float column = 0.0f;
    for (int32_t i = page * kPageTokens; i < min(size, (page + 1) * kPageTokens); ++i) {
      column += columns[i];
    }
    column /= total;
    const float share = shares[page], middle = 0.5f * (column + share);
    if (column > 0.0f) divergence += 0.5f * column * logf(column / middle);
    if (share > 0.0f) divergence += 0.5f * share * logf(share / middle);
  }
  divergence = BlockSum(divergence);
  const float distance = divergence > 0.0f ? sqrtf(divergence) : divergence;
  if (thread == 0) a.v.query_aware[list] = distance < a.p.divergence ? 1 : 0;
}

struct PooledParams {
  SelectPagesParams p;
  PooledLaunch l;
  int32_t first_tile;
};

// Block (tile, list head).
__global__ void __launch_bounds__(kListThreads) TakePooledKernel(const PooledParams a) {
  __shared__ ListShared s;
  const auto list_head = static_cast<int32_t>(blockIdx.y);
  const int32_t tile_index = a.first_tile + static_cast<int32_t>(blockIdx.x);
  const QueryTile tile = a.p.tiles[tile_index];
  const int32_t pages = Candidates(tile), thread = static_cast<int32_t>(threadIdx.x);
  if (a.p.counts[tile_index] == 0) return;
  int32_t* out =
      a.p.entries + a.p.list_begin[static_cast<int64_t>(list_head) * a.p.num_tiles + tile_index];
  const int32_t slot = a.l.slot_of[blockIdx.x];
  bool whole = slot < 0 || a.p.mass >= 1.0f;
  const auto heads = static_cast<int32_t>(a.p.q.shape[1]);
  const int32_t first_head = list_head * a.l.heads_per_list;
  for (int32_t h = 0; !whole && h < a.l.heads_per_list; ++h) {
    const int64_t at = static_cast<int64_t>(blockIdx.x) * heads + first_head + h;
    whole = !(a.l.cosines[at] > a.p.similarity);
  }
  if (whole) return TakeAll(pages, out);
  const int32_t kv_head = first_head / (heads / a.p.cache.num_heads);
  const auto alike = [&](int32_t page) {
    const int64_t at = (slot * a.l.pages.max_pages + page) * a.p.cache.num_heads + kv_head;
    return a.l.pages.cosines[at] > a.p.similarity;
  };
  float* shares =
      a.l.shares + (static_cast<int64_t>(blockIdx.x) * gridDim.y + list_head) * a.l.shares_pitch;
  auto* keys = reinterpret_cast<uint32_t*>(shares);
  for (int32_t page = thread; page < pages; page += kListThreads) {
    keys[page] = alike(page) ? UnitsOf(shares[page], 1.0f) + 1 : 0;
  }
  __syncthreads();
  const auto key_at = [keys](int32_t page) { return keys[page]; };
  // The fewest that exceed the mass, less the last of them.
  const auto most = static_cast<uint32_t>(floor(static_cast<double>(a.p.mass) * kShareUnits));
  Largest largest = FindLargest<true>(0, pages, key_at, most + 1, s);
  if (largest.key != 0 && largest.equals + largest.above > 1) --largest.equals;
  const int32_t tail = TailBegin(tile, a.p.recent_pages);
  uint32_t equals = 0;
  int32_t written = 0;
  for (int32_t base = 0; base < pages; base += kListThreads) {
    const int32_t page = base + thread;
    const uint32_t key = page < pages ? keys[page] : 0;
    const bool equal = page < pages && key == largest.key && key != 0;
    uint32_t total;
    const uint32_t rank = equals + BlockScan(equal ? 1 : 0, s, &total);
    equals += total;
    const bool best = key > largest.key || (equal && rank < largest.equals);
    const bool taken = page < pages && (best || key == 0 || page < a.p.sink_pages || page >= tail);
    const uint32_t at = BlockScan(taken ? 1 : 0, s, &total);
    if (taken) out[written + static_cast<int32_t>(at)] = page;
    written += static_cast<int32_t>(total);
  }
  Pad(written, pages, out);
}

TakeParams MakeParams(const SelectPagesParams& p, const ShareLaunch& s,
                      const VerticalSlashLaunch& v) {
  TakeParams a = {};
  a.p = p;
  a.s = s;
  a.v = v;
  return a;
}

unsigned ListHeadsOf(const SelectPagesParams& p, const ShareLaunch& s) {
  return static_cast<unsigned>(p.q.shape[1] / s.heads_per_list);
}

}  // namespace

cudaError_t LaunchTakeByShares(const SelectPagesParams& p, const ShareLaunch& s, int32_t first_tile,
                               uint32_t* shares, cudaStream_t stream) {
  TakeParams a = MakeParams(p, s, {});
  a.first_tile = first_tile;
  a.shares = shares;
  const dim3 blocks(static_cast<unsigned>(s.num_probes), ListHeadsOf(p, s));
  TakeBySharesKernel<<<blocks, kListThreads, 0, stream>>>(a);
  return cudaGetLastError();
}

cudaError_t LaunchTakePooled(const SelectPagesParams& p, const PooledLaunch& l, int32_t first_tile,
                             cudaStream_t stream) {
  PooledParams a = {};
  a.p = p;
  a.l = l;
  a.first_tile = first_tile;
  const dim3 blocks(static_cast<unsigned>(l.num_tiles),
                    static_cast<unsigned>(p.q.shape[1] / l.heads_per_list));
  TakePooledKernel<<<blocks, kListThreads, 0, stream>>>(a);
  return cudaGetLastError();
}

cudaError_t LaunchChooseVerticalSlash(const SelectPagesParams& p, const ShareLaunch& s,
                                      const VerticalSlashLaunch& v, cudaStream_t stream) {
  if (s.num_probes == 0) return cudaSuccess;
  const TakeParams a = MakeParams(p, s, v);
  const unsigned lists = ListHeadsOf(p, s), probes = static_cast<unsigned>(s.num_probes);
  const auto runs = static_cast<unsigned>((s.max_pages + kRunsOfBlock - 1) / kRunsOfBlock);
  SumHeadsKernel<<<dim3(runs, lists, probes), kRunsOfBlock * kPageTokens, 0, stream>>>(a);
  cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess && v.query_aware != nullptr) {
    FindQueryAwareKernel<<<dim3(lists, probes), kListThreads, 0, stream>>>(a);
    error = cudaGetLastError();
  }
  if (error != cudaSuccess) return error;
  ChooseKernel<<<dim3(2, lists, probes), kListThreads, 0, stream>>>(a);
  return cudaGetLastError();
}

cudaError_t LaunchTakeVerticalSlash(const SelectPagesParams& p, const ShareLaunch& s,
                                    const VerticalSlashLaunch& v, cudaStream_t stream) {
  const dim3 blocks(static_cast<unsigned>(v.num_tiles), ListHeadsOf(p, s));
  TakeVerticalSlashKernel<<<blocks, kListThreads, 0, stream>>>(MakeParams(p, s, v));
  return cudaGetLastError();
}

}  // namespace longstride::kernels::cuda

// Products with f16 and bf16 weights and many activation rows: persistent blocks, each with a
// producer warp and two math warpgroups of 64 weight rows by 256 activation rows. Two blocks of a
// cluster take neighbouring weight tiles and the same activations, each bringing half of them for
// both. K is summed in order, 16 columns at a time, as in dense_narrow.cu.
//
// Bound: the tensor cores. Registers: 128 accumulators a thread; shared memory: 4 slots of 48 KB
// and 32 KB of results on their way out.
#include "kernels/cuda/device/math.cuh"
#include "kernels/cuda/linear/dense.cuh"
#include "kernels/cuda/linear/hopper.cuh"
#include "kernels/cuda/linear/product_args.cuh"
#include "kernels/cuda/linear/wgmma_shapes.cuh"

namespace longstride::kernels::cuda {
namespace {

constexpr int kMathGroups = 2;
constexpr int kThreads = 128 * (kMathGroups + 1);
constexpr int kTileN = 128;
constexpr int kTokens = 256;
constexpr int kCluster = 2;
constexpr int kSlots = 4;
constexpr int kWeightBytes = kTileN * 128;
constexpr int kTokenBytes = kTokens * 128;
constexpr int kSlotBytes = kWeightBytes + kTokenBytes;
constexpr int kStagingBytes = 16 * 1024;  // of results, for each math warpgroup
constexpr size_t kSharedBytes = kSlots * kSlotBytes + kMathGroups * kStagingBytes + 1024;
constexpr int kStagingBarrier = 1;  // + warpgroup
constexpr uint16_t kBothBlocks = 3;

// Walks the tiles of a cluster: bands of activation tiles, so that what runs at the same time
// shares both operands through the second-level cache.
class TileWalk {
 public:
  static constexpr int kBand = 8;
  __device__ TileWalk(const ProductArgs& p)
      : pairs_((p.n + kTileN * kCluster - 1) / (kTileN * kCluster)), row_tiles_(p.max_tiles) {}
  __device__ int count() const { return pairs_ * row_tiles_; }
  // Which pair of weight tiles and which tile of activations.
  __device__ void Get(int index, int* pair, int* row_tile) const {
    const int band = index / (kBand * pairs_), in_band = index % (kBand * pairs_);
    const int height = min(kBand, row_tiles_ - band * kBand);
    *row_tile = band * kBand + in_band % height;
    *pair = in_band / height;
  }

 private:
  int pairs_, row_tiles_;
};

// Stores the results of one warpgroup, 64 columns of 256 rows, through shared memory by bulk copies
// that run while the next tile is multiplied.
struct Results {
  const ProductArgs& p;
  const RowTile& tile;
  int n_begin;
  uint32_t staging;
  int barrier;

  // Scaled, with bias; `i` counts this thread's accumulators.
  __device__ __forceinline__ float Finish(float value, int i, const float (&bias)[2]) const {
    if (p.row_scale != nullptr) {
      const int token = i / 4 * 8 + (static_cast<int>(threadIdx.x) & 3) * 2 + (i & 1);
      if (token < tile.rows) value *= p.row_scale[tile.row_begin + token];
    }
    if (tile.bias != nullptr) value += bias[i >> 1 & 1];
    return value;
  }
  __device__ __forceinline__ void LoadBias(float (&bias)[2]) const {
    const int n = n_begin + (static_cast<int>(threadIdx.x) >> 5 & 3) * 16 +
                  (static_cast<int>(threadIdx.x) >> 2 & 7);
    bias[0] = tile.bias != nullptr && n < p.n ? tile.bias[n] : 0.0f;
    bias[1] = tile.bias != nullptr && n + 8 < p.n ? tile.bias[n + 8] : 0.0f;
  }
  __device__ __forceinline__ void BeginChunk() const {
    if ((threadIdx.x & 127) == 0) WaitStoresRead();
    NamedBarrierSync(barrier, 128);
  }
  __device__ __forceinline__ void EndChunk() const {
    AsyncProxyFence();
    NamedBarrierSync(barrier, 128);
  }

  // 16-bit results: chunks of 128 rows by 64 columns.
  template <typename Out>
  __device__ __forceinline__ void StoreHalves(const float (&sum)[kTokens / 2]) const {
    float bias[2];
    LoadBias(bias);
    const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5 & 3;
    const int row = lane >> 4, in_row = lane & 7, column = warp * 2 + (lane >> 3 & 1);
#pragma unroll
    for (int chunk = 0; chunk < 2; ++chunk) {
      BeginChunk();
#pragma unroll
      for (int j = 0; j < 16; j += 2) {  // groups of 8 rows
        uint32_t words[4];
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          const int i = (chunk * 16 + j) * 4 + w * 2;
          words[w] = Pack<Out>(Finish(sum[i], i, bias), Finish(sum[i + 1], i + 1, bias));
        }
        const int token = (j + row) * 8 + in_row;
        StoreMatrix4Transposed(
            staging + static_cast<uint32_t>(token * 128 + ((column ^ in_row) << 4)), words);
      }
      EndChunk();
      if ((threadIdx.x & 127) == 0) {
        TensorStore2(&p.out_map, staging, n_begin, tile.row_begin + chunk * 128);
        CommitStores();
      }
    }
  }

  // float32 results: chunks of 64 rows by two panels of 32 columns.
  __device__ __forceinline__ void StoreFloats(const float (&sum)[kTokens / 2]) const {
    float bias[2];
    LoadBias(bias);
    const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5 & 3;
    const uint32_t panel = staging + static_cast<uint32_t>(warp >> 1) * 8192;
#pragma unroll
    for (int chunk = 0; chunk < 4; ++chunk) {
      BeginChunk();
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        const int token = i / 4 * 8 + (lane & 3) * 2 + (i & 1);
        const int column = (warp & 1) * 16 + (lane >> 2) + (i & 2) * 4;
        StoreShared4(panel + static_cast<uint32_t>(token * 128 + (((column >> 2) ^ (token & 7)) << 4) +
                                                   (column & 3) * 4),
                     Finish(sum[chunk * 32 + i], chunk * 32 + i, bias));
      }
      EndChunk();
      if ((threadIdx.x & 127) == 0) {
        for (int half = 0; half < 2; ++half) {
          const uint32_t from = staging + static_cast<uint32_t>(half) * 8192;
          const int row = tile.row_begin + chunk * 64;
          if (p.accumulate) {
            TensorAdd2(&p.out_map, from, n_begin + half * 32, row);
          } else {
            TensorStore2(&p.out_map, from, n_begin + half * 32, row);
          }
        }
        CommitStores();
      }
    }
  }
};

template <typename T>
__global__ void __launch_bounds__(kThreads, 1) WideProduct(const __grid_constant__ ProductArgs p) {
  extern __shared__ uint8_t raw[];
  auto* shared = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(raw) + 1023) / 1024 * 1024);
  __shared__ uint64_t full[kSlots], empty[kSlots];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const auto rank = static_cast<int>(ClusterRank());
  const int cluster = static_cast<int>(blockIdx.x) / kCluster;
  const int clusters = static_cast<int>(gridDim.x) / kCluster;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kSlots; ++s) {
      BarrierInit(&full[s], 1);
      BarrierInit(&empty[s], kMathGroups * kCluster);
    }
    BarrierInitFence();
  }
  ClusterSync();
  const TileWalk walk(p);
  const int atoms = (p.n + kAtomRows - 1) / kAtomRows;

  if (warp >= kMathGroups * 4) {
    ReleaseRegisters<40>();
    if (warp == kMathGroups * 4) {
      RingCursor<kSlots> at;
      if (p.tiles != nullptr) WaitForPredecessors();
      bool waited = false;
      for (int index = cluster; index < walk.count(); index += clusters) {
        int pair, row_tile;
        walk.Get(index, &pair, &row_tile);
        const RowTile tile = FindRowTile<kTokens>(p, row_tile);
        if (tile.rows == 0) continue;
        const int first_atom = (pair * kCluster + rank) * (kTileN / kAtomRows);
        // Past the last row any atom will do: the results are dropped.
        const int atom = min(first_atom + (lane & 15), atoms - 1);
        const uint8_t* weight = tile.weight + int64_t{atom} * p.k_blocks * kAtomBytes;
        for (int b = 0; b < p.k_blocks; ++b) {
          const uint32_t slot = SharedAddress(shared) + at.slot * kSlotBytes;
          if (lane == 0) {
            BarrierWait(&empty[at.slot], at.parity ^ 1);
            BarrierArriveExpect(&full[at.slot], kSlotBytes);
          }
          __syncwarp();
          if (lane < 16) {
            BulkLoad(&full[at.slot], slot + kTokenBytes + lane * kAtomBytes,
                     weight + int64_t{b} * kAtomBytes, kAtomBytes);
          }
          if (lane == 0) {
            if (!waited) WaitForPredecessors();  // the weights do not depend on them
            TensorLoad2Multicast(&p.x_map, &full[at.slot], slot + rank * (kTokenBytes / 2),
                                 b * kBlockColumns, tile.row_begin + rank * (kTokens / 2),
                                 kBothBlocks);
          }
          waited = true;
          at.Advance();
        }
      }
    }
    __syncwarp();
  } else {
    ClaimRegisters<232>();
    const int group = __shfl_sync(0xffffffffu, warp / 4, 0);
    RingCursor<kSlots> at;
    WaitForPredecessors();
    for (int index = cluster; index < walk.count(); index += clusters) {
      int pair, row_tile;
      walk.Get(index, &pair, &row_tile);
      const RowTile tile = FindRowTile<kTokens>(p, row_tile);
      if (tile.rows == 0) continue;
      float sum[kTokens / 2];
#pragma unroll
      for (int i = 0; i < kTokens / 2; ++i) sum[i] = 0.0f;
      int held = -1;
      for (int b = 0; b < p.k_blocks; ++b) {
        BarrierWait(&full[at.slot], at.parity);
        const uint32_t slot = SharedAddress(shared) + at.slot * kSlotBytes;
        const uint64_t w =
            WgmmaDescriptor(slot + kTokenBytes + group * (kWeightBytes / 2), 0, kAtomBytes);
        const uint64_t x = WgmmaDescriptor(slot, 0, 1024);
        FenceRegisters(sum);
        WgmmaFence();
#pragma unroll
        for (int step = 0; step < 4; ++step) {
          WideWgmma<T>::SharedShared(sum, w + step * 2, x + step * 2, 1);
        }
        WgmmaCommit();
        WgmmaWait<1>();
        if (held >= 0 && (threadIdx.x & 127) < kCluster) {
          BarrierArrivePeer(&empty[held], threadIdx.x & 127);
        }
        held = at.slot;
        at.Advance();
      }
      WgmmaWait<0>();
      FenceRegisters(sum);
      if (held >= 0 && (threadIdx.x & 127) < kCluster) {
        BarrierArrivePeer(&empty[held], threadIdx.x & 127);
      }
      const int n = (pair * kCluster + rank) * kTileN + group * 64;
      if (p.copies_out) {
        const uint32_t staging =
            SharedAddress(shared) + kSlots * kSlotBytes + static_cast<uint32_t>(group) * kStagingBytes;
        const Results results{p, tile, n, staging, kStagingBarrier + group};
        if (p.out_dtype == DType::kF32) {
          results.StoreFloats(sum);
        } else if (p.out_dtype == DType::kBF16) {
          results.StoreHalves<__nv_bfloat16>(sum);
        } else {
          results.StoreHalves<__half>(sum);
        }
      } else {
        const int row = (warp & 3) * 16 + (lane >> 2);
#pragma unroll
        for (int i = 0; i < kTokens / 2; ++i) {
          const int token = i / 4 * 8 + (lane & 3) * 2 + (i & 1);
          const int at_n = n + row + (i & 2) * 4;
          if (token < tile.rows && at_n < p.n) StoreResult(p, tile, token, at_n, sum[i]);
        }
      }
    }
    if (p.copies_out && (threadIdx.x & 127) == 0) WaitStores();
  }
  // A peer may still copy into this block's memory or report to its barriers.
  ClusterSync();
}

template <typename T>
cudaError_t Launch(const Product& product, cudaStream_t stream) {
  ProductArgs p = MakeProductArgs(product);
  const cudaError_t encoded = EncodeOperandMap(product.x, kTokens / 2, &p.x_map);
  if (encoded != cudaSuccess) return encoded;
  if (product.groups == nullptr) p.max_tiles = (p.rows + kTokens - 1) / kTokens;
  // Tiles of groups end where the next group begins: there, rows are stored one by one. So are sums
  // that would be rounded twice.
  const bool float_out = product.out_dtype == DType::kF32;
  p.copies_out = product.groups == nullptr && (float_out || !product.accumulate) &&
                 EncodeResultMap(product, float_out ? 64 : 128, &p.out_map);
  const int64_t tiles = CeilDiv(product.n, kTileN * kCluster) * p.max_tiles * kCluster;
  const int64_t blocks = product.multiprocessors / kCluster * kCluster;
  LaunchShape shape;
  shape.blocks = static_cast<unsigned>(tiles < blocks ? tiles : blocks);
  shape.threads = kThreads;
  shape.cluster = kCluster;
  shape.shared_bytes = kSharedBytes;
  return LaunchWithDependency(reinterpret_cast<const void*>(&WideProduct<T>), shape, &p, stream);
}

}  // namespace

cudaError_t LaunchDenseWide(const Product& p, cudaStream_t stream) {
  return p.weight_dtype == DType::kBF16 ? Launch<__nv_bfloat16>(p, stream)
                                        : Launch<__half>(p, stream);
}

}  // namespace longstride::kernels::cuda

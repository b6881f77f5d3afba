// Products with f16, bf16 and fp8 weights and many activation rows: persistent blocks, each with a
// producer warp and two math warpgroups of 64 weight rows by 256 activation rows (fp8: 192). Two blocks
// of a cluster take neighbouring weight tiles and the same activations, each bringing half of them for
// both. K is summed in order, 16 columns at a time (fp8: 128, see fp8.cuh; while one warpgroup adds a
// step the other multiplies), as in dense_narrow.cu.
//
// Bound: the tensor cores. Registers: 128 accumulators a thread (fp8: 96 sums, and 96 of the step);
// shared memory: 4 slots of 48 KB and 32 KB of results on their way out (fp8: 5 of 40 KB, 16 KB).
#include "kernels/cuda/device/math.cuh"
#include "kernels/cuda/linear/dense.cuh"
#include "kernels/cuda/linear/fp8.cuh"
#include "kernels/cuda/linear/hopper.cuh"
#include "kernels/cuda/linear/product_args.cuh"
#include "kernels/cuda/linear/wgmma_shapes.cuh"

namespace longstride::kernels::cuda {
namespace {

constexpr int kMathGroups = 2;
constexpr int kThreads = 128 * (kMathGroups + 1);
constexpr int kTileN = 128;
constexpr int kCluster = 2;
constexpr int kWeightBytes = kTileN * 128;

template <typename T>
struct WideShape {
  static constexpr int kTokens = kIsFp8<T> ? 192 : 256;
  static constexpr int kSlots = kIsFp8<T> ? 5 : 4;
  static constexpr int kTokenBytes = kTokens * 128;
  static constexpr int kSlotBytes = kWeightBytes + kTokenBytes;
  // Activation rows of one piece of results, in 16-bit types; of float32 half as many.
  static constexpr int kChunk = kIsFp8<T> ? 64 : 128;
  static constexpr int kStagingBytes = kChunk * 128;  // for each math warpgroup
  // Behind the slots: scales of fp8, of the weight rows.
  static constexpr int kScaleBytes = kIsFp8<T> ? kTileN * 4 : 0;
  static constexpr int kStagingAt = kSlots * kSlotBytes;
  static constexpr int kScalesAt = kStagingAt + kMathGroups * kStagingBytes;
  static constexpr size_t kSharedBytes = kScalesAt + kSlots * kScaleBytes + 1024;
};

constexpr int kStagingBarrier = 1;  // + warpgroup
constexpr int kAddedBarrier = kStagingBarrier + kMathGroups;  // + warpgroup
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
template <typename Shape>
struct Results {
  static constexpr int kTokens = Shape::kTokens;
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

  // 16-bit results: chunks of kChunk rows by 64 columns.
  template <typename Out>
  __device__ __forceinline__ void StoreHalves(const float (&sum)[kTokens / 2]) const {
    float bias[2];
    LoadBias(bias);
    const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5 & 3;
    const int row = lane >> 4, in_row = lane & 7, column = warp * 2 + (lane >> 3 & 1);
#pragma unroll
    for (int chunk = 0; chunk < kTokens / Shape::kChunk; ++chunk) {
      BeginChunk();
#pragma unroll
      for (int j = 0; j < Shape::kChunk / 8; j += 2) {  // groups of 8 rows
        uint32_t words[4];
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          const int i = (chunk * (Shape::kChunk / 8) + j) * 4 + w * 2;
          words[w] = Pack<Out>(Finish(sum[i], i, bias), Finish(sum[i + 1], i + 1, bias));
        }
        const int token = (j + row) * 8 + in_row;
        StoreMatrix4Transposed(
            staging + static_cast<uint32_t>(token * 128 + ((column ^ in_row) << 4)), words);
      }
      EndChunk();
      if ((threadIdx.x & 127) == 0) {
        TensorStore2(&p.out_map, staging, n_begin, tile.row_begin + chunk * Shape::kChunk);
        CommitStores();
      }
    }
  }

  // float32 results: chunks of half as many rows by two panels of 32 columns.
  __device__ __forceinline__ void StoreFloats(const float (&sum)[kTokens / 2]) const {
    float bias[2];
    LoadBias(bias);
    const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5 & 3;
    constexpr int kRows = Shape::kChunk / 2, kPanelBytes = kRows * 128;
    const uint32_t panel = staging + static_cast<uint32_t>(warp >> 1) * kPanelBytes;
#pragma unroll
    for (int chunk = 0; chunk < kTokens / kRows; ++chunk) {
      BeginChunk();
#pragma unroll
      for (int i = 0; i < kRows / 2; ++i) {
        const int token = i / 4 * 8 + (lane & 3) * 2 + (i & 1);
        const int column = (warp & 1) * 16 + (lane >> 2) + (i & 2) * 4;
        StoreShared4(panel + static_cast<uint32_t>(token * 128 + (((column >> 2) ^ (token & 7)) << 4) +
                                                   (column & 3) * 4),
                     Finish(sum[chunk * (kRows / 2) + i], chunk * (kRows / 2) + i, bias));
      }
      EndChunk();
      if ((threadIdx.x & 127) == 0) {
        for (int half = 0; half < 2; ++half) {
          const uint32_t from = staging + static_cast<uint32_t>(half) * kPanelBytes;
          const int row = tile.row_begin + chunk * kRows;
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
  using Shape = WideShape<T>;
  constexpr int kTokens = Shape::kTokens, kSlots = Shape::kSlots;
  constexpr int kTokenBytes = Shape::kTokenBytes, kSlotBytes = Shape::kSlotBytes;
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
            BarrierArriveExpect(&full[at.slot], kSlotBytes + Shape::kScaleBytes);
          }
          __syncwarp();
          // One copy of the whole tile where a tensor map says how: lanes' copies are issued one after
          // the other, and that took as long as the products.
          if (p.tiles == nullptr) {
            if (lane == 0) {
              TensorLoad3(&p.weight_maps[0], &full[at.slot], slot + kTokenBytes, 0, b, first_atom);
            }
          } else if (lane < 16) {
            BulkLoad(&full[at.slot], slot + kTokenBytes + lane * kAtomBytes,
                     weight + int64_t{b} * kAtomBytes, kAtomBytes);
          }
          const uint32_t scales =
              SharedAddress(shared) + Shape::kScalesAt + at.slot * Shape::kScaleBytes;
          if (kIsFp8<T> && lane == 0) {
            BulkLoad(&full[at.slot], scales,
                     tile.weight + p.scales_at +
                         (int64_t{b} * p.scale_rows + (pair * kCluster + rank) * kTileN) * 4,
                     kTileN * 4);
          }
          if (lane == 0) {
            if (!waited) WaitForPredecessors();  // the weights do not depend on them
            TensorLoad2Multicast(&p.x_map, &full[at.slot], slot + rank * (kTokenBytes / 2),
                                 b * kStepColumns<T>, tile.row_begin + rank * (kTokens / 2),
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
        if constexpr (kIsFp8<T>) {
          float part[kTokens / 2];
          FenceRegisters(part);
          WgmmaFence();
#pragma unroll
          for (int step = 0; step < 4; ++step) {
            Wgmma<T, kTokens>::SharedShared(part, w + step * 2, x + step * 2, step);
          }
          WgmmaCommit();
          WgmmaWait<0>();
          FenceRegisters(part);
          const uint32_t scales =
              SharedAddress(shared) + Shape::kScalesAt + at.slot * Shape::kScaleBytes;
          AddScaled(part, scales + group * (kUnitRows * 4), sum);
          NamedBarrierSync(kAddedBarrier + group, 128);  // the scales are read
          if ((threadIdx.x & 127) < kCluster) {
            BarrierArrivePeer(&empty[at.slot], threadIdx.x & 127);
          }
          at.Advance();
          continue;
        }
        FenceRegisters(sum);
        WgmmaFence();
#pragma unroll
        for (int step = 0; step < 4; ++step) {
          if constexpr (!kIsFp8<T>) {
            WideWgmma<T>::SharedShared(sum, w + step * 2, x + step * 2, 1);
          }
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
            SharedAddress(shared) + Shape::kStagingAt +
            static_cast<uint32_t>(group) * Shape::kStagingBytes;
        const Results<Shape> results{p, tile, n, staging, kStagingBarrier + group};
        if (p.out_dtype == DType::kF32) {
          results.StoreFloats(sum);
        } else if (p.out_dtype == DType::kBF16) {
          results.template StoreHalves<__nv_bfloat16>(sum);
        } else {
          results.template StoreHalves<__half>(sum);
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
  using Shape = WideShape<T>;
  constexpr int kTokens = Shape::kTokens;
  cudaError_t encoded = EncodeOperandMap(product.x, kTokens / 2, &p.x_map);
  if (encoded != cudaSuccess) return encoded;
  if (product.groups == nullptr) {
    p.max_tiles = (p.rows + kTokens - 1) / kTokens;
    encoded = EncodeWeightMap(product, 1, kTileN / kAtomRows, &p.weight_maps[0]);
    if (encoded != cudaSuccess) return encoded;
  }
  // Tiles of groups end where the next group begins: there, rows are stored one by one. So are sums
  // that would be rounded twice.
  const bool float_out = product.out_dtype == DType::kF32;
  p.copies_out = product.groups == nullptr && (float_out || !product.accumulate) &&
                 EncodeResultMap(product, Shape::kChunk / (float_out ? 2 : 1), &p.out_map);
  const int64_t tiles = CeilDiv(product.n, kTileN * kCluster) * p.max_tiles * kCluster;
  const int64_t blocks = product.multiprocessors / kCluster * kCluster;
  LaunchShape shape;
  shape.blocks = static_cast<unsigned>(tiles < blocks ? tiles : blocks);
  shape.threads = kThreads;
  shape.cluster = kCluster;
  shape.shared_bytes = Shape::kSharedBytes;
  return LaunchWithDependency(reinterpret_cast<const void*>(&WideProduct<T>), shape, &p, stream);
}

}  // namespace

cudaError_t LaunchDenseWide(const Product& p, cudaStream_t stream) {
  switch (p.weight_dtype) {
    case DType::kFP8_128: return Launch<__nv_fp8_e4m3>(p, stream);
    case DType::kBF16: return Launch<__nv_bfloat16>(p, stream);
    default: return Launch<__half>(p, stream);
  }
}

}  // namespace longstride::kernels::cuda

// Products with f16, bf16 and fp8 weights and up to some hundred activation rows.
//
// out^T = W x^T on the tensor cores: a tile of 8 to 64 weight rows is the M side (always 64 rows of
// the instruction: the rest of it multiplies whatever lies there and is dropped), 8, 64 or 128
// activation rows are the N side. K is summed in order, 16 columns at a time (fp8: 128, see fp8.cuh),
// as in dense_wide.cu.
// Every block takes an equal share of the weight's rows, and a producer warp keeps its ring of
// shared memory full across tiles.
//
// Bound: memory, reading the weight once per tile of activation rows.
#include "kernels/cuda/linear/dense.cuh"
#include "kernels/cuda/linear/fp8.cuh"
#include "kernels/cuda/linear/hopper.cuh"
#include "kernels/cuda/linear/product_args.cuh"
#include "kernels/cuda/linear/wgmma_shapes.cuh"

namespace longstride::kernels::cuda {
namespace {

constexpr int kThreads = 128 + 32;
constexpr int kMaxAtoms = 8;  // 64 rows

template <typename T, int kTokens>
struct NarrowShape {
  static constexpr int kStageBlocks = kTokens <= (kIsFp8<T> ? 64 : 32) ? 4 : 2;
  static constexpr int kPieceBytes = kStageBlocks * kAtomBytes;  // of one atom row
  static constexpr int kTokenBytes = kTokens * 128;              // of one step
  static constexpr int kRingBytes = 192 * 1024;
  static constexpr int kMaxSlots = 16;
  // Blocks of a cluster bring a part of the activations each, for all: beyond a few rows, reading
  // them from the second-level cache would take longer than the weights.
  static constexpr int kCluster = kTokens == 8 ? 1 : 2;
  // Scales of fp8 in a slot: of 64 weight rows for every step.
  static constexpr int kScaleBytes = kIsFp8<T> ? kStageBlocks * kUnitRows * 4 : 0;
  // Slots hold activations first, then scales: their sizes are fixed, and what follows is whole pieces.
  static constexpr int kScalesAt = kStageBlocks * kTokenBytes;
  static constexpr int kWeightAt = (kScalesAt + kScaleBytes + 1023) / 1024 * 1024;
  static constexpr int kFixedBytes = kScalesAt + kScaleBytes;  // that are copied besides weights
};

// The rows of one block: atoms [begin, end), in tiles of nearly equal height.
struct Share {
  int begin, end, tiles;
  __device__ Share(int atoms, int share_tiles) : tiles(share_tiles) {
    const auto blocks = static_cast<int64_t>(gridDim.x), block = static_cast<int64_t>(blockIdx.x);
    begin = static_cast<int>(block * atoms / blocks);
    end = static_cast<int>((block + 1) * atoms / blocks);
  }
  __device__ int First(int tile) const { return begin + (end - begin) * tile / tiles; }
};

// Atoms [first, first + atoms) of the steps from b on; evict: nobody reads them again soon.
template <bool kEvict>
__device__ __forceinline__ void LoadWeights(const ProductArgs& p, int atoms, uint64_t* bar,
                                            uint32_t to, int b, int first, uint64_t policy) {
  const CUtensorMap* map =
      atoms == p.atoms_per_tile ? &p.weight_maps[0] : &p.weight_maps[1];
  if constexpr (kEvict) {
    TensorLoad3Hinted(map, bar, to, 0, b, first, policy);
  } else {
    TensorLoad3(map, bar, to, 0, b, first);
  }
}

// The sums of a slot's fp8 steps, each multiplied on its own and then added, in order.
template <typename Shape, int kTokens>
struct StepSums {
  float of[Shape::kStageBlocks][kTokens / 2];

  __device__ __forceinline__ void Multiply(uint32_t slot) {
#pragma unroll
    for (int i = 0; i < Shape::kStageBlocks; ++i) FenceRegisters(of[i]);
    WgmmaFence();
#pragma unroll
    for (int i = 0; i < Shape::kStageBlocks; ++i) {
      const uint64_t w =
          WgmmaDescriptor(slot + Shape::kWeightAt + i * kAtomBytes, 0, Shape::kPieceBytes);
      const uint64_t x = WgmmaDescriptor(slot + i * Shape::kTokenBytes, 0, 1024);
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        Wgmma<__nv_fp8_e4m3, kTokens>::SharedShared(of[i], w + step * 2, x + step * 2, step);
      }
      WgmmaCommit();
    }
  }
  // Later steps are multiplied meanwhile.
  template <int kStep = 0>
  __device__ __forceinline__ void AddTo(float (&sum)[kTokens / 2], uint32_t slot) {
    WgmmaWait<Shape::kStageBlocks - 1 - kStep>();
    FenceRegisters(of[kStep]);
    AddScaled(of[kStep], slot + Shape::kScalesAt + kStep * (kUnitRows * 4), sum);
    if constexpr (kStep + 1 < Shape::kStageBlocks) AddTo<kStep + 1>(sum, slot);
  }
};

template <typename T, int kTokens>
__global__ void __launch_bounds__(kThreads) NarrowProduct(const __grid_constant__ ProductArgs p) {
  using Shape = NarrowShape<T, kTokens>;
  extern __shared__ uint8_t raw[];
  auto* shared = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(raw) + 1023) / 1024 * 1024);
  __shared__ uint64_t full[Shape::kMaxSlots], empty[Shape::kMaxSlots];
  if (p.tiles != nullptr) WaitForPredecessors();
  const RowTile tile = FindRowTile<kTokens>(p, static_cast<int>(blockIdx.y));
  const Share share((p.n + kAtomRows - 1) / kAtomRows, p.share_tiles);
  if (tile.rows == 0) return;  // for all blocks of the cluster alike
  constexpr int kCluster = Shape::kCluster;
  const auto rank = static_cast<int>(ClusterRank());
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x == 0) {
    for (int s = 0; s < p.stages; ++s) {
      BarrierInit(&full[s], 1);
      BarrierInit(&empty[s], kCluster);
    }
    BarrierInitFence();
  }
  if constexpr (kCluster > 1) {
    ClusterSync();
  } else {
    __syncthreads();
  }

  if (warp == 4) {
    const uint64_t policy = EvictFirstPolicy();
    Ring at;
    bool waited = false;
    for (int t = 0; t < share.tiles; ++t) {
      const int first = share.First(t), atoms = share.First(t + 1) - first;
      for (int b = 0; b < p.k_blocks; b += Shape::kStageBlocks) {
        // Always whole slots: past the last column activations read as zero, and weights as zero or
        // whatever follows them.
        const uint32_t slot = SharedAddress(shared) + at.slot * p.slot_bytes;
        if (lane == 0) {
          BarrierWait(&empty[at.slot], at.parity ^ 1);
          BarrierArriveExpect(&full[at.slot], static_cast<uint32_t>(Shape::kFixedBytes +
                                                                    atoms * Shape::kPieceBytes));
        }
        __syncwarp();
        // One copy where a tensor map says how: lanes' copies are issued one after the other.
        if (p.tiles == nullptr) {
          if (lane == 0 && atoms > 0) {
            LoadWeights<kTokens == 8>(p, atoms, &full[at.slot], slot + Shape::kWeightAt, b, first,
                                      policy);
          }
        } else if (lane < atoms) {
          const uint8_t* from =
              tile.weight + ((int64_t{first} + lane) * p.k_blocks + b) * kAtomBytes;
          const uint32_t to = slot + Shape::kWeightAt + lane * Shape::kPieceBytes;
          if (kTokens == 8) {
            BulkLoadHinted(&full[at.slot], to, from, Shape::kPieceBytes, policy);
          } else {
            BulkLoad(&full[at.slot], to, from, Shape::kPieceBytes);
          }
        }
        if constexpr (kIsFp8<T>) {
          if (lane < Shape::kStageBlocks) {
            BulkLoad(&full[at.slot], slot + Shape::kScalesAt + lane * (kUnitRows * 4),
                     tile.weight + p.scales_at +
                         (int64_t{b} + lane) * p.scale_rows * 4 + first * (kAtomRows * 4),
                     kUnitRows * 4);
          }
        }
        if (lane == 0) {
          if (!waited) WaitForPredecessors();  // the weights do not depend on them
          // Boxes without a row that exists are slow: any row will do there, its results are dropped.
          const int own = tile.row_begin + rank * (kTokens / kCluster);
          const int row = own < p.rows ? own : tile.row_begin;
          for (int i = 0; i < Shape::kStageBlocks; ++i) {
            const uint32_t to = slot + i * Shape::kTokenBytes;
            if constexpr (kCluster > 1) {
              TensorLoad2Multicast(&p.x_map, &full[at.slot],
                                   to + rank * (Shape::kTokenBytes / kCluster),
                                   (b + i) * kStepColumns<T>, row, (1 << kCluster) - 1);
            } else {
              TensorLoad2(&p.x_map, &full[at.slot], to, (b + i) * kStepColumns<T>, tile.row_begin);
            }
          }
        }
        waited = true;
        at.Advance(p.stages);
      }
    }
    __syncwarp();
    if constexpr (kCluster > 1) ClusterSync();  // a peer may still copy into this block's memory
    return;
  }
  // One thread for each block that copies into this one's slots, once the products are done.
  const auto release = [&](int slot) {
    if constexpr (kIsFp8<T>) NamedBarrierSync(1, 128);  // all have read the scales
    if (threadIdx.x < kCluster) BarrierArrivePeer(&empty[slot], threadIdx.x);
  };

  Ring at;
  bool waited = false;
  for (int t = 0; t < share.tiles; ++t) {
    const int first = share.First(t), atoms = share.First(t + 1) - first;
    float sum[kTokens / 2];
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) sum[i] = 0.0f;
    int held = -1;
    for (int b = 0; b < p.k_blocks; b += Shape::kStageBlocks) {
      BarrierWait(&full[at.slot], at.parity);
      const uint32_t slot = SharedAddress(shared) + at.slot * p.slot_bytes;
      if constexpr (kIsFp8<T>) {
        StepSums<Shape, kTokens> steps;
        steps.Multiply(slot);
        steps.AddTo(sum, slot);
        release(at.slot);
        at.Advance(p.stages);
        continue;
      }
      FenceRegisters(sum);
      WgmmaFence();
#pragma unroll
      for (int i = 0; i < Shape::kStageBlocks; ++i) {
        const uint64_t w =
            WgmmaDescriptor(slot + Shape::kWeightAt + i * kAtomBytes, 0, Shape::kPieceBytes);
        const uint64_t x = WgmmaDescriptor(slot + i * Shape::kTokenBytes, 0, 1024);
#pragma unroll
        for (int step = 0; step < 4; ++step) {
          Wgmma<T, kTokens>::SharedShared(sum, w + step * 2, x + step * 2, 1);
        }
      }
      WgmmaCommit();
      WgmmaWait<1>();
      if (held >= 0) release(held);
      held = at.slot;
      at.Advance(p.stages);
    }
    WgmmaWait<0>();
    FenceRegisters(sum);
    if (held >= 0) release(held);
    if (!waited) WaitForPredecessors();
    waited = true;
    if (t == share.tiles - 1) LetDependentsStart();
    const int row = (warp & 3) * 16 + (lane >> 2);
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) {
      const int token = i / 4 * 8 + (lane & 3) * 2 + (i & 1);
      const int at_row = row + (i & 2) * 4;
      const int n = first * kAtomRows + at_row;
      if (token < tile.rows && at_row < atoms * kAtomRows && n < p.n) {
        StoreResult(p, tile, token, n, sum[i]);
      }
    }
  }
  if constexpr (kCluster > 1) ClusterSync();
}

template <typename T, int kTokens>
cudaError_t Launch(const Product& product, cudaStream_t stream) {
  using Shape = NarrowShape<T, kTokens>;
  ProductArgs p = MakeProductArgs(product);
  cudaError_t encoded = EncodeOperandMap(product.x, kTokens / Shape::kCluster, &p.x_map);
  if (encoded != cudaSuccess) return encoded;
  if (product.groups == nullptr) p.max_tiles = (p.rows + kTokens - 1) / kTokens;
  // One block for each processor and tile of activations; where there are many such tiles, full
  // tiles of weights.
  const int64_t atoms = CeilDiv(product.n, kAtomRows);
  const int64_t full_tiles = CeilDiv(atoms, kMaxAtoms);
  const int64_t per_tile = CeilDiv(product.multiprocessors, p.max_tiles);
  int64_t blocks = p.max_tiles > 1 && full_tiles < per_tile * 2
                       ? full_tiles
                       : (atoms < per_tile ? atoms : per_tile);
  blocks = CeilDiv(blocks, Shape::kCluster) * Shape::kCluster;
  const int64_t largest_share = CeilDiv(atoms, blocks);
  p.share_tiles = static_cast<int32_t>(CeilDiv(largest_share, kMaxAtoms));
  p.atoms_per_tile = static_cast<int32_t>(CeilDiv(largest_share, p.share_tiles));
  if (product.groups == nullptr) {
    // Every tile has the most atoms or one less: shares do, and so do their tiles.
    for (int less = 0; less < 2 && less < p.atoms_per_tile; ++less) {
      encoded = EncodeWeightMap(product, Shape::kStageBlocks, p.atoms_per_tile - less,
                                &p.weight_maps[less]);
      if (encoded != cudaSuccess) return encoded;
    }
  }
  p.slot_bytes = Shape::kWeightAt + p.atoms_per_tile * Shape::kPieceBytes;
  p.stages = Shape::kRingBytes / p.slot_bytes;
  if (p.stages > Shape::kMaxSlots) p.stages = Shape::kMaxSlots;
  const int stages_needed =
      (p.k_blocks + Shape::kStageBlocks - 1) / Shape::kStageBlocks * (largest_share > 8 ? 2 : 1);
  if (p.stages > stages_needed) p.stages = stages_needed;
  LaunchShape shape;
  shape.blocks = static_cast<unsigned>(blocks);
  shape.blocks_y = static_cast<unsigned>(p.max_tiles);
  shape.threads = kThreads;
  shape.cluster = Shape::kCluster;
  // The instruction always reads 64 rows: past the last slot there must be something to read.
  shape.shared_bytes = static_cast<size_t>(p.stages) * p.slot_bytes +
                       (kMaxAtoms - p.atoms_per_tile) * Shape::kPieceBytes + 1024;
  return LaunchWithDependency(reinterpret_cast<const void*>(&NarrowProduct<T, kTokens>), shape, &p,
                              stream);
}

template <typename T>
cudaError_t LaunchTokens(const Product& p, int tokens, cudaStream_t stream) {
  if (tokens == 8) return Launch<T, 8>(p, stream);
  if (tokens == 32) return Launch<T, 32>(p, stream);
  if (tokens == 64) return Launch<T, 64>(p, stream);
  return Launch<T, 128>(p, stream);
}

}  // namespace

cudaError_t LaunchDenseNarrow(const Product& p, int tokens, cudaStream_t stream) {
  switch (p.weight_dtype) {
    case DType::kFP8_128: return LaunchTokens<__nv_fp8_e4m3>(p, tokens, stream);
    case DType::kBF16: return LaunchTokens<__nv_bfloat16>(p, tokens, stream);
    default: return LaunchTokens<__half>(p, tokens, stream);
  }
}

}  // namespace longstride::kernels::cuda

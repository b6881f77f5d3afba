// Products with weights in GGUF's block formats, decoded inside the kernel. One kernel for every
// number of rows, so that a row has one order of summation: K is cut into parts (SplitParts), each
// summed in steps of 16 columns; the sums are then added in ascending order. Where there are few
// tiles, each part is the work of one block of a cluster and the sums meet in distributed shared
// memory; where there are many, one block takes the parts one after the other.
//
// out^T = W x^T: 64 weight rows are the M side of a warpgroup product, decoded into registers as its
// A operand; the activation rows of a tile (8, 64 or 128) are its N side, in shared memory. A
// producer warp brings both by bulk copies into a ring. How many activation rows the instruction
// takes does not change any of its sums.
//
// Bound: for few rows memory (the packed weight is read once); decoding costs about 2 to 3
// instructions a weight. For many rows the tensor cores; there each weight is decoded once for 128
// rows.
#pragma once

#include "kernels/cuda/linear/block_formats.cuh"
#include "kernels/cuda/linear/hopper.cuh"
#include "kernels/cuda/linear/product_args.cuh"
#include "kernels/cuda/linear/wgmma_shapes.cuh"

namespace longstride::kernels::cuda {

template <DType kType>
struct OperandOf {
  using Type = __half;
};
template <>
struct OperandOf<DType::kMXFP4> {
  using Type = __nv_bfloat16;
};

// Shape of the kernel for a tile of activation rows.
template <DType kType, int kTokens>
struct QuantShape {
  static constexpr int kGroups = kTokens == 8 ? 1 : 2;  // warpgroups, 64 weight rows each
  static constexpr int kThreads = kGroups * 128 + 32;
  static constexpr int kStageBlocks = 4;  // steps of 64 columns in one slot
  static constexpr int kStageUnits = kStageBlocks / UnitBlocks(kType);
  static constexpr int kTokenBytes = kTokens * 128;  // of one step
  static constexpr int kWeightBytes = kStageUnits * UnitBytes(kType);  // of one warpgroup
  // Activations first: their swizzle wants 1024-byte alignment.
  static constexpr int kSlotBytes =
      (kStageBlocks * kTokenBytes + kGroups * kWeightBytes + 1023) / 1024 * 1024;
  static constexpr int kSlots = kTokens == 128 ? 2 : 3;
  static constexpr int kResultBytes = kTokens * kGroups * 64 * 4;
  static constexpr int kSharedBytes =
      (kSlots * kSlotBytes > kResultBytes ? kSlots * kSlotBytes : kResultBytes) + 1024 + 128;
  static_assert(kSharedBytes <= 227 * 1024);
};

template <DType kType, int kTokens>
__global__ void __launch_bounds__(QuantShape<kType, kTokens>::kThreads)
    QuantProduct(const __grid_constant__ ProductArgs p) {
  using Shape = QuantShape<kType, kTokens>;
  using Format = BlockFormat<kType>;
  using Operand = typename OperandOf<kType>::Type;
  constexpr int kGroups = Shape::kGroups, kMathThreads = kGroups * 128;
  extern __shared__ uint8_t raw[];
  auto* shared = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(raw) + 1023) / 1024 * 1024);
  __shared__ uint64_t full[Shape::kSlots], empty[Shape::kSlots];

  // Blocks that share the parts of a tile: one of them, or as many as there are parts.
  const int sharers = static_cast<int>(p.sharers);
  const int part = static_cast<int>(blockIdx.x) % sharers;
  const int row_tiles = (p.n + kGroups * 64 - 1) / (kGroups * 64);
  // Tiles of activations that share their weights through the second-level cache run together.
  constexpr int kBand = 8;
  const int index = static_cast<int>(blockIdx.x) / sharers;
  const int band = index / (kBand * row_tiles), in_band = index % (kBand * row_tiles);
  const int band_tiles = min(kBand, p.max_tiles - band * kBand);
  const int token_tile = band * kBand + in_band % band_tiles;
  const int n_begin = in_band / band_tiles * kGroups * 64;

  if (p.tiles != nullptr) WaitForPredecessors();
  const RowTile tile = FindRowTile<kTokens>(p, token_tile);
  if (tile.rows == 0) return;  // for all blocks of the cluster alike
  const int block_begin = part * p.part_blocks;
  const int blocks = sharers == 1 ? p.k_blocks : min(p.part_blocks, p.k_blocks - block_begin);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;

  if (threadIdx.x == 0) {
    for (int s = 0; s < Shape::kSlots; ++s) {
      BarrierInit(&full[s], 1);
      BarrierInit(&empty[s], kGroups * 4);  // every math warp
    }
    BarrierInitFence();
  }
  __syncthreads();

  if (warp == kGroups * 4) {
    if (lane == 0) {
      const int units = (p.k_blocks + Format::kUnitBlocks - 1) / Format::kUnitBlocks;
      const uint8_t* weight =
          tile.weight + (int64_t{n_begin / 64} * units + block_begin / Format::kUnitBlocks) *
                            Format::kUnitBytes;
      const int64_t group_stride = int64_t{units} * Format::kUnitBytes;
      const int groups = min(kGroups, (p.n - n_begin + 63) / 64);
      const uint64_t policy = EvictFirstPolicy();
      RingCursor<Shape::kSlots> at;
      bool waited = false;
      for (int b = 0; b < blocks; b += Shape::kStageBlocks) {
        const int now = min(Shape::kStageBlocks, blocks - b);
        const int now_units = (now + Format::kUnitBlocks - 1) / Format::kUnitBlocks;
        BarrierWait(&empty[at.slot], at.parity ^ 1);
        uint8_t* slot = shared + at.slot * Shape::kSlotBytes;
        const uint32_t weight_bytes = static_cast<uint32_t>(now_units * Format::kUnitBytes);
        BarrierArriveExpect(&full[at.slot],
                            static_cast<uint32_t>(groups) * weight_bytes +
                                static_cast<uint32_t>(now * Shape::kTokenBytes));
        for (int g = 0; g < groups; ++g) {
          const uint32_t to = SharedAddress(slot) + Shape::kStageBlocks * Shape::kTokenBytes +
                              g * Shape::kWeightBytes;
          if (kTokens == 8) {
            BulkLoadHinted(&full[at.slot], to, weight + g * group_stride, weight_bytes, policy);
          } else {
            BulkLoad(&full[at.slot], to, weight + g * group_stride, weight_bytes);
          }
        }
        weight += weight_bytes;
        if (!waited) WaitForPredecessors();  // the weights do not depend on them
        waited = true;
        for (int i = 0; i < now; ++i) {
          TensorLoad2(&p.x_map, &full[at.slot], SharedAddress(slot) + i * Shape::kTokenBytes,
                      (block_begin + b + i) * kBlockColumns, tile.row_begin);
        }
        at.Advance();
      }
    }
    __syncwarp();
  } else {
    const int group = warp / 4;
    float sum[kTokens / 2], total[kTokens / 2];
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) sum[i] = 0.0f;
    uint32_t fragment[4][4];
    RingCursor<Shape::kSlots> at;
    int accumulate = 0;
    const typename Format::Place place(SharedAddress(shared) +
                                           Shape::kStageBlocks * Shape::kTokenBytes +
                                           static_cast<uint32_t>(group) * Shape::kWeightBytes,
                                       warp & 3, lane);
    for (int b = 0; b < blocks; b += Shape::kStageBlocks) {
      if (b != 0 && b % p.part_blocks == 0) {  // the next part of several
#pragma unroll
        for (int i = 0; i < kTokens / 2; ++i) {
          total[i] = b == p.part_blocks ? sum[i] : total[i] + sum[i];
        }
        accumulate = 0;
      }
      BarrierWait(&full[at.slot], at.parity);
      const uint32_t slot = static_cast<uint32_t>(at.slot) * Shape::kSlotBytes;
      typename Format::Block block;
      Format::Load(place, slot, 0, &block);
#pragma unroll
      for (int i = 0; i < Shape::kStageBlocks; ++i) {
        if (b + i >= blocks) break;
#pragma unroll
        for (int step = 0; step < 4; ++step) Format::Decode(block, step, fragment[step]);
        FenceRegisters(sum);
        WgmmaFence();
        const uint64_t x = WgmmaDescriptor(
            SharedAddress(shared) + slot + static_cast<uint32_t>(i) * Shape::kTokenBytes, 0, 1024);
#pragma unroll
        for (int step = 0; step < 4; ++step) {
          Wgmma<Operand, kTokens>::RegisterSharedKMajor(sum, fragment[step], x + step * 2,
                                                        accumulate);
          accumulate = 1;
        }
        WgmmaCommit();
        if (i + 1 < Shape::kStageBlocks && b + i + 1 < blocks) {
          Format::Load(place,
                       slot + static_cast<uint32_t>((i + 1) / Format::kUnitBlocks) *
                                  Format::kUnitBytes,
                       (i + 1) % Format::kUnitBlocks, &block);
        }
        // Another warpgroup decodes while this one multiplies.
        WgmmaWait<0>();
        FenceRegisters(sum);
      }
      if (lane == 0) BarrierArrive(&empty[at.slot]);
      at.Advance();
    }
    if (blocks > p.part_blocks) {
#pragma unroll
      for (int i = 0; i < kTokens / 2; ++i) sum[i] = total[i] + sum[i];
    }
    NamedBarrierSync(1, kMathThreads);  // nobody reads the ring any more
    auto* result = reinterpret_cast<float*>(shared);  // [token][weight row]
    const int row = group * 64 + (warp & 3) * 16 + (lane >> 2);
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) {
      const int token = i / 4 * 8 + (lane & 3) * 2 + (i & 1);
      result[token * (kGroups * 64) + row + (i & 2) * 4] = sum[i];
    }
    NamedBarrierSync(1, kMathThreads);
  }

  WaitForPredecessors();
  LetDependentsStart();
  if (sharers > 1) ClusterSync();
  // The producer has none of the outputs.
  const int outputs = warp == kGroups * 4 ? 0 : tile.rows * kGroups * 64;
  for (int i = part * kMathThreads + static_cast<int>(threadIdx.x); i < outputs;
       i += sharers * kMathThreads) {
    const int n = n_begin + i % (kGroups * 64);
    float value = 0.0f;
    if (sharers > 1) {
      const uint32_t at = SharedAddress(shared) + i * 4;
      value = LoadPeer(PeerAddress(at, 0));
      for (int other = 1; other < sharers; ++other) value += LoadPeer(PeerAddress(at, other));
    } else {
      value = reinterpret_cast<const float*>(shared)[i];
    }
    if (n < p.n) StoreResult(p, tile, i / (kGroups * 64), n, value);
  }
  if (sharers > 1) ClusterSync();  // a peer may still be reading
}

template <DType kType, int kTokens>
cudaError_t LaunchQuantShape(const Product& product, cudaStream_t stream) {
  using Shape = QuantShape<kType, kTokens>;
  ProductArgs p = MakeProductArgs(product);
  const cudaError_t encoded = EncodeOperandMap(product.x, kTokens, &p.x_map);
  if (encoded != cudaSuccess) return encoded;
  if (product.groups == nullptr) p.max_tiles = (p.rows + kTokens - 1) / kTokens;
  p.part_blocks = PartBlocks(kType, product.n, product.x.cols);
  const int parts = (p.k_blocks + p.part_blocks - 1) / p.part_blocks;
  const int64_t tiles = CeilDiv(product.n, Shape::kGroups * 64) * p.max_tiles;
  p.sharers = tiles >= product.multiprocessors * 2 && kTokens > 8 ? 1 : parts;
  LaunchShape shape;
  shape.blocks = static_cast<unsigned>(tiles * p.sharers);
  shape.threads = Shape::kThreads;
  shape.cluster = static_cast<unsigned>(p.sharers);
  shape.shared_bytes = Shape::kSharedBytes;
  return LaunchWithDependency(reinterpret_cast<const void*>(&QuantProduct<kType, kTokens>), shape,
                              &p, stream);
}

}  // namespace longstride::kernels::cuda

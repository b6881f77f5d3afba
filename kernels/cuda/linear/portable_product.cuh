// Products with 16-bit and block-format weights on every chip from sm_80 on: warp-level tensor-core
// instructions fed by copies of ordinary threads. The same packed weights, operands and epilogue as
// the Hopper kernels, but an order of summation of its own: K in ascending steps of 16 columns into
// one accumulator (for fp8, one for every 128 columns, scaled and added), never split, for every
// number of rows and shape of tile.
//
// out^T = W x^T: weight rows are the M side of the instruction, activation rows its N side. A stage
// of the ring holds some steps of 64 columns of both; fragments of weights come from shared memory
// as they are, or are decoded in registers (block_formats.cuh), once for all tokens of a warp.
//
// Bound: memory for few dense rows, one warp's instructions for few rows of block formats; for many
// rows the reading of fragments from shared memory and the rate of the warp-level instruction.
#pragma once

#include <cuda_runtime_api.h>

#include <type_traits>

#include "kernels/cuda/linear/portable_weights.cuh"

namespace longstride::kernels::cuda {

// A block's tile and how its warps share it.
template <int kRows_, int kTokens_, int kWarpRows_, int kWarpTokens_, int kStageBlocks_,
          int kMostBlocks_>
struct PortableShape {
  static constexpr int kRows = kRows_, kTokens = kTokens_;
  static constexpr int kWarpRows = kWarpRows_, kWarpTokens = kWarpTokens_;
  static constexpr int kStageBlocks = kStageBlocks_;  // steps of 64 columns in a slot of the ring
  static constexpr int kMostBlocks = kMostBlocks_;  // on a multiprocessor
  static constexpr int kTokenWarps = kTokens / kWarpTokens;
  static constexpr int kThreads = kRows / kWarpRows * kTokenWarps * 32;
  static constexpr int kSlices = kWarpRows / 16, kColumns = kWarpTokens / 8;
  static constexpr int kTokenBytes = kTokens * 128;  // of one step
  static_assert((kRows < kUnitRows || kRows % kUnitRows == 0) && kRows % kWarpRows == 0 &&
                kTokens % kWarpTokens == 0);
};

struct PortableArgs {
  ProductArgs product;  // without tensor maps
  const uint16_t* x;
  int64_t x_pitch;
  int32_t x_cols;
};

// The steps of a tile's activation rows one after the other, for the threads of a block. Columns
// that do not exist become zero; instead of rows that do not, which are nobody's, comes the last,
// or nothing where a block has few.
template <typename Shape>
class TokenCopies {
 public:
  static constexpr int kStride = Shape::kThreads / 8;
  static constexpr int kCount = Shape::kTokens / kStride;
  static_assert(Shape::kTokens % kStride == 0);

  __device__ __forceinline__ TokenCopies(const PortableArgs& a, const RowTile& tile)
      : from_(reinterpret_cast<const uint8_t*>(a.x + int64_t{tile.row_begin} * a.x_pitch) +
              Chunk() * 16) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int row = i * kStride + static_cast<int>(threadIdx.x) / 8;
      if (i < kPlaces) {
        to_[i] = SwizzledAt(row, Chunk());
        has_[i] = row < tile.rows;
      }
      at_[i] =
          static_cast<uint32_t>(min(row, tile.rows - 1)) * static_cast<uint32_t>(a.x_pitch * 2);
    }
  }
  // This thread's rows from `first` on, of a step of 64 columns that all exist, or of none.
  __device__ __forceinline__ void Copy(uint32_t to, int first, int count, bool exists) const {
#pragma unroll
    for (int i = first; i < first + count; ++i) {
      CopyAsync16If(exists && (kPlaces == 1 || has_[i % kPlaces]), to + Place(i), from_ + at_[i]);
    }
  }
  // The step before the next, of which `columns` exist.
  __device__ __forceinline__ void CopyTail(uint32_t to, int columns) const {
    const int bytes = max(0, min(16, (columns - Chunk() * 8) * 2));
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      CopyAsync16(to + Place(i), from_ + at_[i] - kBlockColumns * 2, bytes);
    }
  }
  __device__ __forceinline__ void Advance() { from_ += kBlockColumns * 2; }

 private:
  // Rows 8 apart are swizzled alike.
  static constexpr int kPlaces = kStride % 8 == 0 ? 1 : kCount;
  static __device__ __forceinline__ int Chunk() { return static_cast<int>(threadIdx.x) % 8; }
  __device__ __forceinline__ uint32_t Place(int i) const {
    return kPlaces == 1 ? to_[0] + i * kStride * 128 : to_[i % kPlaces];
  }

  const uint8_t* from_;
  uint32_t to_[kPlaces];
  bool has_[kPlaces];
  uint32_t at_[kCount];
};

template <typename Weights, typename Shape, bool kOneWarp = Shape::kThreads == 32>
struct CopiesOf {
  using Type = typename Weights::template TileCopies<Shape>;
};
template <typename Weights, typename Shape>
struct CopiesOf<Weights, Shape, true> {
  using Type = typename Weights::Stream;
};

template <typename Weights, typename Shape>
class PortableTile {
 public:
  static constexpr int kStepBytes =
      Shape::kTokenBytes + Weights::template kStepBytes<Shape::kRows>;
  static constexpr int kStageBytes = kStepBytes * Shape::kStageBlocks;
  using Operand = typename Weights::Operand;

  __device__ PortableTile(const PortableArgs& a, const RowTile& tile, int n_begin, uint32_t shared)
      : a_(a),
        tile_(tile),
        n_begin_(n_begin),
        shared_(shared),
        lane_(static_cast<int>(threadIdx.x) % 32),
        tokens_(a, tile),
        weights_(a.product, tile.weight, n_begin),
        row_(static_cast<int>(threadIdx.x) / 32 / Shape::kTokenWarps * Shape::kWarpRows),
        token_(static_cast<int>(threadIdx.x) / 32 % Shape::kTokenWarps * Shape::kWarpTokens) {}

  __device__ __forceinline__ void Run() {
    const int slots = a_.product.stages, blocks = a_.product.k_blocks;
    const int stages = (blocks + Shape::kStageBlocks - 1) / Shape::kStageBlocks;
    for (int s = 0; s < slots - 1; ++s) {
#pragma unroll
      for (int b = 0; b < Shape::kStageBlocks; ++b) {
        const int block = s * Shape::kStageBlocks + b;
        const uint32_t to = shared_ + s * kStageBytes + b * kStepBytes;
#pragma unroll
        for (int part = 0; part < 3; ++part) CopyBlock(part, block, to);
        CopyTail(block, to);
      }
      CommitCopies();
    }
#pragma unroll
    for (int i = 0; i < Shape::kSlices; ++i) {
#pragma unroll
      for (int c = 0; c < Shape::kColumns; ++c) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          sum_[i][c][e] = 0.0f;
          if constexpr (kScaled) part_[i][c][e] = 0.0f;
        }
      }
    }
    WaitCopies(slots - 2);
    __syncthreads();
    Open(shared_);
    Ask(0);
    Take(0);
    int slot = 0;
    for (int s = 0; s < stages; ++s) {
      const uint32_t stage = shared_ + slot * kStageBytes;
      const int here = min(Shape::kStageBlocks, blocks - s * Shape::kStageBlocks);
      const int next = slot + 1 == slots ? 0 : slot + 1;
      const int before = slot == 0 ? slots - 1 : slot - 1;
      for (int b = 0; b < here; ++b) {
        // While products run: a block of the stage that takes the slot of the one before.
        const int ahead = (s + slots - 1) * Shape::kStageBlocks + b;
        const uint32_t ahead_to = shared_ + before * kStageBytes + b * kStepBytes;
#pragma unroll
        for (int step = 0; step < 3; ++step) {
          Multiply(step);
          CopyBlock(step, ahead, ahead_to);
          Take(step + 1);
        }
        CopyTail(ahead, ahead_to);
        // The fragments of this block's last step are in registers.
        const bool more = b + 1 < here, last = s + 1 == stages;
        if (!more) CommitCopies();
        if (!more && !last) {
          WaitCopies(slots - 2);
          __syncthreads();  // the next stage is there, and nobody reads this one any more
        }
        [[maybe_unused]] float scales[kScaled ? Shape::kSlices : 1][2];
        if constexpr (kScaled) GetScales(scales);
        Open(more ? stage + (b + 1) * kStepBytes : last ? stage : shared_ + next * kStageBytes);
        Multiply(3);
        if constexpr (kScaled) {
          const int block = s * Shape::kStageBlocks + b;
          if (block % 2 == 1 || block + 1 == blocks) AddScaled(scales);
        }
        Take(0);
      }
      slot = next;
    }
    WaitCopies<0>();
    Store();
  }

 private:
  static constexpr bool kOneWarp = Shape::kThreads == 32;
  static constexpr bool kScaled = Weights::kScaledSums;
  static_assert(!kOneWarp || (Shape::kRows == 16 && Shape::kTokens == 8));
  // What copies the steps, each of them once, in ascending order.
  using Tokens = TokenCopies<Shape>;
  using WeightCopies = typename CopiesOf<Weights, Shape>::Type;

  // One of the three parts of the copies of the next step, `block`; nothing if there is none.
  __device__ __forceinline__ void CopyBlock(int part, int block, uint32_t to) {
    // A warp alone asks for weights first; others spread copies evenly.
    constexpr int kFirst = kOneWarp ? 0 : (Tokens::kCount + 1) / 2;
    const bool whole = block < a_.x_cols / kBlockColumns;
    if (part == (kOneWarp ? 0 : 2)) {
      weights_.Next(to + Shape::kTokenBytes, block < a_.product.k_blocks);
    } else if (part == (kOneWarp ? 2 : 0)) {
      tokens_.Copy(to, 0, kFirst, whole);
    } else {
      tokens_.Copy(to, kFirst, Tokens::kCount - kFirst, whole);
    }
  }
  // What is left to copy of that step, if it is the last and not whole.
  __device__ __forceinline__ void CopyTail(int block, uint32_t to) {
    tokens_.Advance();
    if (block < a_.product.k_blocks && block == a_.x_cols / kBlockColumns) {
      tokens_.CopyTail(to, a_.x_cols % kBlockColumns);
    }
  }

  // Begins with a step of 64 columns.
  __device__ __forceinline__ void Open(uint32_t at) {
    at_ = at;
#pragma unroll
    for (int i = 0; i < Shape::kSlices; ++i) {
      if constexpr (std::is_same_v<Weights, DenseWeights<Operand>>) {
        slices_[i].Open(at + Shape::kTokenBytes);
      } else {
        constexpr int kSlices = Shape::kRows < kUnitRows ? 1 : 4;
        const int slice = row_ / 16 + i;
        slices_[i].Open(at + Shape::kTokenBytes +
                            slice / kSlices * (kSlices * Weights::kSliceBytes),
                        slice % kSlices, lane_, kSlices);
      }
    }
  }
  // Reads the fragments of a step of 16 columns from shared memory.
  __device__ __forceinline__ void Ask(int step) {
    const int r = lane_ & 7, i = lane_ >> 3;
    auto& b = b_[step & 1];
    if constexpr (Shape::kColumns == 1) {  // 8 tokens: two steps at once
      if (step % 2 == 0) {
        uint32_t both[4];
        LoadMatrix4(both, at_ + SwizzledAt(token_ + r, step * 2 + i));
        b[0][0] = both[0], b[0][1] = both[1];
        later_[0] = both[2], later_[1] = both[3];
      } else {
        b[0][0] = later_[0], b[0][1] = later_[1];
      }
    } else {
#pragma unroll
      for (int c = 0; c < Shape::kColumns; c += 2) {
        uint32_t both[4];
        LoadMatrix4(both,
                    at_ + SwizzledAt(token_ + c * 8 + (i >> 1) * 8 + r, step * 2 + (i & 1)));
        b[c][0] = both[0], b[c][1] = both[1];
        b[c + 1][0] = both[2], b[c + 1][1] = both[3];
      }
    }
#pragma unroll
    for (int i = 0; i < Shape::kSlices; ++i) {
      slices_[i].Ask(row_ + i * 16, lane_, step, w_[step & 1][i]);
    }
  }
  // Decodes those of weights that are in registers.
  __device__ __forceinline__ void Take(int step) {
#pragma unroll
    for (int i = 0; i < Shape::kSlices; ++i) slices_[i].Take(step, w_[step & 1][i]);
  }
  // Adds a step's products while the next one's fragments are on their way.
  __device__ __forceinline__ void Multiply(int step) {
    Ask((step + 1) % 4);
#pragma unroll
    for (int i = 0; i < Shape::kSlices; ++i) {
#pragma unroll
      for (int c = 0; c < Shape::kColumns; ++c) {
        float* sum = kScaled ? part_[kScaled ? i : 0][kScaled ? c : 0] : sum_[i][c];
        Mma16x8x16<Operand>(sum, w_[step & 1][i], b_[step & 1][c]);
      }
    }
  }
  // Where weights have a scale for every row and 128 columns: adds what they summed to, scaled.
  __device__ __forceinline__ void GetScales(float (&scales)[Shape::kSlices][2]) const {
#pragma unroll
    for (int i = 0; i < Shape::kSlices; ++i) {
#pragma unroll
      for (int r = 0; r < 2; ++r) scales[i][r] = slices_[i].scales[r];
    }
  }
  __device__ __forceinline__ void AddScaled(const float (&scales)[Shape::kSlices][2]) {
#pragma unroll
    for (int i = 0; i < Shape::kSlices; ++i) {
#pragma unroll
      for (int c = 0; c < Shape::kColumns; ++c) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          sum_[i][c][e] = fmaf(part_[i][c][e], scales[i][e / 2], sum_[i][c][e]);
          part_[i][c][e] = 0.0f;
        }
      }
    }
  }

  __device__ __forceinline__ void Store() {
    if constexpr (kOneWarp) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int token = (lane_ & 3) * 2 + (e & 1);
        const int n = n_begin_ + (lane_ >> 2) + (e & 2) * 4;
        if (token < tile_.rows && n < a_.product.n) {
          StoreResult(a_.product, tile_, token, n, sum_[0][0][e]);
        }
      }
    } else {
      __syncthreads();  // nobody reads the ring any more
      StoreThroughShared();
    }
  }
  // 16 tokens at a time are turned around in the warp's part of shared memory, so that lanes beside
  // each other store what lies beside each other.
  __device__ __forceinline__ void StoreThroughShared() {
    constexpr int kLanes = Shape::kWarpRows / 4, kTokensAtOnce = 32 / kLanes;
    const uint32_t warp_at = shared_ + static_cast<int>(threadIdx.x) / 32 * (16 * kTurnedBytes);
    const uint32_t to = warp_at + (lane_ & 3) * 2 * kTurnedBytes + (lane_ >> 2) * 4;
    const uint32_t from = warp_at + lane_ / kLanes * kTurnedBytes + lane_ % kLanes * 16;
    const ResultColumns columns(a_.product, tile_, n_begin_ + row_ + lane_ % kLanes * 4);
#pragma unroll
    for (int c = 0; c < Shape::kColumns; c += 2) {
      __syncwarp();
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int i = 0; i < Shape::kSlices; ++i) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            StoreShared4(to + (half * 8 + (e & 1)) * kTurnedBytes + (i * 16 + (e & 2) * 4) * 4,
                         sum_[i][c + half][e]);
          }
        }
      }
      __syncwarp();
#pragma unroll 2
      for (int t = 0; t < 16; t += kTokensAtOnce) {
        const int token = token_ + c * 8 + t + lane_ / kLanes;
        const uint4 values = LoadShared16(from + t * kTurnedBytes);
        if (token < tile_.rows) columns.Store(a_.product, tile_, token, values);
      }
    }
  }
  // Of one token in shared memory: free of bank conflicts.
  static constexpr int kTurnedBytes = (Shape::kWarpRows + 4) * 4;
  static_assert(kOneWarp || Shape::kThreads / 32 * 16 * kTurnedBytes <= 2 * kStageBytes);

  const PortableArgs& a_;
  const RowTile& tile_;
  const int n_begin_;
  const uint32_t shared_;
  const int lane_;
  Tokens tokens_;
  WeightCopies weights_;
  const int row_, token_;
  float sum_[Shape::kSlices][Shape::kColumns][4];
  float part_[kScaled ? Shape::kSlices : 1][kScaled ? Shape::kColumns : 1][4];
  uint32_t at_ = 0;  // of the step of 64 columns
  typename Weights::Slice slices_[Shape::kSlices];
  uint32_t w_[2][Shape::kSlices][4], b_[2][Shape::kColumns][2], later_[2];
};

template <typename Weights, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kMostBlocks)
    PortableProduct(const __grid_constant__ PortableArgs a) {
  extern __shared__ __align__(128) uint8_t shared[];
  const ProductArgs& p = a.product;
  // Tiles of activations that share their weights through the second-level cache run together.
  constexpr int kBand = 8;
  const int row_tiles = (p.n + Shape::kRows - 1) / Shape::kRows;
  const int index = static_cast<int>(blockIdx.x);
  const int band = index / (kBand * row_tiles), in_band = index % (kBand * row_tiles);
  const int band_tiles = min(kBand, p.max_tiles - band * kBand);
  const RowTile tile = FindRowTile<Shape::kTokens>(p, band * kBand + in_band % band_tiles);
  if (tile.rows == 0) return;
  PortableTile<Weights, Shape>(a, tile, in_band / band_tiles * Shape::kRows, SharedAddress(shared))
      .Run();
}

template <typename Weights, typename Shape>
cudaError_t LaunchPortable(const Product& product, cudaStream_t stream) {
  constexpr int kStageBytes = PortableTile<Weights, Shape>::kStageBytes;
  PortableArgs a = {MakeProductArgs(product), static_cast<const uint16_t*>(product.x.data),
                    product.x.pitch, static_cast<int32_t>(product.x.cols)};
  ProductArgs& p = a.product;
  p.k_blocks = static_cast<int32_t>(CeilDiv(product.x.cols, kBlockColumns));
  if (product.groups == nullptr) p.max_tiles = (p.rows + Shape::kTokens - 1) / Shape::kTokens;
  const int64_t blocks = CeilDiv(product.n, Shape::kRows) * p.max_tiles;
  if (blocks == 0) return cudaSuccess;
  int device = 0, most = 0, per_processor = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  error =
      cudaDeviceGetAttribute(&per_processor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  if (error != cudaSuccess) return error;
  // Shared memory for as many blocks as a multiprocessor has to do, if two stages of each fit; 1 KB
  // of each is the system's.
  const int64_t each = CeilDiv(blocks, product.multiprocessors);
  const int together = static_cast<int>(each < Shape::kMostBlocks ? each : Shape::kMostBlocks);
  const int share = per_processor / together - 1024;
  const int budget = share >= 2 * kStageBytes && share < most ? share : most;
  if (budget < 2 * kStageBytes) return cudaErrorNotSupported;
  const int slots = budget / kStageBytes;
  p.stages = slots < kMaxPendingCopies + 1 ? slots : kMaxPendingCopies + 1;
  const auto kernel = PortableProduct<Weights, Shape>;
  const int bytes = p.stages * kStageBytes;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  kernel<<<static_cast<unsigned>(blocks), Shape::kThreads, bytes, stream>>>(a);
  return cudaGetLastError();
}

}  // namespace longstride::kernels::cuda

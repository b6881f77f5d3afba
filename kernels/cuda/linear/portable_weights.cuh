// Weights as the portable products take them: how a tile's copies and fragments are made, for dense
// weights and for block formats.
#pragma once

#include <type_traits>

#include "kernels/cuda/device/async_copy.cuh"
#include "kernels/cuda/device/mma.cuh"
#include "kernels/cuda/linear/block_formats.cuh"
#include "kernels/cuda/linear/product_args.cuh"

namespace longstride::kernels::cuda {

// Rows of 128 bytes, 16-byte chunks swizzled by row: conflict-free for LoadMatrix4.
__device__ __forceinline__ uint32_t SwizzledAt(int row, int chunk) {
  return static_cast<uint32_t>(row * 128 + ((chunk ^ (row & 7)) << 4));
}

// f16 and bf16: atoms lie in shared memory as they do in the packed weight.
template <typename T>
struct DenseWeights {
  using Operand = T;
  template <int kRows>
  static constexpr int kStepBytes = kRows * 128;

  template <typename Shape>
  static __device__ __forceinline__ void Copy(const ProductArgs& p, const uint8_t* weight,
                                              int n_begin, int block, uint32_t to) {
    const int atoms = (p.n + kAtomRows - 1) / kAtomRows, first = n_begin / kAtomRows;
    const int thread = static_cast<int>(threadIdx.x);
    const uint8_t* from = weight + int64_t{block} * kAtomBytes + thread % 64 * 16;
#pragma unroll
    for (int i = 0; i < Shape::kRows * 8; i += Shape::kThreads) {
      // Atoms beyond the last are not read.
      const int atom = first + (i + thread) / 64;
      CopyAsync16(to + (i + thread) * 16, from + int64_t{atom} * p.k_blocks * kAtomBytes,
                  atom < atoms ? 16 : 0);
    }
  }
  // The steps of 16 rows one after the other, for a warp that must not waste instructions on
  // addresses.
  class Stream {
   public:
    __device__ __forceinline__ Stream(const ProductArgs& p, const uint8_t* weight, int n_begin,
                                      int lane)
        : lane_at_(lane * 16),
          atom_bytes_(int64_t{p.k_blocks} * kAtomBytes),
          second_(n_begin + kAtomRows < p.n ? 16 : 0),
          from_(weight + n_begin / kAtomRows * atom_bytes_ + lane_at_) {}
    __device__ __forceinline__ void Next(uint32_t to) {
      CopyAsync16(to + lane_at_, from_, 16);
      CopyAsync16(to + lane_at_ + 512, from_ + 512, 16);
      CopyAsync16(to + lane_at_ + 1024, from_ + atom_bytes_, second_);
      CopyAsync16(to + lane_at_ + 1536, from_ + atom_bytes_ + 512, second_);
      from_ += kAtomBytes;
    }

   private:
    const int lane_at_;
    const int64_t atom_bytes_;
    const int second_;
    const uint8_t* from_;
  };
  // The 16 rows from `row` of a step: `Ask` before a fragment is wanted, `Take` where it is.
  struct Slice {
    uint32_t at;
    __device__ __forceinline__ void Open(uint32_t step_at) { at = step_at; }
    __device__ __forceinline__ void Ask(int row, int lane, int step, uint32_t (&a)[4]) const {
      LoadMatrix4(a, at + SwizzledAt(row + (lane & 15), step * 2 + (lane >> 4)));
    }
    __device__ __forceinline__ void Take(int step, uint32_t (&a)[4]) const {}
  };
};

template <DType kType>
struct BlockWeights {
  using Format = BlockFormat<kType>;
  using Operand =
      std::conditional_t<OperandType(kType) == DType::kBF16, __nv_bfloat16, __half>;
  // What one step of 64 columns needs of the 16-row slices of a unit, piece by piece.
  static constexpr int kCodeBytes = 128 * Format::kCodeWords;
  static constexpr int kHighBytes = 128 * Format::kHighWords;
  static constexpr int kScalesBytes = Format::kIsK ? 64 : 8 * Format::kScaleBytes;
  static constexpr int kSuperBytes = !Format::kIsK ? 0 : kType == DType::kQ6_K ? 32 : 64;
  static constexpr int kSliceBytes = kCodeBytes + kHighBytes + kScalesBytes + kSuperBytes;
  static_assert(kSliceBytes % 16 == 0 && Format::kUnitBytes % 16 == 0);
  template <int kRows>
  static constexpr int kStepBytes = kRows / 16 * kSliceBytes;

  template <typename Shape>
  static __device__ __forceinline__ void Copy(const ProductArgs& p, const uint8_t* weight,
                                              int n_begin, int block, uint32_t to) {
    constexpr int kUnitBytes = 4 * kSliceBytes;  // side by side in shared memory
    constexpr int kCount = Shape::kRows / 16 * kSliceBytes / 16;
    const int units = (p.k_blocks + Format::kUnitBlocks - 1) / Format::kUnitBlocks;
    const int in_unit = block % Format::kUnitBlocks;
    const uint8_t* unit = weight + (int64_t{n_begin / kUnitRows} * units +
                                    block / Format::kUnitBlocks) * Format::kUnitBytes;
#pragma unroll
    for (int i = 0; i < kCount; i += Shape::kThreads) {
      const int chunk = i + static_cast<int>(threadIdx.x);
      if (kCount % Shape::kThreads != 0 && chunk >= kCount) break;
      const int u = chunk * 16 / kUnitBytes, at = chunk * 16 % kUnitBytes;
      const Source source = SourceOf<4>(at);
      // Units beyond the last are not read.
      CopyAsync16(to + chunk * 16,
                  unit + int64_t{u} * units * Format::kUnitBytes + source.at +
                      in_unit * source.block,
                  n_begin + u * kUnitRows < p.n ? 16 : 0);
    }
  }
  class Stream {
   public:
    __device__ __forceinline__ Stream(const ProductArgs& p, const uint8_t* weight, int n_begin,
                                      int lane)
        : lane_(lane) {
      const int units = (p.k_blocks + Format::kUnitBlocks - 1) / Format::kUnitBlocks;
      const uint8_t* unit =
          weight + int64_t{n_begin / kUnitRows} * units * Format::kUnitBytes;
#pragma unroll
      for (int n = 0; n < kChunks; ++n) {
        const Source source = SourceOf<1>((n * 32 + lane) * 16);
        from_[n] = unit + source.at + n_begin % kUnitRows / 16 * source.slice;
        block_[n] = source.block;
      }
    }
    __device__ __forceinline__ void Next(uint32_t to) {
      const bool new_unit = Format::kUnitBlocks == 1 || ++in_unit_ == Format::kUnitBlocks;
      if (new_unit) in_unit_ = 0;
#pragma unroll
      for (int n = 0; n < kChunks; ++n) {
        const int chunk = n * 32 + lane_;
        if (chunk < kSliceBytes / 16) CopyAsync16(to + chunk * 16, from_[n], 16);
        from_[n] += !new_unit ? block_[n]
                              : Format::kUnitBytes - (Format::kUnitBlocks - 1) * block_[n];
      }
    }

   private:
    static constexpr int kChunks = (kSliceBytes / 16 + 31) / 32;
    const int lane_;
    int in_unit_ = 0;
    const uint8_t* from_[kChunks];
    int block_[kChunks];
  };
  struct Slice {
    typename Format::Block block;
    __device__ __forceinline__ void Open(uint32_t slice_at, int in_unit, int lane, int slices) {
      Format::Load(typename Format::Place(slice_at, in_unit, lane, 1, slices), 0, 0, &block);
    }
    __device__ __forceinline__ void Ask(int row, int lane, int step, uint32_t (&a)[4]) const {}
    __device__ __forceinline__ void Take(int step, uint32_t (&a)[4]) const {
      Format::Decode(block, step, a);
    }
  };

 private:
  // Where a byte of the pieces lies in a unit: from slice 0 and block 0 of it, and how far the next
  // slice and the next block are.
  struct Source {
    int at, slice, block;
  };
  template <int kSlices>
  static __device__ __forceinline__ Source SourceOf(int at) {
    if (at < kSlices * kCodeBytes) return {at, kCodeBytes, 4 * kCodeBytes};
    at -= kSlices * kCodeBytes;
    if (at < kSlices * kHighBytes) return {Format::kHighAt + at, kHighBytes, 4 * kHighBytes};
    at -= kSlices * kHighBytes;
    if (at < kSlices * kScalesBytes) {
      return {Format::kScalesAt + at, kScalesBytes, Format::kIsK ? 256 : 0};
    }
    return {Format::kSuperAt + at - kSlices * kScalesBytes, kSuperBytes, 0};
  }
};

}  // namespace longstride::kernels::cuda

// Weights as the portable products take them: how a tile's copies and fragments are made, for dense
// weights and for block formats.
#pragma once

#include <type_traits>

#include "kernels/cuda/device/async_copy.cuh"
#include "kernels/cuda/device/math.cuh"
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
  static constexpr bool kScaledSums = false;
  template <int kRows>
  static constexpr int kStepBytes = kRows * 128;

  // The steps of a tile one after the other.
  template <typename Shape>
  class TileCopies {
   public:
    __device__ __forceinline__ TileCopies(const ProductArgs& p, const uint8_t* weight, int n_begin)
        : from_(weight + (int64_t{n_begin / kAtomRows} * p.k_blocks * kAtomBytes +
                          static_cast<int>(threadIdx.x) % 64 * 16)) {
      const int last = (p.n + kAtomRows - 1) / kAtomRows - 1 - n_begin / kAtomRows;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        // Instead of atoms beyond the last, which are nobody's, the last.
        const int atom = (i * Shape::kThreads + static_cast<int>(threadIdx.x)) / 64;
        at_[i] = static_cast<uint32_t>(min(atom, last) * p.k_blocks) * kAtomBytes;
      }
    }
    // Does nothing behind the last step (`exists`).
    __device__ __forceinline__ void Next(uint32_t to, bool exists) {
      to += static_cast<int>(threadIdx.x) * 16;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        CopyAsync16If(exists, to + i * Shape::kThreads * 16, from_ + at_[i]);
      }
      from_ += kAtomBytes;
    }

   private:
    static constexpr int kCount = Shape::kRows * 8 / Shape::kThreads;
    static_assert(Shape::kRows * 8 % Shape::kThreads == 0);
    const uint8_t* from_;
    uint32_t at_[kCount];
  };
  // The steps of 16 rows one after the other, for a warp that must not waste instructions on
  // addresses.
  class Stream {
   public:
    __device__ __forceinline__ Stream(const ProductArgs& p, const uint8_t* weight, int n_begin)
        : lane_at_(static_cast<int>(threadIdx.x) * 16),
          atom_bytes_(int64_t{p.k_blocks} * kAtomBytes),
          second_(n_begin + kAtomRows < p.n ? 16 : 0),
          from_(weight + n_begin / kAtomRows * atom_bytes_ + lane_at_) {}
    __device__ __forceinline__ void Next(uint32_t to, bool exists) {
      if (!exists) return;
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

// Of weights whose steps are copied each by itself.
template <typename Weights, typename Shape>
class StepCopies {
 public:
  __device__ __forceinline__ StepCopies(const ProductArgs& p, const uint8_t* weight, int n_begin)
      : p_(p), weight_(weight), n_begin_(n_begin) {}
  __device__ __forceinline__ void Next(uint32_t to, bool exists) {
    if (exists) Weights::template Copy<Shape>(p_, weight_, n_begin_, block_++, to);
  }

 private:
  const ProductArgs& p_;
  const uint8_t* const weight_;
  const int n_begin_;
  int block_ = 0;
};

// fp8_128: codes become halves in registers, exactly; sums of 128 columns are scaled. A slice of 16
// rows and 64 columns is rows of 64 bytes, 16-byte chunks swizzled by row so that a thread's word
// of every row is read without conflicts, and then the rows' scales.
struct Fp8Weights {
  using Operand = __half;
  static constexpr bool kScaledSums = true;
  static constexpr int kCodeBytes = 16 * 64;
  static constexpr int kSliceBytes = kCodeBytes + 16 * 4;
  template <int kRows>
  static constexpr int kStepBytes = kRows / 16 * kSliceBytes;

  static __device__ __forceinline__ uint32_t CodesAt(int row, int chunk) {
    return static_cast<uint32_t>(row * 64 + ((chunk ^ (row >> 1 & 3)) << 4));
  }

  template <typename Shape>
  class TileCopies {
   public:
    __device__ __forceinline__ TileCopies(const ProductArgs& p, const uint8_t* weight, int n_begin)
        : scale_rows_(p.scale_rows),
          from_(weight + int64_t{n_begin / kAtomRows} * (p.k_blocks / 2) * kAtomBytes),
          scales_(reinterpret_cast<const float*>(weight + p.scales_at) + n_begin +
                  static_cast<int>(threadIdx.x) * 4) {
      const int last = (p.n + kAtomRows - 1) / kAtomRows - 1 - n_begin / kAtomRows;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        // Instead of atoms beyond the last, which are nobody's, the last.
        const int at = i * Shape::kThreads + static_cast<int>(threadIdx.x);
        const int row = at / 4, chunk = at % 4, in_atom = row % kAtomRows;
        at_[i] = static_cast<uint32_t>(min(row / kAtomRows, last) * (p.k_blocks / 2)) * kAtomBytes +
                 in_atom * 128 + ((chunk ^ in_atom) << 4);
        to_[i] = row / 16 * kSliceBytes + CodesAt(row % 16, chunk);
      }
    }
    // Does nothing behind the last step (`exists`).
    __device__ __forceinline__ void Next(uint32_t to, bool exists) {
      const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
      for (int i = 0; i < kCount; ++i) CopyAsync16If(exists, to + to_[i], from_ + (at_[i] ^ half_));
      CopyAsync16If(exists && thread < Shape::kRows / 4,
                    to + thread / 4 * kSliceBytes + kCodeBytes + thread % 4 * 16, scales_);
      half_ ^= 64;  // the other half of the atom's rows
      if (half_ == 0) {
        from_ += kAtomBytes;
        scales_ += scale_rows_;
      }
    }

   private:
    static constexpr int kCount = Shape::kRows * 4 / Shape::kThreads;
    static_assert(Shape::kRows * 4 % Shape::kThreads == 0);
    const int scale_rows_;
    const uint8_t* from_;
    const float* scales_;
    uint32_t at_[kCount], to_[kCount], half_ = 0;
  };
  class Stream {
   public:
    __device__ __forceinline__ Stream(const ProductArgs& p, const uint8_t* weight, int n_begin)
        : lane_(static_cast<int>(threadIdx.x)),
          to_{CodesAt(lane_ / 4, lane_ % 4), CodesAt(lane_ / 4 + 8, lane_ % 4)},
          chunk_((lane_ % 4 ^ lane_ / 4) << 4),
          second_(n_begin + kAtomRows < p.n ? 16 : 0),
          atom_bytes_(int64_t{p.k_blocks / 2} * kAtomBytes),
          scale_rows_(p.scale_rows),
          from_(weight + n_begin / kAtomRows * atom_bytes_ + lane_ / 4 * 128),
          scales_(reinterpret_cast<const float*>(weight + p.scales_at) + n_begin + lane_ * 4) {}
    __device__ __forceinline__ void Next(uint32_t to, bool exists) {
      if (!exists) return;
      CopyAsync16(to + to_[0], from_ + chunk_, 16);
      CopyAsync16(to + to_[1], from_ + atom_bytes_ + chunk_, second_);
      if (lane_ < 4) CopyAsync16(to + kCodeBytes + lane_ * 16, scales_, 16);
      chunk_ ^= 64;  // the other half of the atom's rows
      odd_ = !odd_;
      if (!odd_) {
        from_ += kAtomBytes;
        scales_ += scale_rows_;
      }
    }

   private:
    const int lane_;
    const uint32_t to_[2];
    int chunk_;
    const int second_;
    const int64_t atom_bytes_;
    const int scale_rows_;
    const uint8_t* from_;
    const float* scales_;
    bool odd_ = false;
  };
  struct Slice {
    uint32_t at;
    float scales[2];
    __device__ __forceinline__ void Open(uint32_t unit_at, int in_unit, int lane, int slices) {
      at = unit_at + in_unit * kSliceBytes;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        scales[i] = kUnit * __uint_as_float(LoadShared4(at + kCodeBytes + (lane / 4 + i * 8) * 4));
      }
    }
    __device__ __forceinline__ void Ask(int row, int lane, int step, uint32_t (&a)[4]) const {
      a[0] = LoadShared4(at + CodesAt(lane / 4, step) + lane % 4 * 4);
      a[1] = LoadShared4(at + CodesAt(lane / 4 + 8, step) + lane % 4 * 4);
    }
    __device__ __forceinline__ void Take(int step, uint32_t (&a)[4]) const {
      uint32_t halves[2][2];
#pragma unroll
      for (int i = 0; i < 2; ++i) Decode(a[i], halves[i]);
      a[0] = halves[0][0], a[1] = halves[1][0], a[2] = halves[0][1], a[3] = halves[1][1];
    }

   private:
    // Four codes to halves of 1 / kUnit of their values, without NaN.
#if __CUDA_ARCH__ >= 890
    static constexpr float kUnit = 1.0f;
    static __device__ __forceinline__ void Decode(uint32_t codes, uint32_t* to) {
      HalvesOfE4m3(codes, to);
    }
#else
    static constexpr float kUnit = 256.0f;
    static __device__ __forceinline__ void Decode(uint32_t codes, uint32_t* to) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t high = __byte_perm(codes, 0, i == 0 ? 0x1404 : 0x3424);
        to[i] = (high & 0x80008000) | (high & 0x7f007f00) >> 1;
      }
    }
#endif
  };
};

template <DType kType>
struct BlockWeights {
  using Format = BlockFormat<kType>;
  static constexpr bool kScaledSums = false;
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
  // The steps of 16 rows one after the other, for a warp that must not waste instructions on
  // addresses.
  class Stream {
   public:
    __device__ __forceinline__ Stream(const ProductArgs& p, const uint8_t* weight, int n_begin)
        : lane_(static_cast<int>(threadIdx.x)) {
      const int units = (p.k_blocks + Format::kUnitBlocks - 1) / Format::kUnitBlocks;
      const uint8_t* unit =
          weight + int64_t{n_begin / kUnitRows} * units * Format::kUnitBytes;
#pragma unroll
      for (int n = 0; n < kChunks; ++n) {
        const Source source = SourceOf<1>((n * 32 + lane_) * 16);
        from_[n] = unit + source.at + n_begin % kUnitRows / 16 * source.slice;
        block_[n] = source.block;
      }
    }
    __device__ __forceinline__ void Next(uint32_t to, bool exists) {
      if (!exists) return;
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
  template <typename Shape>
  using TileCopies = StepCopies<BlockWeights, Shape>;
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

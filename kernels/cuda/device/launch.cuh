// Grids for row-wise kernels.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace longstride::kernels::cuda {

inline constexpr int kRowThreads = 256;

// Blocks for `rows` x `columns` elements: x over rows (which may be many), y over column chunks.
struct RowGrid {
  dim3 blocks;
  bool empty;
  RowGrid(int64_t rows, int64_t columns, int columns_per_thread = 1)
      : blocks(static_cast<unsigned>(rows),
               static_cast<unsigned>((columns + int64_t{kRowThreads} * columns_per_thread - 1) /
                                     (int64_t{kRowThreads} * columns_per_thread))),
        empty(rows == 0 || columns == 0) {}
};

}  // namespace longstride::kernels::cuda

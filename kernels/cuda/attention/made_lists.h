// Lists that SelectPages made, whose length only the device knows.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/op_params.h"

namespace longstride::kernels::cuda {

// The (row, query head, key) triples of a call, in device memory; to be added to.
struct DeviceCounters {
  unsigned long long keys_visible = 0;
  unsigned long long keys_read = 0;
};

// list_count[i] = entries of list i of `selection` (arrays in device memory, room for
// selection.list_count[i]) in front of its kNoEntry tail. Where `counters` is given, what the lists show to
// query_heads heads is added to it; lists are causal and hold the pages of their tile's rows.
cudaError_t LaunchTrimLists(const KvSelection& selection, int32_t query_heads, int32_t* list_count,
                            DeviceCounters* counters, cudaStream_t stream);

}  // namespace longstride::kernels::cuda

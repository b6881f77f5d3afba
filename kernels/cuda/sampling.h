// Chooses tokens from rows of logits (SampleParams, kernels/op_params.h).
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/op_params.h"

namespace longstride::kernels::cuda {

// Everything in device memory; `originals` has room for one float for each edit.
struct SampleLaunch {
  float* logits = nullptr;
  int64_t logits_stride = 0;
  int32_t vocab = 0;
  const SampleRow* rows = nullptr;
  int32_t num_rows = 0;
  const LogitEdit* edits = nullptr;
  float* originals = nullptr;
  SampleResult* results = nullptr;
};

cudaError_t LaunchSample(const SampleLaunch& launch, cudaStream_t stream);

}  // namespace longstride::kernels::cuda

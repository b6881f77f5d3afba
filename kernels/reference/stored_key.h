// One value of a cache as it is stored, for the reference backend.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/paged_kv.h"
#include "kernels/quant.h"

namespace longstride::kernels {

// Channel d of the key in `slot` of one head's page; kFp8: its code, without the layer's scale.
inline float KeyValue(const PagedKv& cache, const char* page, int32_t slot, int32_t d) {
  const int64_t at = int64_t{slot} * cache.head_dim + d;
  switch (cache.dtype) {
    case KvDType::kF32:
      return reinterpret_cast<const float*>(page)[at];
    case KvDType::kF16:
      return HalfToFloat(reinterpret_cast<const uint16_t*>(page)[at]);
    case KvDType::kBF16:
      return Bfloat16ToFloat(reinterpret_cast<const uint16_t*>(page)[at]);
    case KvDType::kFp8:
      return E4m3ToFloat(reinterpret_cast<const uint8_t*>(page)[at]);
    case KvDType::kQ8: {
      float scale;
      std::memcpy(&scale, page + int64_t{kPageTokens} * cache.head_dim + 4 * slot, sizeof(scale));
      return static_cast<float>(reinterpret_cast<const int8_t*>(page)[at]) * scale;
    }
  }
  return 0.0f;
}

}  // namespace longstride::kernels

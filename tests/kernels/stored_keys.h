// Keys as a cache gives them back.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/paged_kv.h"
#include "kernels/quant.h"

namespace longstride::kernels {

// Rounds rows of `dim` values to what a cache of the type holds: from there on a test's problem is
// posed in these values.
inline void RoundAsStored(KvDType dtype, int32_t dim, std::vector<float>* rows) {
  std::vector<int8_t> codes(static_cast<size_t>(dim));
  for (size_t i = 0; i < rows->size(); i += codes.size()) {
    float* x = rows->data() + i;
    float scale = 0.0f;
    if (dtype == KvDType::kQ8) QuantizeKvRow(x, dim, codes.data(), &scale);
    for (int32_t d = 0; d < dim; ++d) {
      if (dtype == KvDType::kQ8) x[d] = static_cast<float>(codes[static_cast<size_t>(d)]) * scale;
      if (dtype == KvDType::kF16) x[d] = HalfToFloat(FloatToHalf(x[d]));
      if (dtype == KvDType::kFp8) x[d] = E4m3ToFloat(FloatToE4m3(x[d]));
      if (dtype == KvDType::kBF16) x[d] = Bfloat16ToFloat(FloatToBfloat16(x[d]));
    }
  }
}

}  // namespace longstride::kernels

#include "kernels/cuda/attention/tensor_maps.h"

namespace longstride::kernels::cuda {
namespace {

using EncodeFunction = decltype(&cuTensorMapEncodeTiled);

// Found through the runtime, so that nothing links the driver library and a machine without a
// driver can still load the program.
EncodeFunction FindEncode() {
  void* address = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &address,
                                                             12000, cudaEnableDefault, &found);
#else
  const cudaError_t error =
      cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &address, cudaEnableDefault, &found);
#endif
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) return nullptr;
  return reinterpret_cast<EncodeFunction>(address);
}

template <int kRank>
struct MapShape {
  cuuint64_t sizes[kRank];
  cuuint64_t strides[kRank - 1];  // bytes
  cuuint32_t box[kRank];
};

template <int kRank>
cudaError_t Encode(CUtensorMapDataType type, CUtensorMapSwizzle swizzle, void* base,
                   const MapShape<kRank>& shape, CUtensorMapL2promotion promotion,
                   CUtensorMap* map) {
  static const EncodeFunction encode = FindEncode();
  if (encode == nullptr) return cudaErrorNotSupported;
  cuuint32_t steps[kRank];
  for (int i = 0; i < kRank; ++i) steps[i] = 1;
  const CUresult result =
      encode(map, type, kRank, base, shape.sizes, shape.strides, shape.box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, promotion, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

cuuint64_t Size(int64_t n) { return static_cast<cuuint64_t>(n); }

}  // namespace

cudaError_t EncodeQueryMap(const TensorView& q, int box_heads, int box_rows, CUtensorMap* map) {
  const MapShape<3> shape = {
      {Size(q.shape[2]), Size(q.shape[1]), Size(q.shape[0])},
      {Size(q.strides[1]) * 2, Size(q.strides[0]) * 2},
      {64, static_cast<cuuint32_t>(box_heads), static_cast<cuuint32_t>(box_rows)}};
  return Encode(
      q.dtype == DType::kF16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
      CU_TENSOR_MAP_SWIZZLE_128B, q.data, shape, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, map);
}

cudaError_t EncodePageMap(const PagedKv& cache, void* base, PageReads reads, CUtensorMap* map) {
  const bool codes = cache.dtype == KvDType::kFp8;
  const int element = codes ? 1 : 2;
  const int panel = PagePanelBytes(cache.head_dim * element);
  const MapShape<4> shape = {
      {Size(cache.head_dim), Size(kPageTokens), Size(cache.num_heads), Size(cache.num_pages)},
      {Size(cache.head_dim * element), Size(cache.head_stride), Size(cache.page_stride)},
      {static_cast<cuuint32_t>(panel / element), static_cast<cuuint32_t>(kPageTokens), 1, 1}};
  // Widening requests helps where neighbours read the rest from L2, and costs 1.5% where nobody
  // does.
  return Encode(codes                          ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                : cache.dtype == KvDType::kF16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                               : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                panel == 64 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B, base, shape,
                reads == PageReads::kShared ? CU_TENSOR_MAP_L2_PROMOTION_L2_256B
                                            : CU_TENSOR_MAP_L2_PROMOTION_NONE,
                map);
}

}  // namespace longstride::kernels::cuda

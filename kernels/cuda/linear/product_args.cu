#include "kernels/cuda/linear/product_args.cuh"

namespace longstride::kernels::cuda {
namespace {

using EncodeFunction = decltype(&cuTensorMapEncodeTiled);

// Found through the runtime: a machine without a driver can still load the program.
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

struct Matrix {
  const void* data;
  DType dtype;
  int64_t rows, cols, pitch;
};

struct MapType {
  CUtensorMapDataType type;
  unsigned bytes;
};
MapType MapTypeOf(DType t) {
  switch (t) {
    case DType::kF32: return {CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 4};
    case DType::kF16: return {CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2};
    case DType::kF8E4M3: return {CU_TENSOR_MAP_DATA_TYPE_UINT8, 1};
    default: return {CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2};
  }
}

EncodeFunction Encoder() {
  static const EncodeFunction encode = FindEncode();
  return encode;
}

// Boxes of 128 bytes by `box_rows` rows, swizzled.
cudaError_t EncodePanels(const Matrix& m, int box_rows, CUtensorMap* map) {
  const EncodeFunction encode = Encoder();
  if (encode == nullptr) return cudaErrorNotSupported;
  const MapType type = MapTypeOf(m.dtype);
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(m.cols), static_cast<cuuint64_t>(m.rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(m.pitch) * type.bytes};
  const cuuint32_t box[2] = {128 / type.bytes, static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  const CUresult result =
      encode(map, type.type, 2, const_cast<void*>(m.data), sizes, strides, box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace

ProductArgs MakeProductArgs(const Product& p) {
  ProductArgs a = {};
  a.weight = p.weight;
  if (p.groups != nullptr) {
    a.group_weights = p.groups->weights;
    a.tiles = p.groups->tiles;
    a.num_tiles = p.groups->num_tiles;
    a.max_tiles = p.groups->max_tiles;
    a.bias_stride = p.groups->bias_stride;
  }
  a.rows = static_cast<int32_t>(p.x.rows);
  a.n = static_cast<int32_t>(p.n);
  a.k_blocks = static_cast<int32_t>(CeilDiv(p.x.cols, AtomColumns(p.weight_dtype)));
  if (p.weight_dtype == DType::kFP8_128) {
    a.scale_rows = static_cast<int32_t>(Fp8ScaleRows(p.n));
    a.scales_at = AtomsBytes(p.weight_dtype, p.n, p.x.cols);
  }
  a.out = p.out;
  a.out_dtype = p.out_dtype;
  a.out_stride = p.out_stride;
  a.bias = p.bias;
  a.row_scale = p.x.row_scale;
  a.accumulate = p.accumulate ? 1 : 0;
  return a;
}

cudaError_t EncodeOperandMap(const Operand& x, int box_rows, CUtensorMap* map) {
  return EncodePanels({x.data, x.dtype, x.rows, x.cols, x.pitch}, box_rows, map);
}

cudaError_t EncodeWeightMap(const Product& p, int box_steps, int box_atoms, CUtensorMap* map) {
  const EncodeFunction encode = Encoder();
  if (encode == nullptr) return cudaErrorNotSupported;
  constexpr cuuint64_t kWords = kAtomBytes / 4;
  const auto k_blocks = static_cast<cuuint64_t>(CeilDiv(p.x.cols, AtomColumns(p.weight_dtype)));
  const cuuint64_t sizes[3] = {kWords, k_blocks, static_cast<cuuint64_t>(CeilDiv(p.n, kAtomRows))};
  const cuuint64_t strides[2] = {kAtomBytes, kAtomBytes * k_blocks};
  const cuuint32_t box[3] = {kWords, static_cast<cuuint32_t>(box_steps),
                             static_cast<cuuint32_t>(box_atoms)};
  const cuuint32_t steps[3] = {1, 1, 1};
  const CUresult result =
      encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT32, 3, const_cast<uint8_t*>(p.weight), sizes, strides,
             box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

bool EncodeResultMap(const Product& p, int box_rows, CUtensorMap* map) {
  const int64_t bytes = p.out_dtype == DType::kF32 ? 4 : 2;
  if (reinterpret_cast<uintptr_t>(p.out) % 16 != 0 || p.out_stride * bytes % 16 != 0) return false;
  return EncodePanels({p.out, p.out_dtype, p.x.rows, p.n, p.out_stride}, box_rows, map) ==
         cudaSuccess;
}

cudaError_t LaunchWithDependency(const void* kernel, const LaunchShape& shape, ProductArgs* args,
                                 cudaStream_t stream) {
  const cudaError_t set = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               static_cast<int>(shape.shared_bytes));
  if (set != cudaSuccess) return set;
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = shape.cluster;
  attributes[1].val.clusterDim.y = 1;
  attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(shape.blocks, shape.blocks_y);
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  void* parameters[1] = {args};
  return cudaLaunchKernelExC(&config, kernel, parameters);
}

}  // namespace longstride::kernels::cuda

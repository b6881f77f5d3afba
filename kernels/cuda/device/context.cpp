#include "kernels/cuda/device/context.h"

#include <algorithm>
#include <utility>

#include "kernels/cuda/device/kernel_image.h"

namespace longstride::kernels::cuda {
namespace {

// Addresses of the scratch arena; memory is mapped as ops need it.
constexpr int64_t kScratchAddresses = int64_t{64} << 30;
constexpr int64_t kAlignment = 256;
// Mapped beyond what is taken: boxes of tensor maps reach over the ends of operands, and addresses
// are translated also where nothing is read.
constexpr int64_t kOverreach = int64_t{16} << 20;

class DeviceDeleter : public Buffer::Deleter {
 public:
  void Free(void* data, int64_t bytes) override { cudaFree(data); }
};

absl::Status OutOfDeviceMemory(int64_t bytes) {
  size_t free_bytes = 0, total = 0;
  cudaMemGetInfo(&free_bytes, &total);
  return absl::ResourceExhaustedError(
      StrCat("The CUDA device has ", free_bytes, " of its ", total, " bytes free, ", bytes,
             " more are needed; lower --kv-memory or --scheduler-max-step-tokens, or use "
             "--device cpu."));
}

// Errors of one call's arguments; every other error leaves the device unusable.
bool IsOfOneCall(cudaError_t error) {
  return error == cudaErrorMemoryAllocation || error == cudaErrorInvalidValue ||
         error == cudaErrorInvalidConfiguration || error == cudaErrorNotSupported;
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceContext>> DeviceContext::Create(int device_index,
                                                                     KernelChoice kernels) {
  ASSIGN_OR_RETURN(CudaDeviceInfo info, FindCudaDevice(device_index));
  if (kernels == KernelChoice::kFast && !info.has_fast_kernels()) {
    return absl::UnavailableError(StrCat(
        "The fast kernels need compute capability 9.0 (H100, H200); ", info.name, " has ",
        info.major, ".", info.minor, ". Use --kernels auto or portable."));
  }
  std::unique_ptr<DeviceContext> context(new DeviceContext(std::move(info)));
  const bool fast = context->info_.has_fast_kernels() && kernels != KernelChoice::kPortable;
  context->path_ = fast ? KernelPath::kFast : KernelPath::kPortable;
  RETURN_IF_ERROR(context->Check(cudaSetDevice(device_index), "choosing the device"));
  if (const cudaError_t error = FindKernelImage(); error != cudaSuccess) {
    return absl::UnavailableError(StrCat(
        "This build has no code for ", context->info_.name, " (compute capability ",
        context->info_.major, ".", context->info_.minor, "): ", cudaGetErrorString(error),
        ". Configure with -DLONGSTRIDE_CUDA_ARCHITECTURES=", context->info_.major,
        context->info_.minor, ", or use the CPU backend."));
  }
  RETURN_IF_ERROR(context->Check(
      cudaStreamCreateWithFlags(&context->stream_, cudaStreamNonBlocking), "making a stream"));
  RETURN_IF_ERROR(context->scratch_.Reserve(device_index, kScratchAddresses));
  return context;
}

DeviceContext::~DeviceContext() {
  if (stream_ != nullptr) cudaStreamSynchronize(stream_);
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

absl::StatusOr<Buffer> DeviceContext::Allocate(int64_t bytes) {
  if (bytes < 0) {
    return absl::InvalidArgumentError(StrCat("A buffer must have 0 or more bytes, got ", bytes));
  }
  if (bytes == 0) return Buffer();
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, static_cast<size_t>(bytes));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // it is not sticky
    return OutOfDeviceMemory(bytes);
  }
  RETURN_IF_ERROR(Check(error, "allocating memory"));
  return Buffer(data, bytes, Device::kCuda, std::make_shared<DeviceDeleter>());
}

absl::StatusOr<DeviceMemory> DeviceContext::Memory() const { return MemoryOfCudaDevice(info_.index); }

absl::StatusOr<Buffer> DeviceContext::Upload(const void* host, int64_t bytes) {
  ASSIGN_OR_RETURN(Buffer buffer, Allocate(bytes));
  if (bytes > 0) {
    RETURN_IF_ERROR(Check(cudaMemcpyAsync(buffer.data(), host, static_cast<size_t>(bytes),
                                          cudaMemcpyHostToDevice, stream_),
                          "copying to the device"));
    RETURN_IF_ERROR(Synchronize());
  }
  return buffer;
}

absl::Status DeviceContext::Synchronize() {
  return Check(cudaStreamSynchronize(stream_), "waiting for the device");
}

absl::Status DeviceContext::Check(cudaError_t error, const char* op) {
  if (error == cudaSuccess) return absl::OkStatus();
  cudaGetLastError();
  if (!IsOfOneCall(error)) healthy_ = false;
  return absl::InternalError(StrCat("CUDA, ", op, ": ", cudaGetErrorString(error)));
}

absl::StatusOr<void*> Scratch::TakeBytes(int64_t bytes) {
  const int64_t rounded = (std::max<int64_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
  const int64_t at = context_.scratch_used_;
  RETURN_IF_ERROR(context_.scratch_.Map(at, rounded + kOverreach));
  context_.scratch_used_ = at + rounded;
  return static_cast<void*>(context_.scratch_.data() + at);
}

}  // namespace longstride::kernels::cuda

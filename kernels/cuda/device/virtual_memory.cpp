#include "kernels/cuda/device/virtual_memory.h"

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <algorithm>

namespace longstride::kernels::cuda {
namespace {

// Large ranges are mapped in larger steps: a map call costs tens of microseconds.
constexpr int64_t kLargeRange = int64_t{8} << 30;
constexpr int64_t kLargeGranule = int64_t{16} << 20;

// The driver's functions, found through the runtime: nothing links the driver library, and a
// machine without a driver can still load the program.
struct Driver {
  decltype(&cuMemGetAllocationGranularity) granularity = nullptr;
  decltype(&cuMemAddressReserve) reserve = nullptr;
  decltype(&cuMemAddressFree) free = nullptr;
  decltype(&cuMemCreate) create = nullptr;
  decltype(&cuMemRelease) release = nullptr;
  decltype(&cuMemMap) map = nullptr;
  decltype(&cuMemUnmap) unmap = nullptr;
  decltype(&cuMemSetAccess) set_access = nullptr;
  bool complete = false;

  Driver() {
    complete = Find("cuMemGetAllocationGranularity", &granularity) &&
               Find("cuMemAddressReserve", &reserve) && Find("cuMemAddressFree", &free) &&
               Find("cuMemCreate", &create) && Find("cuMemRelease", &release) &&
               Find("cuMemMap", &map) && Find("cuMemUnmap", &unmap) &&
               Find("cuMemSetAccess", &set_access);
  }

 private:
  template <typename Function>
  static bool Find(const char* name, Function* function) {
    void* address = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion(name, &address, 12000, cudaEnableDefault, &found);
#else
    const cudaError_t error = cudaGetDriverEntryPoint(name, &address, cudaEnableDefault, &found);
#endif
    *function = reinterpret_cast<Function>(address);
    return error == cudaSuccess && found == cudaDriverEntryPointSuccess;
  }
};

const Driver& TheDriver() {
  static const Driver driver;
  return driver;
}

CUmemAllocationProp Properties(int device) {
  CUmemAllocationProp p = {};
  p.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  p.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  p.location.id = device;
  return p;
}

CUdeviceptr Address(const char* p) { return reinterpret_cast<CUdeviceptr>(p); }

}  // namespace

VirtualRange::~VirtualRange() {
  if (base_ == nullptr) return;
  Unmap(0, bytes_);
  TheDriver().free(Address(base_), static_cast<size_t>(bytes_));
}

absl::Status VirtualRange::Reserve(int device, int64_t bytes) {
  const Driver& driver = TheDriver();
  if (!driver.complete) {
    return absl::UnimplementedError("The NVIDIA driver has no virtual memory management.");
  }
  const CUmemAllocationProp properties = Properties(device);
  size_t least = 0;
  if (driver.granularity(&least, &properties, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED) !=
          CUDA_SUCCESS ||
      least == 0) {
    return absl::UnimplementedError("The device has no virtual memory management.");
  }
  device_ = device;
  granule_ = static_cast<int64_t>(least);
  if (bytes >= kLargeRange) granule_ = std::max(granule_, kLargeGranule / granule_ * granule_);
  const int64_t rounded = std::max<int64_t>(1, (bytes + granule_ - 1) / granule_) * granule_;
  CUdeviceptr address = 0;
  if (driver.reserve(&address, static_cast<size_t>(rounded), 0, 0, 0) != CUDA_SUCCESS) {
    return absl::ResourceExhaustedError(
        StrCat("The device has no address space for ", rounded, " bytes."));
  }
  base_ = reinterpret_cast<char*>(address);
  bytes_ = rounded;
  handles_.assign(static_cast<size_t>(rounded / granule_), 0);
  return absl::OkStatus();
}

absl::Status VirtualRange::Map(int64_t offset, int64_t bytes) {
  if (bytes <= 0) return absl::OkStatus();
  if (offset < 0 || bytes > bytes_ - offset) {
    return absl::InternalError(StrCat("device memory: bytes ", offset, " to ", offset + bytes,
                                      " of a reservation of ", bytes_));
  }
  const Driver& driver = TheDriver();
  const CUmemAllocationProp properties = Properties(device_);
  CUmemAccessDesc access = {};
  access.location = properties.location;
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  for (int64_t g = offset / granule_; g <= (offset + bytes - 1) / granule_; ++g) {
    uint64_t& slot = handles_[static_cast<size_t>(g)];
    if (slot != 0) continue;
    CUmemGenericAllocationHandle handle = 0;
    if (driver.create(&handle, static_cast<size_t>(granule_), &properties, 0) != CUDA_SUCCESS) {
      return absl::ResourceExhaustedError(
          StrCat("The device has no memory left for ", granule_, " more bytes."));
    }
    const CUdeviceptr at = Address(base_ + g * granule_);
    if (driver.map(at, static_cast<size_t>(granule_), 0, handle, 0) != CUDA_SUCCESS) {
      driver.release(handle);
      return absl::ResourceExhaustedError("The device cannot map memory.");
    }
    if (driver.set_access(at, static_cast<size_t>(granule_), &access, 1) != CUDA_SUCCESS) {
      driver.unmap(at, static_cast<size_t>(granule_));
      driver.release(handle);
      return absl::ResourceExhaustedError("The device cannot map memory.");
    }
    slot = handle;
    mapped_ += granule_;
  }
  return absl::OkStatus();
}

void VirtualRange::Unmap(int64_t offset, int64_t bytes) {
  const Driver& driver = TheDriver();
  const int64_t end = std::min(bytes_, offset + bytes) / granule_;
  for (int64_t g = (offset + granule_ - 1) / granule_; g < end; ++g) {
    uint64_t& slot = handles_[static_cast<size_t>(g)];
    if (slot == 0) continue;
    driver.unmap(Address(base_ + g * granule_), static_cast<size_t>(granule_));
    driver.release(slot);
    slot = 0;
    mapped_ -= granule_;
  }
}

absl::Status PieceRange::Hold(int64_t offset, int64_t bytes) {
  if (piece_ == 0) {
    piece_ = bytes;
    held_.assign(static_cast<size_t>(range_.bytes() / piece_), false);
    held_in_granule_.assign(static_cast<size_t>(range_.bytes() / range_.granule_bytes()), 0);
  }
  if (bytes != piece_ || offset % piece_ != 0) {
    return absl::InternalError(StrCat("device memory: ", bytes, " bytes at ", offset,
                                      " of a reservation of pieces of ", piece_));
  }
  const auto index = static_cast<size_t>(offset / piece_);
  if (index < held_.size() && held_[index]) return absl::OkStatus();
  RETURN_IF_ERROR(range_.Map(offset, bytes));
  held_[index] = true;
  const int64_t granule = range_.granule_bytes();
  for (int64_t g = offset / granule; g <= (offset + piece_ - 1) / granule; ++g) {
    ++held_in_granule_[static_cast<size_t>(g)];
  }
  return absl::OkStatus();
}

void PieceRange::Drop(int64_t offset, int64_t bytes) {
  if (piece_ == 0) return;
  const int64_t granule = range_.granule_bytes();
  const int64_t end = std::min((offset + bytes) / piece_, static_cast<int64_t>(held_.size()));
  for (int64_t i = (offset + piece_ - 1) / piece_; i < end; ++i) {
    if (!held_[static_cast<size_t>(i)]) continue;
    held_[static_cast<size_t>(i)] = false;
    for (int64_t g = i * piece_ / granule; g <= ((i + 1) * piece_ - 1) / granule; ++g) {
      if (--held_in_granule_[static_cast<size_t>(g)] == 0) range_.Unmap(g * granule, granule);
    }
  }
}

}  // namespace longstride::kernels::cuda

// What the GPU tests share: a device context or a skip, uploads that live as long as the test.
#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "kernels/cuda/device/context.h"
#include "tests/kernels/test_util.h"
#include "tests/testing/kernel_choice.h"

namespace longstride::kernels::cuda {

class GpuTest : public SeededTest {
 protected:
  void SetUp() override {
    auto context = DeviceContext::Create(0, TestKernels());
    if (!context.ok()) GTEST_SKIP() << context.status().message();
    context_ = *std::move(context);
  }

  template <typename T>
  T* OnDevice(const std::vector<T>& host) {
    auto buffer = context_->Upload(host.data(), static_cast<int64_t>(host.size() * sizeof(T)));
    EXPECT_TRUE(buffer.ok()) << buffer.status();
    if (!buffer.ok()) return nullptr;
    buffers_.push_back(*std::move(buffer));
    return buffers_.back().as<T>();
  }
  // Bytes that no kernel wrote: NaN in every float type.
  void* Poisoned(int64_t bytes) {
    auto buffer = context_->Allocate(bytes);
    EXPECT_TRUE(buffer.ok()) << buffer.status();
    if (!buffer.ok()) return nullptr;
    EXPECT_EQ(cudaMemset(buffer->data(), 0xff, static_cast<size_t>(bytes)), cudaSuccess);
    // The context's stream does not wait for the one that memset runs on.
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    buffers_.push_back(*std::move(buffer));
    return buffers_.back().data();
  }
  template <typename T>
  std::vector<T> Read(const void* device, int64_t count) {
    std::vector<T> host(static_cast<size_t>(count));
    EXPECT_TRUE(context_->Synchronize().ok());
    EXPECT_EQ(cudaMemcpy(host.data(), device, host.size() * sizeof(T), cudaMemcpyDeviceToHost),
              cudaSuccess);
    return host;
  }
  void FreeBuffers() { buffers_.clear(); }

  static TensorView DeviceMatrix(const void* data, DType dtype, int64_t rows, int64_t cols) {
    const int64_t dims[2] = {rows, cols};
    return TensorView::Contiguous(data, dtype, dims, 2, Device::kCuda);
  }

  std::unique_ptr<DeviceContext> context_;
  std::vector<Buffer> buffers_;
};

// 16-bit types to and from float.
inline std::vector<uint16_t> To16(const std::vector<float>& v, DType type) {
  std::vector<uint16_t> out(v.size());
  for (size_t i = 0; i < v.size(); ++i) {
    out[i] = type == DType::kF16 ? FloatToHalf(v[i]) : FloatToBfloat16(v[i]);
  }
  return out;
}
inline std::vector<float> From16(const std::vector<uint16_t>& v, DType type) {
  std::vector<float> out(v.size());
  for (size_t i = 0; i < v.size(); ++i) {
    out[i] = type == DType::kF16 ? HalfToFloat(v[i]) : Bfloat16ToFloat(v[i]);
  }
  return out;
}

// ‖got - want‖ / ‖want‖; infinite if anything is not a number.
inline double RelativeError(const std::vector<float>& got, const std::vector<double>& want) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double d = static_cast<double>(got[i]) - want[i];
    if (!std::isfinite(d)) return INFINITY;
    difference += d * d;
    norm += want[i] * want[i];
  }
  return norm == 0 ? std::sqrt(difference) : std::sqrt(difference / norm);
}

}  // namespace longstride::kernels::cuda

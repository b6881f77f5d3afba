#include "kernels/cuda/ops.h"
#include "kernels/reference/reference_backend.h"
#include "tests/kernels/cuda/gpu_test.h"

namespace longstride::kernels::cuda {
namespace {

using ActivationGpuTest = GpuTest;

// bf16 gates give the reference's result for the same numbers, rounded, in place of the gate.
TEST_F(ActivationGpuTest, Bfloat16GatesAreActivatedInPlace) {
  const auto reference = MakeReference();
  for (const int64_t dim : {1, 6, 64, 2052}) {
    for (const Activation activation :
         {Activation::kSilu, Activation::kGeluTanh, Activation::kGelu, Activation::kSwigluOai}) {
      const int64_t rows = RandomInt(1, 40);
      std::vector<float> both =
          From16(To16(Normal(rows * 2 * dim, 4.0f), DType::kBF16), DType::kBF16);
      uint16_t* device = OnDevice(To16(both, DType::kBF16));
      TensorView gate = DeviceMatrix(device, DType::kBF16, rows, dim), up = gate;
      gate.strides[0] = up.strides[0] = 2 * dim;
      up.data = device + dim;
      ASSERT_EQ(
          LaunchGatedActivation({.gate = gate, .up = up, .activation = activation, .out = gate},
                                context_->stream()),
          cudaSuccess);
      const std::vector<float> got = From16(Read<uint16_t>(device, rows * 2 * dim), DType::kBF16);
      TensorView host_gate = View2(both, rows, dim), host_up = host_gate;
      host_gate.strides[0] = host_up.strides[0] = 2 * dim;
      host_up.data = both.data() + dim;
      std::vector<float> want(rows * dim);
      ASSERT_LS_OK(reference->GatedActivation({.gate = host_gate,
                                               .up = host_up,
                                               .activation = activation,
                                               .out = View2(want, rows, dim)}));
      for (int64_t i = 0; i < rows * dim; ++i) {
        const int64_t at = i / dim * 2 * dim + i % dim;
        ASSERT_NEAR(got[at], want[i], std::fabs(want[i]) / 200 + 1e-5);
        ASSERT_EQ(got[at + dim], both[at + dim]);  // the other half stays
      }
      FreeBuffers();
    }
  }
}

}  // namespace
}  // namespace longstride::kernels::cuda

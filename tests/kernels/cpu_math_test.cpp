// The stated errors of the vectorised elementary functions, over their whole range.

#include <bit>
#include <cmath>

#include "kernels/cpu/cpu_info.h"
#include "kernels/cpu/isa.h"
#include "tests/kernels/test_util.h"

namespace longstride::kernels::cpu {
namespace {

struct Isa {
  const char* name;
  const CpuKernels* kernels;
};

std::vector<Isa> UsableIsas() {
  const CpuFeatures f = DetectCpuFeatures();
  std::vector<Isa> isas = {{"portable", PortableKernels()}};
  if (f.avx2) isas.push_back({"avx2", Avx2Kernels()});
  if (f.avx_vnni) isas.push_back({"avxvnni", AvxVnniKernels()});
  if (f.avx512_vnni) isas.push_back({"avx512vnni", Avx512VnniKernels()});
  return isas;
}

// The distance to the exact value in units of the last place of a float of that size.
double Ulps(float got, double want) {
  const double size = std::max(std::fabs(want), 1.2e-38);
  return std::fabs(got - want) / std::ldexp(1.0, std::ilogb(size) - 23);
}

TEST(CpuMathTest, ExpIsWithin2Ulps) {
  for (const Isa& isa : UsableIsas()) {
    double worst = 0.0;
    std::vector<float> x, y;
    for (double v = -86.9; v < 88.7; v += 0.00037) x.push_back(static_cast<float>(v));
    for (double v = 1e-9; v < 1e-2; v *= 1.003) {
      x.push_back(static_cast<float>(v));
      x.push_back(static_cast<float>(-v));
    }
    y.resize(x.size());
    isa.kernels->exp(x.data(), static_cast<int64_t>(x.size()), y.data());
    for (size_t i = 0; i < x.size(); ++i)
      worst = std::max(worst, Ulps(y[i], std::exp(double{x[i]})));
    EXPECT_LE(worst, 2.0) << isa.name;
  }
}

TEST(CpuMathTest, ExpKeepsItsLimits) {
  for (const Isa& isa : UsableIsas()) {
    const float x[8] = {0.0f, -0.0f, -87.0f, -INFINITY, 89.0f, INFINITY, NAN, 1e30f};
    float y[8];
    isa.kernels->exp(x, 8, y);
    EXPECT_EQ(y[0], 1.0f);
    EXPECT_EQ(y[1], 1.0f);
    EXPECT_EQ(y[2], 0.0f);
    EXPECT_EQ(y[3], 0.0f);
    for (const int i : {4, 5, 7}) EXPECT_GT(y[i], 3e38f) << isa.name;
    EXPECT_TRUE(std::isnan(y[6])) << isa.name;
  }
}

TEST(CpuMathTest, TanhIsWithin4Ulps) {
  for (const Isa& isa : UsableIsas()) {
    double worst = 0.0;
    std::vector<float> x, y;
    for (double v = 1e-30; v < 100; v *= 1.0007) {
      x.push_back(static_cast<float>(v));
      x.push_back(static_cast<float>(-v));
    }
    y.resize(x.size());
    isa.kernels->tanh(x.data(), static_cast<int64_t>(x.size()), y.data());
    for (size_t i = 0; i < x.size(); ++i)
      worst = std::max(worst, Ulps(y[i], std::tanh(double{x[i]})));
    EXPECT_LE(worst, 4.0) << isa.name;
    const float special[3] = {NAN, INFINITY, -INFINITY};
    float out[3];
    isa.kernels->tanh(special, 3, out);
    EXPECT_TRUE(std::isnan(out[0]));
    EXPECT_EQ(out[1], 1.0f);
    EXPECT_EQ(out[2], -1.0f);
  }
}

}  // namespace
}  // namespace longstride::kernels::cpu

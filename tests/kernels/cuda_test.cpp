// What only a device shows: the sentence where there is none, reservations that take memory as
// they are committed, and the two numerics classes of attention.
#include "kernels/cuda/device_info.h"
#include "tests/kernels/attention_case.h"
#include "tests/kernels/mirrored_backend.h"
#include "tests/testing/kernel_choice.h"

namespace longstride::kernels {
namespace {

TEST(CudaBackendTest, SaysWhyItCannotStart) {
  const auto backend = MakeBackend(BackendKind::kCuda, {.kernels = TestKernels()});
  if (backend.ok()) {
    EXPECT_EQ((*backend)->device(), Device::kCuda);
    EXPECT_EQ((*backend)->Describe().rfind("cuda (", 0), 0u) << (*backend)->Describe();
    return;
  }
  EXPECT_EQ(backend.status().code(), absl::StatusCode::kUnavailable) << backend.status();
  EXPECT_NE(ToStd(backend.status().message()).find("CPU backend"), std::string::npos)
      << backend.status();
}

class CudaTest : public SeededTest {
 protected:
  void SetUp() override {
    const absl::StatusOr<CudaDeviceInfo> device = FindCudaDevice(0);
    if (!device.ok()) GTEST_SKIP() << device.status().message();
    EXPECT_GE(device->major, 8);
    EXPECT_GT(device->memory_bytes, int64_t{1} << 30);
    EXPECT_GT(device->multiprocessors, 0);
  }
};

TEST_F(CudaTest, ADeviceThatDoesNotExistIsNamed) {
  const absl::Status status = FindCudaDevice(9999).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
}

TEST_F(CudaTest, ReservationsTakeMemoryAsTheyAreCommitted) {
  const auto backend = *MakeBackend(BackendKind::kCuda, {.kernels = TestKernels()});
  constexpr int32_t kHeads = 2, kDim = 64, kPages = 1 << 18;
  const int64_t head_bytes = KvHeadPageBytes(KvDType::kF32, kDim);
  Buffer memory = *backend->Reserve(2 * kHeads * head_bytes * kPages);
  ASSERT_GT(memory.bytes(), int64_t{1} << 33);
  const PagedKv cache = {memory.data(),
                         memory.as<char>() + kHeads * head_bytes,
                         2 * kHeads * head_bytes,
                         head_bytes,
                         kPages,
                         kHeads,
                         kDim,
                         KvDType::kF32};
  std::vector<float> rows = Normal(kHeads * kDim);
  const TensorView view = *backend->Resident(View3(rows, 1, kHeads, kDim));
  const int64_t before = backend->Memory()->free_bytes;
  for (const int32_t page : {kPages - 1, 0, 70000}) {
    const int32_t slot = 63;
    ASSERT_LS_OK(memory.Commit(page * cache.page_stride, cache.page_stride));
    ASSERT_LS_OK(backend->BeginStep({}));
    ASSERT_LS_OK(backend->KvWrite(
        {.k = view, .v = view, .cache = cache, .page_ids = &page, .slots = &slot}));
    const char* at = memory.as<char>() + page * cache.page_stride + head_bytes + 63 * kDim * 4;
    TensorView stored = TensorView::Matrix(at, DType::kF32, 1, kDim);
    stored.device = Device::kCuda;
    const TensorView host = *backend->ToHost(stored);
    ASSERT_LS_OK(backend->EndStep());
    for (int32_t c = 0; c < kDim; ++c) EXPECT_EQ(host.ptr<float>()[c], rows[kDim + c]);
  }
  const int64_t left = backend->Memory()->free_bytes;
  const int64_t taken = before - left;
  EXPECT_GT(taken, 0);
  EXPECT_LT(taken, int64_t{1} << 28);
  // And give it back page by page, each far smaller than what the device maps at a time.
  for (const int32_t page : {kPages - 1, 0, 70000}) {
    memory.Decommit(page * cache.page_stride, cache.page_stride);
  }
  EXPECT_GE(backend->Memory()->free_bytes - left, int64_t{32} << 20);
}

// Shapes of the fast kernels, of the portable ones and of the float32 one.
struct ClassShape {
  int32_t q_heads, kv_heads, dim;
  KvDType dtype;
  int32_t window, sink_tokens;
};

class CudaClassTest : public CudaTest, public testing::WithParamInterface<ClassShape> {
 protected:
  // Rows [first, kv_len) of sequences of these lengths, dense lists.
  AttentionCase Case(const std::vector<std::pair<int64_t, int64_t>>& lengths) {
    const ClassShape& shape = GetParam();
    AttentionCase c;
    c.q_heads = shape.q_heads;
    c.kv_heads = shape.kv_heads;
    c.dim = shape.dim;
    c.dtype = shape.dtype;
    c.scale = 0.7f / std::sqrt(static_cast<float>(c.dim));
    c.edges = {EdgeRule{.causal = 1, .window = shape.window, .sink_tokens = shape.sink_tokens}};
    for (const auto& [kv_len, first] : lengths) {
      CaseSequence s;
      s.kv_len = kv_len;
      s.first_new = first;
      s.k = Normal(kv_len * c.kv_heads * c.dim, 2.0f);
      s.v = Normal(kv_len * c.kv_heads * c.dim);
      c.sequences.push_back(std::move(s));
    }
    FillCache(c, *backend_, rng);
    c.q = Normal(c.rows() * c.q_heads * c.dim);
    List(c);
    return c;
  }
  static void List(AttentionCase& c) {
    MakeTiles(c);
    c.list_begin.clear();
    c.list_count.clear();
    c.entries.clear();
    for (const QueryTile& t : c.tiles) {
      c.list_begin.push_back(static_cast<int64_t>(c.entries.size()));
      for (int32_t e = 0; e <= (t.first_position + t.num_rows - 1) / 64; ++e) {
        c.entries.push_back(e);
      }
      c.list_count.push_back(static_cast<int32_t>(c.entries.size() - c.list_begin.back()));
    }
  }
  AttentionResult Run(AttentionCase& c, const std::vector<uint8_t>& generated) {
    AttentionResult r;
    AttentionParams p = ParamsOf(c, r);
    p.generated = generated.data();
    const absl::Status status = backend_->Attention(p);
    EXPECT_TRUE(status.ok()) << status;
    return r;
  }
  // The same problem, but only the rows from `first` of sequence s.
  static AttentionCase Rows(const AttentionCase& c, size_t s, int64_t first) {
    AttentionCase part = c;
    int64_t row = 0;
    for (size_t i = 0; i < s; ++i) row += c.sequences[i].kv_len - c.sequences[i].first_new;
    row += first - c.sequences[s].first_new;
    part.sequences = {c.sequences[s]};
    part.sequences[0].first_new = first;
    part.kv_lens = {c.kv_lens[s]};
    part.pages.assign(c.pages.begin() + s * c.pages_stride,
                      c.pages.begin() + (s + 1) * c.pages_stride);
    const int64_t width = int64_t{c.q_heads} * c.dim;
    part.q.assign(c.q.begin() + row * width,
                  c.q.begin() + (row + c.sequences[s].kv_len - first) * width);
    List(part);
    return part;
  }

  std::unique_ptr<Backend> backend_ = MakeByName("cuda");
};

TEST_P(CudaClassTest, MixedStepsMatchTheFormula) {
  AttentionCase c = Case({{700, 500}, {1300, 1299}, {129, 0}, {64, 63}, {1, 0}, {2300, 2290}});
  const AttentionResult got = Run(c, {0, 1, 0, 1, 1, 1});
  const double tolerance = c.dtype == KvDType::kBF16 ? 4e-2 : c.dtype == KvDType::kQ8 ? 2e-5 : 5e-3;
  ExpectNear(c, got, NaiveAttention(c), tolerance);
}

TEST_P(CudaClassTest, GeneratedRowsHaveTheSameBitsAloneTogetherAndRecomputed) {
  AttentionCase c = Case({{700, 640}, {1300, 1299}, {70, 60}, {2300, 2200}});
  const AttentionResult all = Run(c, {1, 1, 1, 1});
  const int64_t width = int64_t{c.q_heads} * c.dim;
  int64_t row = 0;
  for (size_t s = 0; s < c.sequences.size(); ++s) {
    for (int64_t i = c.sequences[s].first_new; i < c.sequences[s].kv_len; ++i, ++row) {
      if (i % 7 != 0 && i + 1 != c.sequences[s].kv_len) continue;
      AttentionCase alone = Rows(c, s, i);
      // Only the row itself: keys end behind it.
      alone.sequences[0].kv_len = i + 1;
      alone.kv_lens[0] = static_cast<int32_t>(i + 1);
      alone.q.resize(width);
      List(alone);
      const AttentionResult got = Run(alone, {1});
      ASSERT_EQ(std::memcmp(got.out.data(), &all.out[row * width], width * 4), 0)
          << "sequence " << s << " position " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, CudaClassTest,
    testing::Values(
        ClassShape{4, 1, 256, KvDType::kF16, 0, 0}, ClassShape{4, 1, 256, KvDType::kF16, 512, 0},
        ClassShape{9, 3, 64, KvDType::kF16, 0, 0}, ClassShape{8, 2, 128, KvDType::kBF16, 300, 70},
        ClassShape{32, 1, 64, KvDType::kF16, 0, 0}, ClassShape{6, 2, 80, KvDType::kF16, 200, 4},
        ClassShape{4, 2, 96, KvDType::kBF16, 0, 0}, ClassShape{8, 4, 192, KvDType::kF16, 0, 0},
        ClassShape{4, 2, 112, KvDType::kF16, 0, 0}, ClassShape{8, 2, 128, KvDType::kFp8, 300, 70},
        ClassShape{9, 3, 64, KvDType::kFp8, 0, 0}, ClassShape{4, 1, 256, KvDType::kFp8, 0, 0},
        ClassShape{6, 2, 80, KvDType::kFp8, 200, 4}, ClassShape{8, 4, 192, KvDType::kFp8, 0, 0},
        ClassShape{4, 2, 112, KvDType::kFp8, 0, 0}, ClassShape{4, 2, 64, KvDType::kQ8, 0, 0}));

}  // namespace
}  // namespace longstride::kernels

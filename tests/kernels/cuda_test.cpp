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
  int32_t latent_value_dim = 0;  // 0: values of their own
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
    if (shape.latent_value_dim > 0) MakeLatent(c, shape.latent_value_dim);
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
  const double of_values = c.dtype == KvDType::kBF16 ? 4e-2 : c.dtype == KvDType::kQ8 ? 2e-5 : 5e-3;
  // Keys deviate twice as far as the values that the tolerance is for.
  const double tolerance = c.value_dim > 0 ? 2 * of_values : of_values;
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
        ClassShape{4, 2, 112, KvDType::kFp8, 0, 0}, ClassShape{4, 2, 64, KvDType::kQ8, 0, 0},
        ClassShape{16, 1, 576, KvDType::kBF16, 0, 0, 512},
        ClassShape{5, 1, 576, KvDType::kBF16, 300, 70, 512},
        ClassShape{3, 1, 576, KvDType::kF16, 0, 0, 512}));

// DeepSeek's shape: up to 128 query heads on one head of 576 channels, the first 512 of them value.
class CudaLatentTest : public CudaTest {
 protected:
  void AddSequence(AttentionCase& c, int64_t kv_len, int64_t new_rows) {
    CaseSequence s;
    s.kv_len = kv_len;
    s.first_new = kv_len - std::min(kv_len, new_rows);
    s.k = s.v = Normal(kv_len * c.dim, 2.0f);
    c.sequences.push_back(std::move(s));
  }
  AttentionCase Case(int32_t heads) {
    AttentionCase c;
    c.q_heads = heads;
    c.dim = 576;
    c.dtype = KvDType::kBF16;
    c.scale = 0.7f / std::sqrt(576.0f);
    c.edges = {EdgeRule{}};
    return c;
  }
};

TEST_F(CudaLatentTest, AwkwardSizesMatchTheFormula) {
  const auto backend = MakeByName("cuda");
  const std::vector<int64_t> lengths = {1, 2, 63, 64, 65, 127, 129, 300, 1025};
  const std::vector<int32_t> head_counts = {1, 16, 20, 64, 96, 128};
  for (int trial = 0; trial < 12; ++trial) {
    AttentionCase c = Case(head_counts[static_cast<size_t>(trial) % head_counts.size()]);
    c.list_heads = RandomInt(0, 3) == 0 ? ListHeads::kPerQHead
                   : RandomInt(0, 1)    ? ListHeads::kPerKvHead
                                        : ListHeads::kShared;
    c.entry_tokens = RandomInt(0, 1) == 1 ? 64 : 128;
    c.query_tile = 1 << RandomInt(4, 7);
    c.softcap = RandomInt(0, 2) == 0 ? 5.0f : 0.0f;
    c.value_dim = 512;
    if (RandomInt(0, 2) == 0) c.sinks = Normal(c.q_heads);
    c.edges.clear();
    for (int32_t h = 0; h < c.num_list_heads(); ++h) {
      EdgeRule e;
      if (RandomInt(0, 2) == 0) e.window = RandomInt(1, 200), e.sink_tokens = RandomInt(0, 70);
      c.edges.push_back(e);
    }
    std::vector<uint8_t> generated;
    for (int s = 0; s < 5; ++s) {
      const int64_t length = lengths[static_cast<size_t>(RandomInt(0, 8))];
      AddSequence(c, length, RandomInt(0, 1) == 1 ? 1 : RandomInt(1, 9));
      generated.push_back(static_cast<uint8_t>(RandomInt(0, 1)));
    }
    MakeTiles(c);
    std::bernoulli_distribution keep(0.6), none(0.15);
    for (int32_t h = 0; h < c.num_list_heads(); ++h) {
      for (const QueryTile& tile : c.tiles) {
        c.list_begin.push_back(static_cast<int64_t>(c.entries.size()));
        const int64_t last = (c.sequences[tile.sequence].kv_len - 1) / c.entry_tokens;
        if (!none(rng)) {
          for (int32_t e = 0; e <= last; ++e) {
            if (keep(rng)) c.entries.push_back(e);
          }
        }
        c.list_count.push_back(static_cast<int32_t>(c.entries.size() - c.list_begin.back()));
      }
    }
    c.q = Normal(c.rows() * c.q_heads * c.dim);
    FillCache(c, *backend, rng);
    MakeLatent(c, 512);
    AttentionResult got;
    AttentionParams p = ParamsOf(c, got);
    p.generated = generated.data();
    ASSERT_LS_OK(backend->Attention(p));
    SCOPED_TRACE(testing::Message() << "trial " << trial << " heads " << c.q_heads << " entry "
                                    << c.entry_tokens << " lists " << c.num_list_heads());
    ExpectNear(c, got, NaiveAttention(c), 8e-2);
    if (HasFatalFailure() || HasNonfatalFailure()) return;
  }
}

// Lists long enough for both sizes of parts.
TEST_F(CudaLatentTest, LongListsDecodeAsTheFormulaSays) {
  const auto backend = MakeByName("cuda");
  for (const int64_t kv_len : {int64_t{64} * 2048, int64_t{64} * 2048 + 1}) {
    AttentionCase c = Case(2);
    AddSequence(c, kv_len, 1);
    MakeTiles(c);
    c.list_begin = {0};
    for (int32_t e = 0; e <= (kv_len - 1) / 64; ++e) c.entries.push_back(e);
    c.list_count = {static_cast<int32_t>(c.entries.size())};
    c.q = Normal(c.q_heads * c.dim);
    FillCache(c, *backend, rng);
    MakeLatent(c, 512);
    AttentionResult got;
    AttentionParams p = ParamsOf(c, got);
    const uint8_t generated = 1;
    p.generated = &generated;
    ASSERT_LS_OK(backend->Attention(p));
    ExpectNear(c, got, NaiveAttention(c), 1e-2);
  }
}

// Page ids above 2^20, whose bytes lie beyond 2^36: bit for bit what low ones give.
TEST_F(CudaLatentTest, FarPagesAreAddressedIn64Bits) {
  constexpr int32_t kHeads = 128, kDim = 576, kLength = 150;
  constexpr int32_t kPages = (1 << 20) + 64;
  const auto backend = *MakeBackend(BackendKind::kCuda, {.kernels = TestKernels()});
  const int64_t bytes = KvHeadPageBytes(KvDType::kBF16, kDim);
  Buffer memory = *backend->Reserve(bytes * kPages);
  const PagedKv cache = {.k = memory.data(),
                         .v = memory.data(),
                         .page_stride = bytes,
                         .head_stride = bytes,
                         .num_pages = kPages,
                         .num_heads = 1,
                         .head_dim = kDim,
                         .dtype = KvDType::kBF16};
  std::vector<float> keys = Normal(kLength * kDim, 2.0f), q = Normal(2 * kHeads * kDim);
  const TensorView k = *backend->Resident(View3(keys, kLength, 1, kDim));
  std::vector<float> out(2 * kHeads * kDim);
  std::vector<float> results[2];
  const std::vector<int32_t> pages[2] = {{3, 0, 2}, {kPages - 1, (1 << 20) + 1, kPages - 7}};
  const QueryTile tiles[2] = {{0, 0, 1, kLength - 1}, {1, 1, 1, kLength - 1}};
  for (const bool far : {false, true}) {
    std::vector<int32_t> table = pages[far], ids, slots;
    table.insert(table.end(), pages[far].begin(), pages[far].end());
    for (const int32_t page : pages[far]) {
      ASSERT_LS_OK(memory.Commit(page * bytes, bytes));
    }
    for (int32_t j = 0; j < kLength; ++j) {
      ids.push_back(pages[far][static_cast<size_t>(j / kPageTokens)]);
      slots.push_back(j % kPageTokens);
    }
    const int64_t begins[2] = {0, 0};
    const int32_t counts[2] = {3, 3}, entries[3] = {0, 1, 2}, lengths[2] = {kLength, kLength};
    const uint8_t generated[2] = {0, 1};
    const EdgeRule edge;
    AttentionParams p;
    p.q = *backend->Resident(View3(q, 2, kHeads, kDim));
    p.out = *backend->Resident(View3(out, 2, kHeads, kDim));
    p.cache = cache;
    p.page_table = {table.data(), 3, 2};
    p.kv_lens = lengths;
    p.generated = generated;
    p.selection.num_tiles = 2;
    p.selection.tiles = tiles;
    p.selection.list_begin = begins;
    p.selection.list_count = counts;
    p.selection.entries = entries;
    p.selection.num_entries = 3;
    p.selection.edges = &edge;
    p.scale = 0.03f;
    p.value_dim = 512;
    ASSERT_LS_OK(backend->BeginStep({}));
    ASSERT_LS_OK(backend->KvWrite(
        {.k = k, .v = k, .cache = cache, .page_ids = ids.data(), .slots = slots.data()}));
    ASSERT_LS_OK(backend->Attention(p));
    const TensorView host = *backend->ToHost(p.out);
    ASSERT_LS_OK(backend->EndStep());
    const float* first = host.ptr<const float>();
    results[far].assign(first, first + out.size());
  }
  EXPECT_EQ(results[0], results[1]);
  EXPECT_NE(results[0], out);
}

}  // namespace
}  // namespace longstride::kernels

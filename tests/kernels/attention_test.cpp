#include "tests/kernels/attention_case.h"
#include "tests/kernels/mirrored_backend.h"

namespace longstride::kernels {
namespace {

constexpr double kTolerance = 2e-5;
// Tensor cores take queries and weights in the cache's 16-bit type.
constexpr double kHalfTolerance = 5e-3;
constexpr double kBfloat16Tolerance = 4e-2;

class AttentionTest : public SeededTest, public testing::WithParamInterface<const char*> {
 protected:
  void SetUp() override {
    backend_ = MakeByName(GetParam());
    if (backend_ == nullptr) GTEST_SKIP() << "this machine has no " << GetParam();
  }

  void AddSequence(AttentionCase& c, int64_t kv_len, int64_t new_rows) {
    CaseSequence s;
    s.kv_len = kv_len;
    s.first_new = kv_len - new_rows;
    s.k = Normal(kv_len * c.kv_heads * c.dim, 2.0f);
    s.v = Normal(kv_len * c.kv_heads * c.dim);
    c.sequences.push_back(std::move(s));
  }

  // Lists for every (list head, tile): each entry up to the sequence's end with probability
  // `density`, some padding where `padding`.
  void RandomLists(AttentionCase& c, double density, bool padding) {
    std::bernoulli_distribution keep(density), pad(padding ? 0.2 : 0.0);
    c.list_begin.clear();
    c.list_count.clear();
    c.entries.clear();
    for (int32_t h = 0; h < c.num_list_heads(); ++h) {
      for (const QueryTile& tile : c.tiles) {
        c.list_begin.push_back(static_cast<int64_t>(c.entries.size()));
        const int64_t kv_len = c.sequences[tile.sequence].kv_len;
        for (int32_t e = 0; e <= (kv_len - 1) / c.entry_tokens; ++e) {
          if (pad(rng)) c.entries.push_back(kNoEntry);
          if (keep(rng)) c.entries.push_back(e);
        }
        c.list_count.push_back(static_cast<int32_t>(c.entries.size() - c.list_begin.back()));
      }
    }
  }

  double Tolerance(const AttentionCase& c) const {
    if (std::string(GetParam()) != "cuda") return kTolerance;
    return c.dtype == KvDType::kF16 || c.dtype == KvDType::kFp8 ? kHalfTolerance
           : c.dtype == KvDType::kBF16                          ? kBfloat16Tolerance
                                                                : kTolerance;
  }

  EdgeRule RandomEdge() {
    EdgeRule e;
    const bool on_gpu = std::string(GetParam()) == "cuda";
    const int kind = RandomInt(0, on_gpu ? 5 : 7);  // windows that reach ahead: not on a GPU
    e.causal = kind != 4 && kind < 6;
    if (kind == 1 || kind == 2 || kind >= 6) e.window = RandomInt(1, 200);
    if (kind == 2 || kind == 7) e.sink_tokens = RandomInt(1, 70);
    if (kind == 3) e.chunk = RandomInt(1, 150);
    if (kind == 5) e.window = 1 << RandomInt(0, 7);
    return e;
  }

  AttentionCase RandomCase() {
    AttentionCase c;
    c.kv_heads = RandomInt(1, 3);
    c.q_heads = c.kv_heads * RandomInt(1, 5);
    c.dim = std::vector<int32_t>{8, 24, 64, 80, 100, 128, 256}[RandomInt(0, 6)];
    c.dtype = static_cast<KvDType>(RandomInt(0, 4));
    c.list_heads = static_cast<ListHeads>(RandomInt(0, 2));
    c.entry_tokens = std::vector<int32_t>{1, 16, 32, 64, 128}[RandomInt(0, 4)];
    c.query_tile = std::vector<int32_t>{1, 16, 32, 64, 128}[RandomInt(0, 4)];
    c.scale = 0.7f / std::sqrt(static_cast<float>(c.dim));
    c.softcap = RandomInt(0, 2) == 0 ? 5.0f : 0.0f;
    const int sinks = RandomInt(0, 3);
    for (int32_t h = 0; h < c.q_heads && sinks > 0; ++h) {
      c.sinks.push_back(sinks == 1   ? 0.0f
                        : sinks == 2 ? -std::numeric_limits<float>::infinity()
                                     : static_cast<float>(RandomInt(-5, 25)));
    }
    for (int32_t h = 0; h < c.num_list_heads(); ++h) c.edges.push_back(RandomEdge());
    const int sequences = RandomInt(1, 4);
    for (int s = 0; s < sequences; ++s) {
      // Around page ends, and now and then past a segment's.
      int64_t kv_len = 64 * RandomInt(1, 5) + RandomInt(-1, 1);
      if (RandomInt(0, 3) == 0) kv_len = RandomInt(1, 40);
      if (RandomInt(0, 5) == 0) kv_len = 1024 * RandomInt(1, 2) + RandomInt(-2, 70);
      const int64_t new_rows = RandomInt(0, 2) == 0 ? 1 : RandomInt(1, 33);
      AddSequence(c, kv_len, std::min(kv_len, new_rows));
    }
    MakeTiles(c);
    RandomLists(c, RandomInt(0, 3) == 0 ? 1.0 : 0.5, RandomInt(0, 1) == 1);
    c.q = Normal(c.rows() * c.q_heads * c.dim);
    return c;
  }

  std::unique_ptr<Backend> backend_;
};

TEST_P(AttentionTest, MatchesNaiveDenseWithMask) {
  for (int trial = 0; trial < 60; ++trial) {
    AttentionCase c = RandomCase();
    FillCache(c, *backend_, rng);
    SCOPED_TRACE(testing::Message()
                 << "trial " << trial << ": heads " << c.q_heads << "/" << c.kv_heads << " dim "
                 << c.dim << " dtype " << KvDTypeName(c.dtype) << " entry " << c.entry_tokens
                 << " tile " << c.query_tile << " lists " << int{c.num_list_heads()} << " softcap "
                 << c.softcap << " window " << c.edges[0].window << " sinks "
                 << c.edges[0].sink_tokens << " chunk " << c.edges[0].chunk);
    ExpectNear(c, Attend(c, *backend_), NaiveAttention(c), Tolerance(c));
    if (HasFatalFailure() || HasNonfatalFailure()) return;
  }
}

// Latent attention: one head that all query heads read, whose keys are the values.
TEST_P(AttentionTest, KeysMayBeTheValues) {
  for (const KvDType dtype : {KvDType::kF32, KvDType::kF16, KvDType::kBF16, KvDType::kQ8}) {
    AttentionCase c;
    c.q_heads = RandomInt(1, 20);
    c.dim = 576;  // DeepSeek's
    c.dtype = dtype;
    c.scale = 0.7f / std::sqrt(static_cast<float>(c.dim));
    c.edges = {EdgeRule{}};
    AddSequence(c, 64 * RandomInt(1, 3) + RandomInt(-1, 1), RandomInt(1, 33));
    AddSequence(c, RandomInt(1, 200), 1);
    MakeTiles(c);
    RandomLists(c, 0.7, true);
    c.q = Normal(c.rows() * c.q_heads * c.dim);
    FillCache(c, *backend_, rng);
    MakeLatent(c, RandomInt(0, 1) == 1 ? 512 : 0);
    SCOPED_TRACE(KvDTypeName(dtype));
    // Keys deviate twice as far as the values that the tolerance is for.
    ExpectNear(c, Attend(c, *backend_), NaiveAttention(c), 2 * Tolerance(c));
  }
}

// Page ids whose byte offset passes 2^31 and 2^32; the memory is reserved, hardly any is touched.
TEST_P(AttentionTest, FarPagesAreAddressedIn64Bits) {
  if (std::string(GetParam()) == "cuda") GTEST_SKIP() << "the cache is too large to copy";
  AttentionCase c;
  c.kv_heads = 2;
  c.dim = 64;
  c.edges = {EdgeRule{}};
  AddSequence(c, 200, 3);
  MakeTiles(c);
  RandomLists(c, 1.0, false);
  c.q = Normal(c.rows() * c.q_heads * c.dim);
  const int64_t page_stride = 2 * KvHeadPageBytes(c.dtype, c.dim);
  FillCache(c, *backend_, rng, page_stride, 1 << 18);
  ASSERT_GT(c.pages[0] * 2 * page_stride, int64_t{1} << 33);
  ExpectNear(c, Attend(c, *backend_), NaiveAttention(c), kTolerance);
}

TEST_P(AttentionTest, NothingVisibleGivesZerosAndMinusInfinity) {
  AttentionCase c;
  c.dim = 32;
  c.edges = {EdgeRule{}};
  AddSequence(c, 70, 5);
  MakeTiles(c);
  c.list_begin = {0};
  c.list_count = {0};
  c.entries = {};
  c.q = Normal(c.rows() * c.q_heads * c.dim);
  FillCache(c, *backend_, rng);
  for (const bool sinks : {false, true}) {
    c.sinks.assign(sinks ? c.q_heads : 0, 3.0f);
    const AttentionResult r = Attend(c, *backend_);
    for (const float x : r.out) EXPECT_EQ(x, 0.0f);
    for (const float x : r.lse) EXPECT_EQ(x, -std::numeric_limits<float>::infinity());
    EXPECT_EQ(r.counters.keys_visible, 0);
    EXPECT_EQ(r.counters.keys_read, 0);
  }
}

TEST_P(AttentionTest, AVisibleKeyWithoutPageIsAnErrorAnInvisibleOneIsNot) {
  AttentionCase c;
  c.dim = 32;
  c.edges = {EdgeRule{.causal = 1, .window = 40}};
  AddSequence(c, 300, 4);
  MakeTiles(c);
  RandomLists(c, 1.0, false);
  c.q = Normal(c.rows() * c.q_heads * c.dim);
  FillCache(c, *backend_, rng);
  const NaiveResult want = NaiveAttention(c);
  c.pages[0] = kNoPage;  // far behind the window
  c.pages[1] = 1 << 30;
  ExpectNear(c, Attend(c, *backend_), want, kTolerance);
  c.pages[4] = kNoPage;
  AttentionResult r;
  const absl::Status status = backend_->Attention(ParamsOf(c, r));
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << status;
}

// Whole documents whose tokens read in both directions.
TEST_P(AttentionTest, WindowsReachAsFarAheadAsBack) {
  for (const int32_t window : {1, 5, 64, 65, 200, 2000}) {
    for (const int32_t sinks : {0, 3}) {
      AttentionCase c;
      c.dim = 16;
      c.query_tile = 64;
      c.edges = {EdgeRule{.causal = 0, .window = window, .sink_tokens = sinks}};
      for (const int64_t length : {int64_t{1}, int64_t{64}, window + int64_t{1}, int64_t{1100}}) {
        AddSequence(c, length, length);
      }
      MakeTiles(c);
      RandomLists(c, 1.0, false);
      c.q = Normal(c.rows() * c.q_heads * c.dim);
      FillCache(c, *backend_, rng);
      if (std::string(GetParam()) == "cuda") {
        AttentionResult r;
        EXPECT_TRUE(absl::IsUnimplemented(backend_->Attention(ParamsOf(c, r))));
        continue;
      }
      ExpectNear(c, Attend(c, *backend_), NaiveAttention(c), kTolerance);
    }
  }
}

TEST_P(AttentionTest, DescendingListsAreRefused) {
  for (const int32_t entry_tokens : {1, 16, 64, 128}) {
    AttentionCase c;
    c.dim = 32;
    c.entry_tokens = entry_tokens;
    c.edges = {EdgeRule{}};
    AddSequence(c, 300, 1);
    MakeTiles(c);
    c.list_begin = {0};
    c.list_count = {3};
    c.entries = {0, 2, 1};
    c.q = Normal(c.rows() * c.q_heads * c.dim);
    FillCache(c, *backend_, rng);
    AttentionResult r;
    EXPECT_EQ(backend_->Attention(ParamsOf(c, r)).code(), absl::StatusCode::kInternal);
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, AttentionTest,
                         testing::Values("reference", "portable", "avx2", "avxvnni", "avx512vnni",
                                         "cuda"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace longstride::kernels

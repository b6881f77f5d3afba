// What the public methods refuse, and the memory and the backends that they hand out.

#include "kernels/shape_check.h"
#include "tests/kernels/attention_case.h"

namespace longstride::kernels {
namespace {

class ContractTest : public testing::Test {
 protected:
  static void ExpectInternal(const absl::Status& status, const std::string& text) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << status;
    EXPECT_NE(std::string(status.message()).find(text), std::string::npos) << status;
  }
  std::unique_ptr<Backend> backend_ = MakeCpu("portable", 1);
  std::vector<float> a_ = std::vector<float>(64, 1.0f), b_ = a_;
};

TEST(ShapeCheckTest, BindsSymbolsAndNamesTheFirstMismatch) {
  std::vector<float> v(24);
  ShapeCheck ok("Op");
  ok.F32("x", View2(v, 4, 6), {"rows", "dim"}).F32("y", View2(v, 4, 6), {"rows", 6});
  EXPECT_TRUE(ok.status().ok());
  EXPECT_EQ(ok.Get("rows"), 4);
  ShapeCheck bad("Op");
  bad.F32("x", View2(v, 4, 6), {"rows", "dim"}).F32("y", View2(v, 6, 4), {"rows", "dim"});
  const std::string message(bad.status().message());
  EXPECT_NE(message.find("Op: y has shape [6, 4]"), std::string::npos) << message;
  ShapeCheck dtype("Op");
  dtype.F32("x", TensorView::Matrix(v.data(), DType::kF16, 2, 2), {2, 2});
  EXPECT_FALSE(dtype.ok());
  ShapeCheck null("Op");
  null.F32("x", TensorView::Matrix(nullptr, DType::kF32, 2, 2), {2, 2});
  EXPECT_FALSE(null.ok());
}

TEST(BufferTest, AllocatesAlignedAndMovesOwnership) {
  for (const int64_t bytes : {1, 63, 4096, 5 << 20}) {
    auto buffer = Buffer::AllocateHost(bytes);
    ASSERT_TRUE(buffer.ok());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % 64, 0u);
    std::memset(buffer->data(), 1, bytes);
    Buffer moved = *std::move(buffer);
    EXPECT_EQ(moved.bytes(), bytes);
    Buffer again;
    again = std::move(moved);
    EXPECT_EQ(moved.data(), nullptr);
    EXPECT_EQ(again.as<char>()[bytes - 1], 1);
  }
  EXPECT_EQ(Buffer::AllocateHost(-1).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Buffer::ReserveHost(-1).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Buffer::AllocateHost(INT64_MAX).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Buffer::ReserveHost(INT64_MAX).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(BufferTest, DecommittedMemoryReadsAsZeros) {
  Buffer buffer = *Buffer::ReserveHost(int64_t{1} << 36);
  char* p = buffer.as<char>();
  std::memset(p + (int64_t{1} << 35), 7, 3 * 65536);
  buffer.Decommit((int64_t{1} << 35) + 65536, 65536);
  EXPECT_EQ(p[(int64_t{1} << 35) + 65535], 7);
  EXPECT_EQ(p[(int64_t{1} << 35) + 65536], 0);
  EXPECT_EQ(p[(int64_t{1} << 35) + 2 * 65536 - 1], 0);
  EXPECT_EQ(p[(int64_t{1} << 35) + 2 * 65536], 7);
  // Parts of pages are left alone.
  buffer.Decommit((int64_t{1} << 35) + 1, 100);
  EXPECT_EQ(p[(int64_t{1} << 35) + 1], 7);
}

TEST_F(ContractTest, ShapesMustAgree) {
  ExpectInternal(
      backend_->Add({.x = View2(a_, 8, 8), .y = View2(b_, 4, 16), .out = View2(a_, 8, 8)}),
      "Add: y has shape [4, 16]");
  ExpectInternal(backend_->RmsNorm({.x = View2(a_, 8, 8),
                                    .weight = TensorView::Vector(b_.data(), DType::kF32, 7),
                                    .out = View2(a_, 8, 8)}),
                 "RmsNorm: weight has shape [7]");
  ExpectInternal(backend_->Linear({.x = View2(a_, 8, 8), .out = View2(b_, 8, 8)}), "no weight");
  const TensorView w = View2(a_, 8, 8);
  const auto weight = *backend_->PrepareLinear({&w, 1}, nullptr);
  ExpectInternal(
      backend_->Linear({.x = View2(b_, 4, 16), .weight = weight.get(), .out = View2(b_, 4, 8)}),
      "Linear: x has shape [4, 16]");
  const auto other = MakeReference();
  ExpectInternal(
      other->Linear({.x = View2(b_, 8, 8), .weight = weight.get(), .out = View2(b_, 8, 8)}),
      "another backend");
}

TEST_F(ContractTest, IndicesMustBeInRange) {
  const int32_t bad[] = {0, 8}, negative[] = {-1, 0};
  for (const int32_t* ids : {bad, negative}) {
    ExpectInternal(
        backend_->Embedding({.table = View2(a_, 8, 8), .ids = ids, .out = View2(b_, 2, 8)}),
        "ids inside the table");
    ExpectInternal(
        backend_->GatherRows({.x = View2(a_, 8, 8), .rows = ids, .out = View2(b_, 2, 8)}),
        "rows inside x");
  }
  std::vector<float> cache(2 * 2 * kPageTokens * 8);
  KvWriteParams p{.k = View3(a_, 2, 1, 8),
                  .v = View3(b_, 2, 1, 8),
                  .cache = {cache.data(), cache.data() + kPageTokens * 8, 4 * kPageTokens * 8 * 2,
                            4 * kPageTokens * 8, 2, 1, 8, KvDType::kF32}};
  const int32_t page_ids[] = {1, 2}, slots[] = {0, 64}, fine[] = {0, 1};
  p.page_ids = page_ids;
  p.slots = fine;
  ExpectInternal(backend_->KvWrite(p), "pages inside the cache");
  p.page_ids = fine;
  p.slots = slots;
  ExpectInternal(backend_->KvWrite(p), "slots inside a page");
  p.slots = fine;
  EXPECT_TRUE(backend_->KvWrite(p).ok());
}

TEST_F(ContractTest, SelectionsMustBeWellFormed) {
  const auto expect = [&](const std::string& text,
                          const std::function<void(AttentionParams&)>& spoil) {
    AttentionCase c;
    std::mt19937 rng(1);
    c.dim = 8;
    c.edges = {EdgeRule{}};
    CaseSequence s{.kv_len = 100, .first_new = 90, .k = std::vector<float>(800, 1.0f), .v = {}};
    s.v = s.k;
    c.sequences.push_back(s);
    c.q.assign(10 * 4 * 8, 1.0f);
    MakeTiles(c);
    c.list_begin = {0};
    c.list_count = {2};
    c.entries = {0, 1};
    FillCache(c, *backend_, rng);
    AttentionResult r;
    AttentionParams p = ParamsOf(c, r);
    EXPECT_TRUE(backend_->Attention(p).ok());
    spoil(p);
    ExpectInternal(backend_->Attention(p), text);
  };
  static QueryTile tile;
  static int64_t begin;
  static int32_t length;
  expect("entries of 1 token", [](AttentionParams& p) { p.selection.entry_tokens = 48; });
  expect("query tiles of", [](AttentionParams& p) { p.selection.query_tile = 256; });
  expect("one list head", [](AttentionParams& p) { p.selection.num_list_heads = 2; });
  expect("a tile inside", [](AttentionParams& p) {
    tile = p.selection.tiles[0];
    tile.num_rows = 11;
    p.selection.tiles = &tile;
  });
  expect("a tile inside", [](AttentionParams& p) {
    tile = p.selection.tiles[0];
    tile.sequence = 1;
    p.selection.tiles = &tile;
  });
  // Rows 90..99 cross position 96 if tiles have 32 rows.
  expect("a tile inside", [](AttentionParams& p) { p.selection.query_tile = 32; });
  expect("a list inside", [](AttentionParams& p) {
    begin = 1;
    p.selection.list_begin = &begin;
  });
  expect("lengths inside", [](AttentionParams& p) {
    length = 64 * static_cast<int32_t>(p.page_table.stride) + 1;
    p.kv_lens = &length;
  });
  expect("whole groups", [](AttentionParams& p) { p.cache.num_heads = 3; });
}

TEST_F(ContractTest, WeightsMustBeWholeBlocksOfOneWidth) {
  std::vector<uint8_t> bytes(4096);
  const TensorView ragged = TensorView::Matrix(bytes.data(), DType::kQ4_K, 2, 128);
  ExpectInternal(backend_->PrepareLinear({&ragged, 1}, nullptr).status(), "whole blocks");
  const TensorView two[] = {TensorView::Matrix(bytes.data(), DType::kQ8_0, 2, 64),
                            TensorView::Matrix(bytes.data(), DType::kQ8_0, 2, 32)};
  ExpectInternal(backend_->PrepareLinear(two, nullptr).status(), "part has shape");
  ExpectInternal(backend_->PrepareLinear({}, nullptr).status(), "1 or more parts");
  const TensorView ints = TensorView::Matrix(bytes.data(), DType::kI32, 2, 32);
  ExpectInternal(backend_->PrepareLinear({&ints, 1}, nullptr).status(), "dtype");
}

TEST(MakeBackendTest, RefusesWhatItCannotMake) {
  EXPECT_EQ(MakeBackend(BackendKind::kCpu, {.isa = "avx1024"}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(MakeBackend(BackendKind::kCpu, {.num_threads = -1}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(MakeBackend(BackendKind::kCpu, {.num_threads = 100000}).status().code(),
            absl::StatusCode::kInvalidArgument);
  const auto cuda = MakeBackend(BackendKind::kCuda, {});
  EXPECT_EQ(cuda.ok(), cuda.status().message().empty());
  const auto cpu = MakeBackend(BackendKind::kCpu, {.num_threads = 2, .isa = "portable"});
  ASSERT_TRUE(cpu.ok());
  EXPECT_EQ((*cpu)->Describe(), "cpu (portable, 2 threads)");
}

}  // namespace
}  // namespace longstride::kernels

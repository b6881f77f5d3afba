#include "model/decoder.h"

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/quant.h"
#include "tests/model/decoder/architectures.h"
#include "tests/model/decoder/naive_forward.h"
#include "tests/model/decoder/paged_runner.h"
#include "tests/model/decoder/tiny_model.h"

namespace longstride::model {
namespace {

using kernels::BackendKind;
using ::testing::HasSubstr;

double Std(const Rows& rows) {
  double sum = 0, squares = 0, n = 0;
  for (const auto& row : rows) {
    for (const double v : row) {
      sum += v;
      squares += v * v;
      n += 1;
    }
  }
  return std::sqrt(squares / n - sum / n * (sum / n));
}

// The largest error of each row, ascending.
std::vector<double> RowErrors(const FloatRows& got, const Rows& want) {
  EXPECT_EQ(got.size(), want.size());
  std::vector<double> errors;
  for (size_t r = 0; r < std::min(got.size(), want.size()); ++r) {
    EXPECT_EQ(got[r].size(), want[r].size());
    double worst = 0;
    for (size_t c = 0; c < want[r].size(); ++c) {
      const double error = std::abs(got[r][c] - want[r][c]);
      worst = std::isnan(error) ? INFINITY : std::max(worst, error);
    }
    errors.push_back(worst);
  }
  std::sort(errors.begin(), errors.end());
  return errors;
}

double MaxError(const FloatRows& got, const Rows& want) {
  const std::vector<double> errors = RowErrors(got, want);
  return errors.empty() ? 0 : errors.back();
}

class ArchitectureTest : public ::testing::TestWithParam<TinyOptions> {};

// Prefill in pieces, then decode, against the naive forward pass at every position.
TEST_P(ArchitectureTest, MatchesNaiveForward) {
  const TinyModel model(GetParam());
  const std::vector<int32_t> tokens = RandomTokens(150, model.spec.vocab_size, 3);
  const auto variant = static_cast<uint8_t>(GetParam().rope_variants - 1);
  const NaiveOutput want = NaiveForward(
      model.spec, tokens,
      [&](int32_t l, int32_t, int64_t i, int64_t j) { return NativeVisible(model.spec, l, i, j); },
      variant);
  const double std = Std(want.logits);
  ASSERT_GE(std, 0.3);
  for (const BackendKind kind : Backends(model.spec)) {
    PagedRunner runner(&model.spec, "{}", kind);
    FloatRows got = runner.Prefill(0, {tokens.begin(), tokens.begin() + 130}, 47, variant);
    for (size_t t = 130; t < tokens.size(); ++t) {
      const FloatRows row = runner.Prefill(0, {tokens[t]}, 1, variant);
      got.insert(got.end(), row.begin(), row.end());
    }
    EXPECT_LE(MaxError(got, want.logits), 1e-4 * std) << "backend " << static_cast<int>(kind);
  }
}

// One way to get an architecture wrong; returns false where the spec has nothing to spoil.
struct Mutation {
  const char* name;
  bool (*spoil)(ModelSpec*);
};

bool SpoilLayers(ModelSpec* spec, bool (*spoil)(LayerSpec*)) {
  bool any = false;
  for (LayerSpec& layer : spec->layers) any |= spoil(&layer);
  return any;
}

std::vector<Mutation> Mutations() {
  return {
      {"window + 1",
       [](ModelSpec* s) {
         return SpoilLayers(s, [](LayerSpec* l) {
           int32_t& window = l->attention.native.window;
           return window > 0 && ++window > 0;
         });
       }},
      {"window - 1",
       [](ModelSpec* s) {
         return SpoilLayers(s, [](LayerSpec* l) {
           int32_t& window = l->attention.native.window;
           return window > 0 && --window > 0;
         });
       }},
      {"chunk + 1",
       [](ModelSpec* s) {
         return SpoilLayers(s, [](LayerSpec* l) {
           int32_t& chunk = l->attention.native.chunk;
           return chunk > 0 && ++chunk > 0;
         });
       }},
      {"dual chunk off",
       [](ModelSpec* s) { return std::exchange(s->dual_chunk, std::nullopt).has_value(); }},
      {"one more local position",
       [](ModelSpec* s) {
         if (!s->dual_chunk) return false;
         s->dual_chunk->chunk_size += 1;
         s->dual_chunk->local_size += 1;
         return true;
       }},
      {"one more block",
       [](ModelSpec* s) {
         return SpoilLayers(s, [](LayerSpec* l) {
           int32_t& blocks = l->attention.native.nsa.block_counts;
           return blocks > 0 && ++blocks > 0;
         });
       }},
      {"sliding window + 1",
       [](ModelSpec* s) {
         return SpoilLayers(s, [](LayerSpec* l) {
           Nsa& nsa = l->attention.native.nsa;
           return nsa.block_counts > 0 && ++nsa.window > 0;
         });
       }},
      {"gates turned over",
       [](ModelSpec* s) {
         return SpoilLayers(s, [](LayerSpec* l) {
           kernels::TensorView& gates = l->weights.attn_gates;
           if (gates.data == nullptr) return false;
           gates.data = gates.ptr<float>() + (gates.shape[0] - 1) * gates.strides[0];
           gates.strides[0] = -gates.strides[0];
           return true;
         });
       }},
      {"sinks dropped",
       [](ModelSpec* s) {
         return SpoilLayers(s, [](LayerSpec* l) {
           return std::exchange(l->weights.sinks.data, nullptr) != nullptr;
         });
       }},
      {"RoPE bases swapped",
       [](ModelSpec* s) {
         std::swap(s->ropes[0], s->ropes[1]);
         return true;
       }},
      {"soft-cap off",
       [](ModelSpec* s) {
         return SpoilLayers(
             s, [](LayerSpec* l) { return std::exchange(l->attention.softcap, 0.0f) > 0; });
       }},
      {"logit soft-cap off",
       [](ModelSpec* s) { return std::exchange(s->logit_softcap, 0.0f) > 0; }},
      {"qk-norm skipped",
       [](ModelSpec* s) {
         return SpoilLayers(s, [](LayerSpec* l) {
           return std::exchange(l->attention.qk_norm, QkNorm::kNone) != QkNorm::kNone;
         });
       }},
      {"temperature off",
       [](ModelSpec* s) {
         return SpoilLayers(
             s, [](LayerSpec* l) { return std::exchange(l->attention.position_scale, false); });
       }},
      {"post norm skipped",
       [](ModelSpec* s) {
         return SpoilLayers(s, [](LayerSpec* l) {
           return std::exchange(l->weights.post_attn_norm.data, nullptr) != nullptr;
         });
       }},
      {"serial for parallel",
       [](ModelSpec* s) {
         if (!std::exchange(s->parallel_block, false)) return false;
         return SpoilLayers(s, [](LayerSpec* l) {
           l->weights.mlp_norm = l->weights.attn_norm;
           l->weights.mlp_norm_bias = l->weights.attn_norm_bias;
           return true;
         });
       }},
      {"residual scale off",
       [](ModelSpec* s) { return std::exchange(s->residual_scale, 1.0f) != 1.0f; }},
      {"embedding scale off",
       [](ModelSpec* s) { return std::exchange(s->embedding_scale, 1.0f) != 1.0f; }},
      {"shared expert dropped",
       [](ModelSpec* s) {
         return SpoilLayers(
             s, [](LayerSpec* l) { return std::exchange(l->mlp.shared_ffn_dim, 0) > 0; });
       }},
  };
}

// The comparison above can fail: every way of spoiling the spec moves the logits.
TEST_P(ArchitectureTest, NoticesSpoiltSpecs) {
  const TinyModel model(GetParam());
  const std::vector<int32_t> tokens = RandomTokens(150, model.spec.vocab_size, 3);
  PagedRunner runner(&model.spec, "{}");
  const FloatRows got = runner.Prefill(0, tokens, 150);
  int spoilt = 0;
  for (const Mutation& mutation : Mutations()) {
    ModelSpec spec = model.spec;
    if (!mutation.spoil(&spec)) continue;
    ++spoilt;
    const NaiveOutput wrong = NaiveForward(
        spec, tokens,
        [&](int32_t l, int32_t, int64_t i, int64_t j) { return NativeVisible(spec, l, i, j); });
    EXPECT_GT(MaxError(got, wrong.logits), 1e-3 * Std(wrong.logits)) << mutation.name;
  }
  EXPECT_GE(spoilt, 1);
}

// The same bits of the logits whatever the chunks, and decoded one by one.
TEST_P(ArchitectureTest, ChunkingDoesNotChangeBits) {
  const TinyModel model(GetParam());
  const std::vector<int32_t> tokens = RandomTokens(150, model.spec.vocab_size, 4);
  for (const BackendKind kind : Backends(model.spec)) {
    for (const auto dtype : {kernels::KvDType::kF16, kernels::KvDType::kFp8}) {
      PagedRunner runner(&model.spec, "{}", kind, dtype);
      const FloatRows once = runner.Prefill(0, tokens, 150);
      int sequence = 1;
      for (const int32_t chunk : {1, 7, 63, 64, 65, 128, 149}) {
        EXPECT_EQ(runner.Prefill(sequence, tokens, chunk), once)
            << "chunk " << chunk << " " << kernels::KvDTypeName(dtype);
        runner.Drop(sequence++);
      }
    }
  }
}

// Scales of powers of two change the codes' exponents and nothing else, but for the smallest
// values; a scale that saturates all keys and values is far off.
TEST_P(ArchitectureTest, Fp8CachesUseTheScalesOfTheirLayers) {
  const TinyModel model(GetParam());
  const std::vector<int32_t> tokens = RandomTokens(120, model.spec.vocab_size, 6);
  for (const BackendKind kind : Backends(model.spec)) {
    const auto run = [&](float k_scale, float v_scale) {
      ModelSpec spec = model.spec;
      for (LayerSpec& layer : spec.layers) {
        layer.attention.k_scale = k_scale;
        layer.attention.v_scale = v_scale;
      }
      PagedRunner runner(&spec, "{}", kind, kernels::KvDType::kFp8);
      return runner.Prefill(0, tokens, 120);
    };
    Rows plain;
    for (const auto& row : run(1.0f, 1.0f)) plain.emplace_back(row.begin(), row.end());
    const double same = MaxError(run(0.5f, 0.25f), plain), far = MaxError(run(1e-6f, 1e-6f), plain);
    EXPECT_GT(far, 4 * same) << same;
    EXPECT_GT(far, 0.1 * Std(plain));
  }
}

// The same bits alone on one thread, and on two in a batch of 16 with other sequences prefilling
// and decoding.
TEST_P(ArchitectureTest, BatchingDoesNotChangeBits) {
  const TinyModel model(GetParam());
  const unsigned seed = 41;
  SCOPED_TRACE(::testing::Message() << "seed " << seed);
  for (const BackendKind kind : Backends(model.spec)) {
    std::mt19937 random(seed);
    PagedRunner single(&model.spec, "{}", kind, kernels::KvDType::kF16);
    PagedRunner runner(&model.spec, "{}", kind, kernels::KvDType::kF16, 512, 2);
    std::vector<std::vector<int32_t>> prompts;
    std::vector<FloatRows> alone, together(16);
    for (int s = 0; s < 16; ++s) {
      prompts.push_back(RandomTokens(20 + random() % 60, model.spec.vocab_size, 100 + s));
      alone.push_back(single.Prefill(s, prompts.back(), 512));
    }
    std::vector<size_t> done(16, 0);
    while (true) {
      std::vector<Piece> pieces;
      for (int s = 0; s < 16; ++s) {
        const auto& prompt = prompts[static_cast<size_t>(s)];
        size_t& at = done[static_cast<size_t>(s)];
        const size_t want = random() % 2 == 0 ? 1 : 1 + random() % 30;
        const size_t count = std::min(want, prompt.size() - at);
        if (count == 0) continue;
        pieces.push_back({.sequence = s,
                          .tokens = {prompt.begin() + static_cast<std::ptrdiff_t>(at),
                                     prompt.begin() + static_cast<std::ptrdiff_t>(at + count)},
                          .num_logits = static_cast<int32_t>(count)});
        at += count;
      }
      if (pieces.empty()) break;
      ASSERT_TRUE(runner.Step(pieces).ok());
      size_t row = 0;
      for (const Piece& piece : pieces) {
        for (size_t t = 0; t < piece.tokens.size(); ++t) {
          together[static_cast<size_t>(piece.sequence)].push_back(runner.logits[row++]);
        }
      }
    }
    for (size_t s = 0; s < 16; ++s) EXPECT_EQ(together[s], alone[s]) << "sequence " << s;
  }
}

// Rows that nobody wants are not computed behind the last layer's cache write; what is asked for is
// the same as when everything is.
TEST_P(ArchitectureTest, WantedRowsAreTheSameWithoutTheOthers) {
  const TinyModel model(GetParam());
  const std::vector<int32_t> tokens = RandomTokens(100, model.spec.vocab_size, 8);
  PagedRunner runner(&model.spec, "{}");
  const FloatRows all = runner.Prefill(0, tokens, 100);
  ASSERT_TRUE(runner.Step({{.sequence = 1, .tokens = tokens, .num_logits = 0}}).ok());
  EXPECT_TRUE(runner.logits.empty());
  ASSERT_TRUE(runner.Step({{.sequence = 2, .tokens = tokens, .num_logits = 3}}).ok());
  EXPECT_EQ(runner.logits, FloatRows(all.end() - 3, all.end()));
  EXPECT_TRUE(runner.hidden.empty());
  ASSERT_TRUE(runner
                  .Step({{.sequence = 3, .tokens = tokens, .num_logits = 1, .wants_hidden = true},
                         {.sequence = 4, .tokens = tokens, .num_logits = 2}})
                  .ok());
  EXPECT_EQ(runner.logits, (FloatRows{all[99], all[98], all[99]}));
  ASSERT_EQ(runner.hidden.size(), 100u);
  const NaiveOutput want = NaiveForward(
      model.spec, tokens,
      [&](int32_t l, int32_t, int64_t i, int64_t j) { return NativeVisible(model.spec, l, i, j); });
  EXPECT_LE(MaxError(runner.hidden, want.hidden), 1e-4 * Std(want.hidden));
}

INSTANTIATE_TEST_SUITE_P(All, ArchitectureTest, ::testing::ValuesIn(Architectures()),
                         [](const auto& info) { return info.param.name; });

// Policies of the operator, per layer and head, against the dense computation with their mask.
class PolicyTest : public ::testing::TestWithParam<std::pair<const char*, std::string>> {};

std::string BandMask() {
  // Blocks of 16: itself, the one before, and the first of every four.
  std::string rows;
  for (int r = 0; r < 64; ++r) {
    StrAppend(&rows, r == 0 ? "[[0" : ",[0");
    for (int c = 1; c <= r; ++c) {
      if (c >= r - 1 || c % 4 == 0) StrAppend(&rows, ",", c);
    }
    StrAppend(&rows, "]");
  }
  StrAppend(&rows, "]");
  return rows;
}

std::vector<std::pair<const char*, std::string>> Policies() {
  const auto only = [](const std::string& pattern) {
    return StrCat(R"({"default": {"pattern": )", pattern, "}}");
  };
  return {
      {"window_sinks", only(R"("window", "window": 40, "sink_tokens": 4)")},
      {"strided", only(R"("strided", "stride": 9)")},
      {"strided_local", only(R"("strided", "stride": 16, "local": 16)")},
      {"dilated", only(R"("dilated", "window": 12, "dilation": 5, "global_tokens": 6)")},
      {"bigbird", only(R"("bigbird", "block": 16, "window_blocks": 2)")},
      {"local_stride", only(R"("local_stride", "block": 16, "local_blocks": 2, "vert_stride": 4)")},
      {"variable",
       only(R"("variable", "local_window_blocks": [1, 3, 2], "global_block_indices": [0, 3])")},
      {"fixed", only(R"("fixed", "block": 16, "local_ctx": 64, "num_verts": 4)")},
      {"fixed_shared", only(R"("fixed", "block": 32, "local_ctx": 96, "num_verts": 1)")},
      {"block_sparse", only(StrCat(R"("block_sparse", "block": 16, "rows": )", BandMask()))},
      {"dense", only(R"("dense")")},
      {"by_head", R"({"default": {"pattern": "native"}, "layers": [
          {"layers": "0", "heads": "0-1", "pattern": "strided", "stride": 8, "local": 8},
          {"layers": "1", "heads": "2-6", "pattern": "window", "window": 30},
          {"layers": "1", "heads": "7", "pattern": "window", "window": 50, "sink_tokens": 2},
          {"layers": "2", "heads": "3-7", "pattern": "fixed", "block": 16, "local_ctx": 64},
          {"layers": "3", "heads": "4-7", "pattern": "window", "window": 20}]})"},
      {"head_table", R"({"default": {"pattern": "native"}, "layers": [
          {"layers": "1-3", "streaming_share": 0.5, "head_table": {
             "model": "",
             "patterns": {"full": {"pattern": "dense"},
                          "streaming": {"pattern": "window", "window": 40, "sink_tokens": 70}},
             "scores": [[], [0.5, 0.1], [0.2, 0.3], [0.9, 0.05]]}}]})"},
      // Parts of a layer's heads whose choice differs by head, of equal and of other sizes.
      {"bigbird_by_head", R"({"default": {"pattern": "native"}, "layers": [
          {"layers": "0", "heads": "0-1", "pattern": "bigbird", "block": 16, "window_blocks": 2},
          {"layers": "0", "heads": "6-7", "pattern": "bigbird", "block": 16, "window_blocks": 2},
          {"layers": "1", "pattern": "bigbird", "block": 16, "window_blocks": 2}]})"},
      {"local_stride_by_head", R"({"default": {"pattern": "native"}, "layers": [
          {"layers": "0", "heads": "0-1", "pattern": "local_stride", "block": 16, "local_blocks": 2},
          {"layers": "0", "heads": "6-7", "pattern": "local_stride", "block": 16, "local_blocks": 2},
          {"layers": "1", "pattern": "local_stride", "block": 16, "local_blocks": 2}]})"},
  };
}

TEST_P(PolicyTest, MatchesNaiveForwardWithItsMask) {
  const TinyModel model({.name = "policy", .heads = 8, .kv_heads = 2, .sinks = true, .window = 60});
  const std::vector<int32_t> tokens = RandomTokens(260, model.spec.vocab_size, 21);
  for (const BackendKind kind : Backends()) {
    PagedRunner runner(&model.spec, GetParam().second, kind);
    const SparsityPlan& plan = runner.plan();
    const NaiveOutput want =
        NaiveForward(model.spec, tokens, [&](int32_t l, int32_t head, int64_t i, int64_t j) {
          for (const HeadSegment& s : plan.layers[static_cast<size_t>(l)].segments) {
            if (head < s.query.first || head >= s.query.first + s.query.count) continue;
            return plan.patterns[static_cast<size_t>(s.pattern)]->Visible(head, i, j);
          }
          ADD_FAILURE() << "head " << head << " is in no segment";
          return false;
        });
    FloatRows got = runner.Prefill(0, {tokens.begin(), tokens.begin() + 230}, 75);
    for (size_t t = 230; t < tokens.size(); ++t) {
      const FloatRows row = runner.Prefill(0, {tokens[t]}, 1);
      got.insert(got.end(), row.begin(), row.end());
    }
    EXPECT_LE(MaxError(got, want.logits), 1e-4 * Std(want.logits));

    // And whatever the chunks.
    PagedRunner other(&model.spec, GetParam().second, kind);
    EXPECT_EQ(other.Prefill(0, tokens, 260), got);
  }
}

// What the kernel read is what the pattern names, and a page for each edge.
TEST_P(PolicyTest, ReadsLittleMoreThanIsVisible) {
  const TinyModel model({.name = "policy", .heads = 8, .kv_heads = 2});
  const std::vector<int32_t> tokens = RandomTokens(700, model.spec.vocab_size, 22);
  for (const BackendKind kind : Backends()) {
    PagedRunner runner(&model.spec, GetParam().second, kind);
    const SparsityPlan& plan = runner.plan();
    for (size_t at = 0; at < tokens.size(); at += 100) {
      const std::vector<int32_t> part(tokens.begin() + static_cast<std::ptrdiff_t>(at),
                                      tokens.begin() + static_cast<std::ptrdiff_t>(at + 100));
      ASSERT_TRUE(runner.Step({{.sequence = 0, .tokens = part, .num_logits = 100}}).ok());
      ASSERT_EQ(runner.counters.size(), plan.patterns.size());
      for (const PatternCounters& c : runner.counters) {
        double visible = 0, rows = 0;
        for (const LayerPlan& layer : plan.layers) {
          for (const HeadSegment& s : layer.segments) {
            if (s.pattern != c.pattern) continue;
            for (size_t i = at; i < at + 100; ++i) {
              visible += s.query.count * plan.patterns[static_cast<size_t>(s.pattern)]->VisibleKeys(
                                             static_cast<int64_t>(i));
              rows += s.query.count;
            }
          }
        }
        EXPECT_EQ(static_cast<double>(c.keys_visible), visible);
        EXPECT_EQ(static_cast<double>(c.keys_total),
                  rows * (static_cast<double>(at) + 1 + 99 / 2.0));
        EXPECT_GE(c.keys_read, c.keys_visible);
        EXPECT_LE(static_cast<double>(c.keys_read),
                  1.15 * visible + 3.0 * kernels::kPageTokens * rows);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, PolicyTest, ::testing::ValuesIn(Policies()),
                         [](const auto& info) { return std::string(info.param.first); });

TEST(Decoder, WindowGroupsHoldAWindowAndAChunk) {
  const TinyModel model({.name = "w", .layers = 3, .window = 100, .max_positions = 4096});
  PagedRunner runner(&model.spec, "{}");
  const int32_t chunk = 128;
  runner.Prefill(0, RandomTokens(3000, model.spec.vocab_size, 1), chunk);
  for (const int32_t t : RandomTokens(100, model.spec.vocab_size, 2)) runner.Prefill(0, {t}, 1);
  ASSERT_EQ(runner.plan().groups.size(), 2u);
  for (size_t g = 0; g < 2; ++g) {
    const CacheGroup& group = runner.plan().groups[g];
    if (group.retention.keeps_all()) {
      EXPECT_EQ(runner.max_held[g], (3100 + 63) / 64);
    } else {
      // The window and the chunk, rounded up to pages at both ends.
      EXPECT_LE(runner.max_held[g], (100 + chunk) / 64 + 2);
      EXPECT_EQ(PagesNeeded(group, 2944, 128), runner.max_held[g]);
    }
  }
}

TEST(Decoder, RopeVariantsAreOfTheRequest) {
  const TinyModel model({.name = "v", .rope_variants = 2});
  const std::vector<int32_t> tokens = RandomTokens(40, model.spec.vocab_size, 6);
  PagedRunner runner(&model.spec, "{}");
  const FloatRows first = runner.Prefill(0, tokens, 40, 0);
  const FloatRows second = runner.Prefill(1, tokens, 40, 1);
  EXPECT_NE(first, second);
  ASSERT_TRUE(runner
                  .Step({{.sequence = 2, .tokens = tokens, .num_logits = 1},
                         {.sequence = 3, .tokens = tokens, .num_logits = 1, .rope_variant = 1},
                         {.sequence = 4, .tokens = tokens, .num_logits = 1}})
                  .ok());
  EXPECT_EQ(runner.logits, (FloatRows{first.back(), second.back(), first.back()}));
}

TEST(Decoder, FillsTimesAndReleasesWhatItDoesNotKeep) {
  const TinyModel model({.name = "t"});
  PagedRunner runner(&model.spec, "{}");
  const std::vector<int32_t> tokens = RandomTokens(200, model.spec.vocab_size, 6);
  ASSERT_TRUE(runner.Step({{.sequence = 0, .tokens = tokens, .num_logits = 1}}).ok());
  EXPECT_GT(runner.times.selection_ns, 0);
  EXPECT_GT(runner.times.attention_ns, 0);
  EXPECT_GT(runner.times.linear_ns, 0);
  EXPECT_GT(runner.times.other_ns, 0);
  EXPECT_GT(runner.decoder().workspace_bytes(), 0);
  EXPECT_GE(runner.decoder().weight_bytes(), 0);
}

// The matrices of a tiny model in the format of a checkpoint.
void Store(kernels::DType type, ModelSpec* spec, kernels::TensorView* weight) {
  if (weight->data == nullptr) return;
  const int64_t rows = weight->shape[0], cols = weight->shape[1];
  auto bytes = std::make_shared<std::vector<uint8_t>>(
      static_cast<size_t>(rows * kernels::RowBytes(type, cols)));
  for (int64_t r = 0; r < rows; ++r) {
    uint8_t* to = bytes->data() + r * kernels::RowBytes(type, cols);
    const float* from = weight->row<float>(r);
    if (type == kernels::DType::kQ8_0) {
      kernels::QuantizeRowQ8_0(from, cols, to);
      continue;
    }
    for (int64_t c = 0; c < cols; ++c) {
      const uint16_t half = type == kernels::DType::kF16 ? kernels::FloatToHalf(from[c])
                                                         : kernels::FloatToBfloat16(from[c]);
      std::memcpy(to + 2 * c, &half, 2);
    }
  }
  *weight = kernels::TensorView::Matrix(bytes->data(), type, rows, cols);
  spec->owned_bytes.push_back(bytes);
}

void StoreAll(kernels::DType type, ModelSpec* spec) {
  for (LayerSpec& layer : spec->layers) {
    LayerWeights& w = layer.weights;
    for (kernels::TensorView* weight : {&w.wq, &w.wk, &w.wv, &w.wo, &w.gate, &w.up, &w.down}) {
      Store(type, spec, weight);
    }
    for (auto* experts : {&w.expert_gate, &w.expert_up, &w.expert_down}) {
      for (kernels::TensorView& weight : *experts) Store(type, spec, &weight);
    }
  }
  Store(type, spec, &spec->lm_head);
}

// Formats and head sizes that a device's tensor cores take: near the reference, which multiplies in
// float32, and the same bits alone, cut, and beside others, prompts as well as what is generated.
TEST(Decoder, TensorCoresStayNearTheReferenceAndKeepBits) {
  if (Backends().back() != BackendKind::kCuda) GTEST_SKIP() << "no CUDA device";
  struct Case {
    kernels::DType type;
    int32_t experts;
    double tolerance;  // of a row's worst logit, as a share of their standard deviation
  };
  for (const Case& c : {Case{kernels::DType::kBF16, 0, 0.15}, Case{kernels::DType::kF16, 0, 2e-2},
                        Case{kernels::DType::kQ8_0, 0, 2e-2}, Case{kernels::DType::kBF16, 4, 0.15},
                        Case{kernels::DType::kQ8_0, 4, 2e-2}}) {
    SCOPED_TRACE(::testing::Message() << kernels::DTypeName(c.type) << ", experts " << c.experts);
    TinyModel model({.name = "tensor_cores",
                     .layers = 3,
                     .heads = 4,
                     .kv_heads = 2,
                     .head_dim = 64,
                     .dim = 128,
                     .ffn = 192,
                     .experts = c.experts,
                     .window = 100});
    StoreAll(c.type, &model.spec);
    const std::vector<int32_t> tokens = RandomTokens(400, model.spec.vocab_size, 31);
    PagedRunner reference(&model.spec, "{}", BackendKind::kReference, kernels::KvDType::kF16);
    const FloatRows want = reference.Prefill(0, tokens, 400);
    Rows wide;
    for (const auto& row : want) wide.emplace_back(row.begin(), row.end());
    PagedRunner device(&model.spec, "{}", BackendKind::kCuda, kernels::KvDType::kF16);
    const FloatRows once = device.Prefill(0, tokens, 400);
    // Where two experts are as good as tied, rounding may choose the other one: such rows differ.
    const auto error = [&c](const FloatRows& got, const Rows& wanted) {
      const std::vector<double> errors = RowErrors(got, wanted);
      return c.experts > 0 ? errors.at(errors.size() / 2) : errors.back();
    };
    EXPECT_LE(error(once, wide), c.tolerance * Std(wide));
    int sequence = 1;
    for (const int32_t chunk : {1, 37, 128, 300}) {
      EXPECT_EQ(device.Prefill(sequence, tokens, chunk), once) << "chunk " << chunk;
      device.Drop(sequence++);
    }
    // Generated one by one, and the same tokens again in one run beside a prompt.
    const std::vector<int32_t> prompt(tokens.begin(), tokens.begin() + 300);
    const std::vector<int32_t> rest(tokens.begin() + 300, tokens.end());
    const auto prefill = [&](int s) {
      ASSERT_TRUE(device.Step({{.sequence = s, .tokens = prompt}}).ok());
    };
    prefill(10);
    FloatRows generated;
    for (const int32_t token : rest) {
      ASSERT_TRUE(device
                      .Step({{.sequence = 10,
                              .tokens = {token},
                              .num_logits = 1,
                              .numerics = NumericsClass::kGenerated}})
                      .ok());
      generated.push_back(device.logits[0]);
    }
    EXPECT_LE(error(generated, Rows(wide.begin() + 300, wide.end())), c.tolerance * Std(wide));
    prefill(11);
    ASSERT_TRUE(device
                    .Step({{.sequence = 11,
                            .tokens = rest,
                            .num_logits = 100,
                            .numerics = NumericsClass::kGenerated},
                           {.sequence = 12, .tokens = prompt, .num_logits = 1}})
                    .ok());
    EXPECT_EQ(FloatRows(device.logits.begin(), device.logits.end() - 1), generated);
    EXPECT_EQ(device.logits.back(), once[299]);
  }
}

TEST(Decoder, WorkspaceIsWhatItSaysBeforehand) {
  for (const TinyOptions& options : Architectures()) {
    const TinyModel model(options);
    PagedRunner runner(&model.spec, "{}");
    EXPECT_EQ(runner.decoder().workspace_bytes(), WorkspaceBytes(model.spec, 512)) << options.name;
  }
}

// A choice of a row that is not there, or of two from one row.
TEST(Decoder, RefusesMalformedChoices) {
  const TinyModel model({.name = "choices"});
  PagedRunner runner(&model.spec, "{}");
  const std::vector<int32_t> tokens = RandomTokens(5, model.spec.vocab_size, 6);
  ModelInput input = runner.MakeInput({{.sequence = 0, .tokens = tokens, .num_logits = 2}});
  const SamplingParams params;
  ModelOutput output;
  for (const std::vector<int32_t>& rows : {std::vector<int32_t>{2}, {-1}, {1, 1}, {1, 0}}) {
    input.choices.clear();
    for (const int32_t row : rows) {
      input.choices.push_back({.logits_row = row, .context = {.params = &params}});
    }
    EXPECT_EQ(runner.decoder().Forward(input, &output).code(), absl::StatusCode::kInvalidArgument);
  }
  input.choices = {{.logits_row = 1, .context = {.params = &params}}};
  ASSERT_TRUE(runner.decoder().Forward(input, &output).ok());
  EXPECT_EQ(output.chosen.size(), 1u);
}

// Malformed inputs are refused by a sentence, and the decoder works on.
TEST(Decoder, RefusesMalformedInputs) {
  const TinyModel model({.name = "bad", .max_positions = 256});
  PagedRunner runner(&model.spec, "{}", BackendKind::kReference, kernels::KvDType::kF32, 64);
  const std::vector<int32_t> tokens = RandomTokens(30, model.spec.vocab_size, 6);
  const ModelInput good = runner.MakeInput(
      {{.sequence = 0, .tokens = tokens, .num_logits = 1}, {.sequence = 1, .tokens = tokens}});
  ModelOutput output;
  ASSERT_TRUE(runner.decoder().Forward(good, &output).ok());
  const auto refuses = [&](const std::function<void(ModelInput*)>& spoil, const std::string& why) {
    ModelInput input = good;
    spoil(&input);
    const absl::Status status = runner.decoder().Forward(input, &output);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << why;
    EXPECT_THAT(std::string(status.message()), HasSubstr(why));
  };
  refuses([](ModelInput* i) { i->token_ids[3] = 97; }, "token id 97; allowed are 0 to 96");
  refuses([](ModelInput* i) { i->token_ids[3] = -1; }, "token id -1");
  refuses([](ModelInput* i) { i->token_ids.pop_back(); }, "59 token ids for runs of 60");
  refuses([](ModelInput* i) { i->runs[1].sequence = 0; }, "ordered by sequence");
  refuses([](ModelInput* i) { i->runs[1].sequence = 2; }, "of 2");
  refuses([](ModelInput* i) { i->runs[0].sequence = -1; }, "ordered by sequence");
  refuses([](ModelInput* i) { i->runs[0].first_position = -1; }, "positions -1");
  refuses([](ModelInput* i) { i->runs[0].first_position = 250; }, "below 256");
  refuses([](ModelInput* i) { i->runs[0].first_position = INT32_MAX; }, "below 256");
  refuses([](ModelInput* i) { i->runs[0].num_tokens = 0; }, "1 or more tokens");
  refuses([](ModelInput* i) { i->runs[0].num_tokens = INT32_MIN; }, "1 or more tokens");
  refuses([](ModelInput* i) { i->runs[0].num_logits = 31; }, "31 logits");
  refuses([](ModelInput* i) { i->runs[0].rope_variant = 1; }, "rotary variant 1");
  refuses([](ModelInput* i) { i->page_tables.clear(); }, "0 page tables");
  refuses([](ModelInput* i) { i->page_tables[0].stride = 2; }, "page table of 2 entries");
  refuses([](ModelInput* i) { i->page_tables[0].stride = -1; }, "page table");
  refuses([](ModelInput* i) { i->page_tables[0].pages[1] = kernels::kNoPage; }, "is -1");
  refuses([](ModelInput* i) { i->page_tables[0].pages[1] = INT32_MAX; }, "allowed are 0 to");
  refuses([](ModelInput* i) { i->runs[1].first_position = 64; }, "page table row of 1 entries");
  refuses(
      [](ModelInput* i) {
        i->runs[0].num_tokens = 60;
        i->token_ids.resize(90, 0);
      },
      "90 tokens; a step takes at most 64");
  ModelInput empty;
  empty.page_tables.resize(good.page_tables.size());
  EXPECT_TRUE(runner.decoder().Forward(empty, &output).ok());
  EXPECT_EQ(output.logits.data, nullptr);
  EXPECT_TRUE(runner.decoder().Forward(good, &output).ok());
}

TEST(Decoder, RefusesMoreLogitsThanAStepGives) {
  const TinyModel model({.name = "l", .layers = 1, .dim = 8, .vocab = 1 << 20, .tied = true});
  PagedRunner runner(&model.spec, "{}");
  EXPECT_EQ(runner.decoder().max_logits_rows(), 128);
  const std::vector<int32_t> tokens = RandomTokens(129, 97, 6);
  const absl::Status status = runner.Step({{.sequence = 0, .tokens = tokens, .num_logits = 129}});
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("129 rows of logits; a step gives at most 128"));
}

}  // namespace
}  // namespace longstride::model

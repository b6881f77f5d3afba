#include "model/fidelity/live_shadow.h"

#include <cmath>
#include <set>

#include "config/base/check.h"
#include "kernels/quant.h"
#include "kernels/reference/reference_backend.h"
#include "model/fidelity/captured_mass.h"
#include "tests/model/decoder/paged_runner.h"
#include "tests/model/decoder/tiny_model.h"
#include "tests/testing/random_seed.h"

namespace longstride::model::fidelity {
namespace {

using kernels::BackendKind;
using kernels::KvDType;

constexpr int32_t kHeads = 8;

SparsityPlan Resolve(const std::string& text, const ModelSpec& spec, KvDType dtype) {
  const auto policy = SparsityPolicy::Parse(text);
  EXPECT_TRUE(policy.ok()) << policy.status();
  auto plan = SparsityPlan::Resolve(*policy, spec, dtype);
  EXPECT_TRUE(plan.ok()) << plan.status();
  return *std::move(plan);
}

// What a sample must be, in double precision: softmax over the baseline's keys one by one. Keys
// that the plan reads are asked of its pattern, or, where that looks at queries, of the call's
// lists.
class Oracle : public AttentionObserver {
 public:
  Oracle(const SparsityPlan* plan, const SparsityPlan* baseline, LiveShadow* shadow)
      : plan_(plan), baseline_(baseline), shadow_(shadow) {}

  // The samples of this step are expected of `sequence`.
  void Watch(int32_t sequence) {
    sequence_ = sequence;
    expected.clear();
  }

  void OnAttention(const AttentionCall& call) override {
    shadow_->OnAttention(call);
    for (const QueryRun& run : call.runs) {
      if (run.sequence != sequence_) continue;
      ASSERT_EQ(run.num_rows, 1);
      Expect(call, run.row_begin, run.first_position);
    }
  }

  struct Expected {
    double mass = 0, error = 0;
  };
  std::map<std::pair<int32_t, int32_t>, Expected> expected;  // [layer, segment]

 private:
  static std::vector<double> Decode(const kernels::PagedKv& cache, const void* memory, int32_t page,
                                    int32_t head, int64_t slot) {
    const char* base =
        static_cast<const char*>(memory) + page * cache.page_stride + head * cache.head_stride;
    std::vector<double> row(static_cast<size_t>(cache.head_dim));
    for (int32_t d = 0; d < cache.head_dim; ++d) {
      const int64_t at = slot * cache.head_dim + d;
      double& value = row[static_cast<size_t>(d)];
      if (cache.dtype == KvDType::kF32) {
        value = static_cast<double>(reinterpret_cast<const float*>(base)[at]);
      } else if (cache.dtype == KvDType::kBF16) {
        value = static_cast<double>(
            kernels::Bfloat16ToFloat(reinterpret_cast<const uint16_t*>(base)[at]));
      } else {
        const auto* scales = reinterpret_cast<const float*>(base + int64_t{64} * cache.head_dim);
        value = static_cast<double>(reinterpret_cast<const int8_t*>(base)[at]) *
                static_cast<double>(scales[slot]);
      }
    }
    return row;
  }

  static const SparsePattern& PatternOf(const SparsityPlan& plan, int32_t layer, int32_t head) {
    for (const HeadSegment& segment : plan.layers[static_cast<size_t>(layer)].segments) {
      if (head >= segment.query.first && head < segment.query.first + segment.query.count) {
        return *plan.patterns[static_cast<size_t>(segment.pattern)];
      }
    }
    LS_CHECK(false);
    return *plan.patterns[0];
  }

  static bool Listed(const kernels::KvSelection& s, int32_t head, int32_t heads, int64_t row,
                     int64_t i, int64_t j) {
    const int32_t list = head * s.num_list_heads / heads;
    for (int32_t t = 0; t < s.num_tiles; ++t) {
      if (s.tiles[t].row_begin != row) continue;
      const int64_t at = int64_t{list} * s.num_tiles + t;
      for (int32_t n = 0; n < s.list_count[at]; ++n) {
        const int32_t entry = s.entries[s.list_begin[at] + n];
        if (entry >= 0 && j / s.entry_tokens == entry) {
          return kernels::EdgeAllows(s.edges[list], i, j);
        }
      }
    }
    return false;
  }

  void Expect(const AttentionCall& call, int64_t row, int64_t i) {
    const kernels::AttentionParams& p = *call.params;
    const HeadSegment& segment = *call.segment;
    const int32_t heads = segment.query.count;
    const int32_t per_kv = heads / segment.kv.count;
    const int32_t* pages = p.page_table.pages + sequence_ * p.page_table.stride;
    double mass = 0, error = 0, norm = 0;
    for (int32_t h = 0; h < heads; ++h) {
      const int32_t head = segment.query.first + h;
      const SparsePattern& base = PatternOf(*baseline_, call.layer, head);
      const SparsePattern& plan = PatternOf(*plan_, call.layer, head);
      const float* q = p.q.ptr<float>() + row * p.q.strides[0] + h * p.q.strides[1];
      double all = 0, kept = 0;
      std::vector<double> out(static_cast<size_t>(p.cache.head_dim));
      for (int64_t j = 0; j <= i; ++j) {
        if (!base.Visible(head, i, j)) continue;
        const std::vector<double> key =
            Decode(p.cache, p.cache.k, pages[j / 64], h / per_kv, j % 64);
        const std::vector<double> value =
            Decode(p.cache, p.cache.v, pages[j / 64], h / per_kv, j % 64);
        double score = 0;
        for (size_t d = 0; d < key.size(); ++d) score += static_cast<double>(q[d]) * key[d];
        score *= static_cast<double>(p.scale);
        const auto cap = static_cast<double>(p.softcap);
        if (cap > 0) score = cap * std::tanh(score / cap);
        const double weight = std::exp(score);
        all += weight;
        const bool reads = plan.ranking() == nullptr ? plan.Visible(head, i, j)
                                                     : Listed(p.selection, h, heads, row, i, j);
        if (reads) kept += weight;
        for (size_t d = 0; d < out.size(); ++d) out[d] += weight * value[d];
      }
      const double sink = p.sinks == nullptr ? 0 : std::exp(static_cast<double>(p.sinks[h]));
      mass += kept / all / heads;
      const float* got = p.out.ptr<float>() + row * p.out.strides[0] + h * p.out.strides[1];
      for (size_t d = 0; d < out.size(); ++d) {
        const double expected = out[d] / (all + sink);
        error += std::pow(static_cast<double>(got[d]) - expected, 2);
        norm += expected * expected;
      }
    }
    const auto s = static_cast<int32_t>(
        call.segment - plan_->layers[static_cast<size_t>(call.layer)].segments.data());
    expected[{call.layer, s}] = {.mass = mass, .error = std::sqrt(error / norm)};
  }

  const SparsityPlan* plan_;
  const SparsityPlan* baseline_;
  LiveShadow* shadow_;
  int32_t sequence_ = 0;
};

struct Case {
  const char* name;
  std::string plan;
  std::string baseline;
  bool loses = true;  // some of the baseline's mass

  friend void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }
};

std::string All(const std::string& pattern) {
  return StrCat(R"({"default": {"pattern": )", pattern, "}}");
}

std::vector<Case> Cases() {
  const std::string quest = All(R"("quest", "budget_tokens": 128, "sink_pages": 1)");
  const std::string strided = All(R"("strided", "stride": 7, "local": 20)");
  const std::string heads_differ =
      All(R"("bigbird", "block": 16, "window_blocks": 2, "random_blocks": 2)");
  return {
      {"quest_of_native", quest, All(R"("native")")},
      {"quest_of_dense", quest, All(R"("dense")")},
      {"quest_of_heads_that_differ", quest, heads_differ},
      {"token_lists_of_dense", strided, All(R"("dense")")},
      {"block_lists_of_heads_that_differ", heads_differ, All(R"("dense")")},
      {"heads_that_differ_of_token_lists", heads_differ, strided},
      {"itself", heads_differ, heads_differ, false},
      {"parts_of_the_heads",
       R"({"default": {"pattern": "dense"}, "layers": [
           {"heads": "0-3", "pattern": "quest", "budget_tokens": 64},
           {"heads": "4-5", "pattern": "strided", "stride": 5}]})",
       All(R"("dense")")},
      {"more_than_the_baseline", All(R"("dense")"),
       All(R"("window", "window": 90, "sink_tokens": 3)"), false},
  };
}

class LiveShadowTest : public ::testing::TestWithParam<std::tuple<Case, BackendKind, KvDType>> {};

TEST_P(LiveShadowTest, MatchesPlainSums) {
  const auto& [c, kind, dtype] = GetParam();
  const unsigned seed = testing::RandomSeed();
  const TinyModel model({.name = "shadow",
                         .layers = 3,
                         .heads = kHeads,
                         .kv_heads = 2,
                         .sinks = seed % 2 == 0,
                         .softcap = seed % 3 == 0 ? 5.0f : 0.0f},
                        seed);
  PagedRunner runner(&model.spec, c.plan, kind, dtype);
  const auto backend = kernels::MakeBackend(kind, {.num_threads = 1});
  ASSERT_TRUE(backend.ok()) << backend.status();
  const SparsityPlan baseline = Resolve(c.baseline, model.spec, dtype);
  auto shadow = LiveShadow::Create(backend->get(), &runner.plan(),
                                   Resolve(c.baseline, model.spec, dtype), 1.0);
  ASSERT_TRUE(shadow.ok()) << shadow.status();
  EXPECT_EQ((*shadow)->reason(), "");
  Oracle oracle(&runner.plan(), &baseline, shadow->get());

  std::mt19937 random(seed + 1);
  const auto tokens = [&](size_t n) {
    std::vector<int32_t> out(n);
    for (int32_t& t : out) t = static_cast<int32_t>(random() % 97);
    return out;
  };
  runner.Prefill(0, tokens(250 + random() % 100), 512);
  runner.Prefill(1, tokens(3 + random() % 300), 512);
  double least = 1;
  std::set<int32_t> layers;
  for (int step = 0; step < 6; ++step) {
    // Sequence 2 reads its prompt beside those that generate.
    const std::vector<Piece> pieces = {{.sequence = 0,
                                        .tokens = tokens(1),
                                        .num_logits = 1,
                                        .numerics = NumericsClass::kGenerated},
                                       {.sequence = 1,
                                        .tokens = tokens(1),
                                        .num_logits = 1,
                                        .numerics = NumericsClass::kGenerated},
                                       {.sequence = 2, .tokens = tokens(20)}};
    ASSERT_TRUE((*shadow)->Begin({.num_sequences = 3,
                                  .runs = {{.sequence = 0, .numerics = NumericsClass::kGenerated},
                                           {.sequence = 1, .numerics = NumericsClass::kGenerated},
                                           {.sequence = 2}}}));
    oracle.Watch(step % 2);
    runner.decoder().SetObserver(&oracle);
    ASSERT_TRUE(runner.Step(pieces).ok());
    const ShadowReport report = (*shadow)->Take();
    EXPECT_GT(report.nanos, 0);
    ASSERT_FALSE(report.samples.empty());
    std::set<int32_t> step_layers;
    for (const ShadowSample& sample : report.samples) {
      const Oracle::Expected& expected = oracle.expected.at({sample.layer, sample.segment});
      EXPECT_NEAR(sample.captured_mass, expected.mass, 1e-3) << "layer " << sample.layer;
      EXPECT_NEAR(sample.output_error, expected.error, 2e-3) << "layer " << sample.layer;
      least = std::min(least, sample.captured_mass);
      step_layers.insert(sample.layer);
    }
    EXPECT_EQ(step_layers.size(), LiveShadow::kLayersPerStep);
    layers.insert(step_layers.begin(), step_layers.end());
  }
  EXPECT_EQ(layers.size(), 3u);
  if (c.loses) {
    EXPECT_LT(least, 0.999);
  } else {
    EXPECT_GT(least, 0.9999);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Patterns, LiveShadowTest,
    ::testing::Combine(::testing::ValuesIn(Cases()),
                       ::testing::Values(BackendKind::kReference, BackendKind::kCpu),
                       ::testing::Values(KvDType::kF32, KvDType::kBF16, KvDType::kQ8)),
    [](const auto& info) {
      return StrCat(std::get<0>(info.param).name, "_",
                    std::get<1>(info.param) == BackendKind::kCpu ? "cpu" : "reference", "_",
                    kernels::KvDTypeName(std::get<2>(info.param)));
    });

// The report's own way of computing captured mass, which starts from a baseline that is served.
TEST(LiveShadow, AgreesWithCapturedMass) {
  const TinyModel model({.layers = 2, .heads = kHeads, .kv_heads = 2}, testing::RandomSeed());
  const std::string dense = All(R"("dense")");
  const SparsityPlan strided =
      Resolve(All(R"("strided", "stride": 7, "local": 20)"), model.spec, KvDType::kF32);
  // Layer 0 of both plans has the same queries and keys.
  PagedRunner served(&model.spec, All(R"("strided", "stride": 7, "local": 20)"));
  PagedRunner plain(&model.spec, dense);
  std::mt19937 random(testing::RandomSeed());
  std::vector<int32_t> prompt(300);
  for (int32_t& t : prompt) t = static_cast<int32_t>(random() % 97);
  served.Prefill(0, prompt, 512);
  plain.Prefill(0, prompt, 512);
  kernels::ReferenceBackend backend;
  auto shadow =
      LiveShadow::Create(&backend, &served.plan(), Resolve(dense, model.spec, KvDType::kF32), 1.0);
  ASSERT_TRUE(shadow.ok()) << shadow.status();
  CapturedMass mass(&plain.plan(), {&strided});
  mass.BeginWindow({300});
  served.decoder().SetObserver(shadow->get());
  plain.decoder().SetObserver(&mass);
  const std::vector<Piece> piece = {
      {.sequence = 0, .tokens = {11}, .num_logits = 1, .numerics = NumericsClass::kGenerated}};
  ASSERT_TRUE(
      (*shadow)->Begin({.num_sequences = 1, .runs = {{.numerics = NumericsClass::kGenerated}}}));
  ASSERT_TRUE(served.Step(piece).ok());
  ASSERT_TRUE(plain.Step(piece).ok());
  const ShadowReport report = (*shadow)->Take();
  ASSERT_EQ(report.samples.size(), 2u);
  ASSERT_EQ(report.samples[0].layer, 0);
  EXPECT_NEAR(report.samples[0].captured_mass, mass.LayerMean(0, 0), 1e-4);
  EXPECT_LT(report.samples[0].captured_mass, 0.99);
}

ModelInput Generating(int32_t sequences) {
  ModelInput input;
  for (int32_t s = 0; s < sequences; ++s) {
    input.runs.push_back({.sequence = s, .numerics = NumericsClass::kGenerated});
  }
  return input;
}

class LiveShadowPlans : public ::testing::Test {
 protected:
  std::unique_ptr<LiveShadow> Make(const std::string& plan, const std::string& baseline,
                                   double rate = 1.0) {
    plan_ = Resolve(plan, model_.spec, KvDType::kF32);
    auto shadow =
        LiveShadow::Create(&backend_, &plan_, Resolve(baseline, model_.spec, KvDType::kF32), rate);
    EXPECT_TRUE(shadow.ok()) << shadow.status();
    return *std::move(shadow);
  }

  const TinyModel model_{{.layers = 3, .heads = kHeads, .kv_heads = 2, .window = 60}};
  kernels::ReferenceBackend backend_;
  SparsityPlan plan_;
};

TEST_F(LiveShadowPlans, SamplesTheGivenShareOfTheStepsThatGenerate) {
  const auto shadow = Make("{}", "{}", 0.1);
  int sampled = 0;
  for (int step = 0; step < 1000; ++step) {
    EXPECT_FALSE(shadow->Begin({.runs = {{.num_tokens = 5}}})) << "a prompt";
    if (shadow->Begin(Generating(1 + step % 3))) ++sampled;
  }
  EXPECT_NEAR(sampled, 100, 1);
}

TEST_F(LiveShadowPlans, FreedPagesAreNamedAsTheReason) {
  // Layers 0 and 1 have a window of 60 in the checkpoint, layer 2 sees everything.
  const auto narrow = Make(All(R"("window", "window": 30)"), "{}");
  EXPECT_TRUE(narrow->layers().empty());
  EXPECT_EQ(narrow->reason(), "the plan frees pages that the baseline would read");
  EXPECT_FALSE(narrow->Begin(Generating(1)));
  const auto wide = Make(All(R"("window", "window": 80)"), "{}");
  EXPECT_EQ(wide->layers(), (std::vector<int32_t>{0, 1}));
  EXPECT_EQ(wide->reason(), "the plan frees pages that the baseline would read");
  EXPECT_TRUE(wide->measures(1, 0));
  EXPECT_FALSE(wide->measures(2, 0));
}

TEST_F(LiveShadowPlans, BaselinesThatCannotBeComparedAreNamed) {
  const auto ranked = Make(All(R"("dense")"), All(R"("quest", "budget_tokens": 64)"));
  EXPECT_TRUE(ranked->layers().empty());
  EXPECT_EQ(ranked->reason(), "the baseline chooses keys by its queries");
  const auto cut = Make(All(R"("dense")"),
                        R"({"default": {"pattern": "dense"},
                            "layers": [{"heads": "0-3", "pattern": "window", "window": 50}]})");
  EXPECT_TRUE(cut->layers().empty());
  EXPECT_EQ(cut->reason(), "the baseline's patterns are cut at other heads");
}

class DeviceBackend : public kernels::ReferenceBackend {
 public:
  kernels::Device device() const override { return kernels::Device::kCuda; }
};

TEST_F(LiveShadowPlans, ListsThatLieOnADeviceNeedABaselineOfEdges) {
  DeviceBackend backend;
  const std::string quest = All(R"("quest", "budget_tokens": 64)");
  plan_ = Resolve(quest, model_.spec, KvDType::kF32);
  const auto make = [&](const std::string& baseline) {
    auto shadow =
        LiveShadow::Create(&backend, &plan_, Resolve(baseline, model_.spec, KvDType::kF32), 0.5);
    EXPECT_TRUE(shadow.ok()) << shadow.status();
    return *std::move(shadow);
  };
  EXPECT_EQ(make(All(R"("dense")"))->reason(), "");
  EXPECT_EQ(make("{}")->reason(), "");  // windows of 60 and dense
  EXPECT_EQ(
      make(All(R"("strided", "stride": 5)"))->reason(),
      "the plan's lists lie on the device, and the baseline's keys are not those of a window");
}

// Whose attention is of three queries for each head, or three that a sum joins.
TEST_F(LiveShadowPlans, RefusesAttentionInParts) {
  ModelSpec dual_chunk = model_.spec;
  dual_chunk.dual_chunk = DualChunk{.chunk_size = 144, .local_size = 16};
  const ModelSpec gated = TinyModel({.nsa_blocks = 2, .nsa_window = 64}).spec;
  for (const ModelSpec& spec : {dual_chunk, gated}) {
    plan_ = Resolve("{}", spec, KvDType::kF32);
    const auto shadow =
        LiveShadow::Create(&backend_, &plan_, Resolve("{}", spec, KvDType::kF32), 0.5);
    EXPECT_EQ(shadow.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_FALSE(CapturedMass(&plan_, {&plan_}).available());
  }
}

// The samples of six steps of two sequences, and all logits.
struct Observed {
  std::vector<ShadowSample> samples;
  FloatRows logits;
};

Observed Observe(const ModelSpec& spec, const Case& c, BackendKind kind, KvDType dtype, bool watch,
                 unsigned seed) {
  PagedRunner runner(&spec, c.plan, kind, dtype);
  auto shadow =
      LiveShadow::Create(&runner.backend(), &runner.plan(), Resolve(c.baseline, spec, dtype), 1.0);
  EXPECT_TRUE(shadow.ok()) << shadow.status();
  std::mt19937 random(seed);
  const auto tokens = [&](size_t n) {
    std::vector<int32_t> out(n);
    for (int32_t& t : out) t = static_cast<int32_t>(random() % 97);
    return out;
  };
  runner.Prefill(0, tokens(700), 512);
  runner.Prefill(1, tokens(90), 512);
  Observed observed;
  for (int step = 0; step < 6; ++step) {
    EXPECT_TRUE((*shadow)->Begin(Generating(2)));
    runner.decoder().SetObserver(watch ? shadow->get() : nullptr);
    std::vector<Piece> pieces;
    for (int s = 0; s < 2; ++s) {
      pieces.push_back({.sequence = s,
                        .tokens = tokens(1),
                        .num_logits = 1,
                        .numerics = NumericsClass::kGenerated});
    }
    EXPECT_TRUE(runner.Step(pieces).ok());
    const ShadowReport report = (*shadow)->Take();
    observed.samples.insert(observed.samples.end(), report.samples.begin(), report.samples.end());
    observed.logits.insert(observed.logits.end(), runner.logits.begin(), runner.logits.end());
  }
  return observed;
}

class LiveShadowCudaTest : public ::testing::TestWithParam<std::tuple<Case, KvDType>> {};

TEST_P(LiveShadowCudaTest, GivesWhatTheCpuGives) {
  const auto& [c, dtype] = GetParam();
  const unsigned seed = testing::RandomSeed();
  const TinyModel model(
      {.name = "shadow", .layers = 3, .heads = kHeads, .kv_heads = 2, .head_dim = 64}, seed);
  const Observed cpu = Observe(model.spec, c, BackendKind::kReference, dtype, true, seed);
  const Observed cuda = Observe(model.spec, c, BackendKind::kCuda, dtype, true, seed);
  ASSERT_EQ(cpu.samples.size(), cuda.samples.size());
  EXPECT_GE(cpu.samples.size(), 12u);
  // Pages that rank alike may change places where 16-bit rounding says so.
  const double bound = dtype == KvDType::kF32 ? 2e-3 : 5e-2;
  double least = 1;
  for (size_t i = 0; i < cpu.samples.size(); ++i) {
    const ShadowSample& want = cpu.samples[i];
    const ShadowSample& got = cuda.samples[i];
    EXPECT_EQ(want.layer, got.layer);
    EXPECT_EQ(want.segment, got.segment);
    EXPECT_NEAR(want.captured_mass, got.captured_mass, bound) << "sample " << i;
    EXPECT_NEAR(want.output_error, got.output_error, 2 * bound) << "sample " << i;
    least = std::min(least, got.captured_mass);
  }
  if (c.loses) {
    EXPECT_LT(least, 0.999);
  }
  // Being watched changes no bit.
  EXPECT_EQ(cuda.logits, Observe(model.spec, c, BackendKind::kCuda, dtype, false, seed).logits);
}

std::vector<Case> DeviceCases() {
  std::vector<Case> cases;
  for (const Case& c : Cases()) {
    if (c.name != std::string("quest_of_heads_that_differ")) cases.push_back(c);
  }
  cases.push_back({"block_topk_of_window",
                   All(R"("block_topk", "budget_tokens": 192, "sink_pages": 1)"),
                   All(R"("window", "window": 400, "sink_tokens": 3)")});
  return cases;
}

// Without a device there is nothing to instantiate, and nothing is listed.
std::vector<KvDType> DeviceTypes() {
  if (!kernels::MakeBackend(BackendKind::kCuda, {}).ok()) return {};
  return {KvDType::kF32, KvDType::kBF16};
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(LiveShadowCudaTest);
INSTANTIATE_TEST_SUITE_P(Patterns, LiveShadowCudaTest,
                         ::testing::Combine(::testing::ValuesIn(DeviceCases()),
                                            ::testing::ValuesIn(DeviceTypes())),
                         [](const auto& info) {
                           return StrCat(std::get<0>(info.param).name, "_",
                                         kernels::KvDTypeName(std::get<1>(info.param)));
                         });

}  // namespace
}  // namespace longstride::model::fidelity

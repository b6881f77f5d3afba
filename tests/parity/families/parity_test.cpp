// Every family against an implementation that is not ours (what no library computes on a CPU,
// against a brute force from its paper: make_brute_force.py, make_dual_chunk.py, make_nsa.py):
// logits of tiny random checkpoints, whole prompts, prompts in chunks and token by token, through
// the paged cache with dead pages poisoned.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "model/families/family.h"
#include "tests/model/decoder/paged_runner.h"
#include "tests/parity/families/checkpoint_golden.h"
#include "tests/parity/families/mutations.h"

namespace longstride::model {
namespace {

using kernels::BackendKind;
using ::testing::IsSupersetOf;

// Largest difference of a logit, as a share of the logits' standard deviation.
constexpr double kTolerance = 1e-4;
// The same where a backend rounds activations to 8 bits, as the cpu one does before it multiplies
// them with quantised weights.
constexpr double kInt8Tolerance = 0.15;

struct Checkpoint {
  std::string folder;
  std::string file;    // inside the folder; "" for the folder itself
  std::string family;  // that must be recognised
  // Mutations that this checkpoint must tell apart (among all that apply to it).
  std::vector<std::string> must_detect;
};

const Checkpoint kCheckpoints[] = {
    {"llama", "", "llama", {"base doubled", "pairs of the other kind"}},
    {"llama", "/model.gguf", "llama", {"pairs of the other kind"}},
    {"llama_rope_llama3", "", "llama", {"query bias dropped", "output bias dropped"}},
    {"mistral", "", "mistral", {"window + 1", "window - 1", "base doubled"}},
    {"qwen2",
     "",
     "qwen2",
     {"window + 1", "window - 1", "query bias dropped", "rope attention factor dropped"}},
    {"qwen3", "", "qwen3", {"qk-norm skipped", "base doubled"}},
    {"qwen2_dual_chunk",
     "",
     "qwen2",
     {"dual chunk off", "largest distance + 1", "runs twice as long", "length scaling dropped"}},
    {"qwen3_dual_chunk",
     "",
     "qwen3",
     {"dual chunk off", "largest distance + 1", "runs twice as long", "qk-norm skipped"}},
    {"gemma2",
     "",
     "gemma2",
     {"window + 1", "window - 1", "soft-cap off", "logit soft-cap off", "norm offset dropped"}},
    {"gemma3",
     "",
     "gemma3",
     {"window + 1", "window - 1", "qk-norm skipped", "rope bases swapped", "one rope for all"}},
    {"gemma3",
     "/model.gguf",
     "gemma3",
     {"window + 1", "window - 1", "qk-norm skipped", "rope bases swapped"}},
    {"deepseek_v2",
     "",
     "deepseek",
     {"all groups of experts", "experts' scale dropped", "shared expert dropped",
      "norm of latents skipped", "another expert scoring", "pairs of the other kind"}},
    {"deepseek_v3",
     "",
     "deepseek",
     {"all groups of experts", "groups by their best expert", "experts' scale dropped",
      "selection bias dropped", "weights not normalised", "shared expert dropped",
      "norm of latents skipped", "query bias dropped", "key bias dropped",
      "rope attention factor dropped"}},
    {"deepseek_v32",
     "",
     "deepseek",
     {"indexer off", "indexed tokens + 1", "indexer's keys not normed",
      "indexer's norm without bias", "indexer not rotated", "rope bases swapped",
      "one rope for all", "groups by their best expert", "norm of latents skipped",
      "rope attention factor dropped"}},
    {"glm_moe_dsa",
     "",
     "deepseek",
     {"indexer off", "indexed tokens + 1", "indexer's keys not normed",
      "indexer's norm without bias", "indexer not rotated", "pairs of the other kind"}},
    {"phi3", "", "phi3", {"window + 1", "window - 1", "more channels rotated"}},
    {"phi3_longrope", "", "phi3", {"short and long rope swapped", "rope attention factor dropped"}},
    {"gpt_oss",
     "",
     "gpt_oss",
     {"window + 1", "window - 1", "sinks dropped", "sink dropped on one layer",
      "activation limit off", "rope attention factor dropped"}},
    {"gpt_oss_mxfp4", "", "gpt_oss", {"window + 1", "window - 1", "sinks dropped"}},
    {"gpt_oss_mxfp4", "/model.gguf", "gpt_oss", {"window + 1", "window - 1", "sinks dropped"}},
    {"cohere2",
     "",
     "cohere2",
     {"window + 1", "window - 1", "rope on layers without it", "logit scale dropped",
      "blocks one after the other"}},
    {"olmo2", "", "olmo2", {"qk-norm skipped", "norm after attention dropped"}},
    {"olmo3",
     "",
     "olmo3",
     {"window + 1", "window - 1", "qk-norm skipped", "rope bases swapped", "one rope for all"}},
    {"llama4",
     "",
     "llama4_text",
     {"chunk off", "chunk + 1", "chunk read as window", "qk-norm skipped", "temperature off",
      "rope on layers without it", "shared expert dropped"}},
    {"minicpm",
     "",
     "minicpm",
     {"top-k blocks + 1", "first blocks not forced", "window a block wider", "dense_len + 1",
      "sparse attention off", "residual scale dropped", "embedding scale dropped",
      "logit scale dropped", "short and long rope swapped", "rope attention factor dropped"}},
    {"nsa",
     "",
     "nsa",
     {"selected blocks + 1", "selected blocks - 1", "sliding window + 1", "sliding window - 1",
      "gates turned over", "gates of another layer", "query bias dropped"}},
    {"moba", "", "llama", {"MoBA off", "MoBA's blocks half as long", "MoBA's top-k + 1"}},
};

void PrintTo(const Checkpoint& checkpoint, std::ostream* out) {
  *out << checkpoint.folder << checkpoint.file;
}

std::string TestName(const ::testing::TestParamInfo<Checkpoint>& info) {
  return info.param.folder + (info.param.file.empty() ? "" : "_gguf");
}

// The table that a request of `total` tokens uses for all of them.
uint8_t RopeVariant(const ModelSpec& spec, size_t total) {
  uint8_t variant = 0;
  for (const int32_t length : spec.ropes[0].variant_lengths) {
    if (total > static_cast<size_t>(length)) ++variant;
  }
  return variant;
}

// NaN and missing rows count as infinitely wrong.
double Error(const FloatRows& rows, const GoldenSequence& golden) {
  double error = 0;
  for (size_t i = 0; i < golden.positions.size(); ++i) {
    const auto position = static_cast<size_t>(golden.positions[i]);
    if (position >= rows.size()) return std::numeric_limits<double>::infinity();
    for (size_t v = 0; v < golden.logits[i].size(); ++v) {
      const double difference = std::fabs(double{rows[position][v]} - golden.logits[i][v]);
      if (std::isnan(difference)) return std::numeric_limits<double>::infinity();
      error = std::max(error, difference);
    }
  }
  return error / golden.deviation;
}

class FamilyParity : public ::testing::TestWithParam<Checkpoint> {
 protected:
  void SetUp() override {
    auto file = WeightsFile::Open(CheckpointFolder(GetParam().folder) + GetParam().file);
    ASSERT_TRUE(file.ok()) << file.status();
    file_ = *std::move(file);
    auto spec = LoadModelSpec(*file_);
    ASSERT_TRUE(spec.ok()) << spec.status();
    spec_ = *std::move(spec);
    auto golden = ReadGolden(GetParam().folder);
    ASSERT_TRUE(golden.ok()) << golden.status();
    golden_ = *std::move(golden);
    ASSERT_FALSE(golden_.empty());
    for (const GoldenSequence& sequence : golden_) ASSERT_GE(sequence.deviation, 1.0);
  }

  // Logits of one sequence computed in chunks.
  FloatRows Run(const ModelSpec& spec, BackendKind kind, const GoldenSequence& golden,
                int32_t chunk) {
    PagedRunner runner(&spec, "{}", kind);
    return runner.Prefill(0, golden.tokens, chunk, RopeVariant(spec, golden.tokens.size()));
  }

  void CompareAll(BackendKind kind, double tolerance) {
    for (const GoldenSequence& golden : golden_) {
      const FloatRows whole = Run(spec_, kind, golden, 512);
      const double error = Error(whole, golden);
      EXPECT_LE(error, tolerance);
      RecordProperty(StrCat("error_", golden.tokens.size()), StrCat(error));
      // However a prompt is cut, down to token by token: the same bits.
      for (const int32_t chunk : {100, 64, 13, 1}) {
        EXPECT_TRUE(Run(spec_, kind, golden, chunk) == whole) << "chunks of " << chunk;
      }
    }
  }

  bool HasQuantizedWeights() const {
    for (const LayerSpec& layer : spec_.layers) {
      for (const kernels::TensorView& expert : layer.weights.expert_down) {
        if (kernels::IsQuantized(expert.dtype)) return true;
      }
    }
    return false;
  }

  std::unique_ptr<WeightsFile> file_;
  ModelSpec spec_;
  std::vector<GoldenSequence> golden_;
};

TEST_P(FamilyParity, IsRecognised) {
  EXPECT_EQ(spec_.family, GetParam().family);
  EXPECT_FALSE(spec_.name.empty());
  EXPECT_FALSE(spec_.weights_type.empty());
  EXPECT_GT(spec_.num_parameters, 0);
}

TEST_P(FamilyParity, ReferenceBackendGivesTheGoldenLogits) {
  CompareAll(BackendKind::kReference, kTolerance);
}

TEST_P(FamilyParity, CpuBackendGivesTheGoldenLogits) {
  CompareAll(BackendKind::kCpu, HasQuantizedWeights() ? kInt8Tolerance : kTolerance);
}

TEST_P(FamilyParity, CudaBackendGivesTheGoldenLogits) {
  const auto backend = kernels::MakeBackend(BackendKind::kCuda, {});
  if (!backend.ok()) GTEST_SKIP() << backend.status().message();
  if (spec_.layers[0].attention.gates > 0) {
    PagedRunner runner(&spec_, "{}", BackendKind::kCuda);
    const absl::Status status = runner.Step({{.tokens = golden_[0].tokens, .num_logits = 1}});
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << status;
    return;
  }
  CompareAll(BackendKind::kCuda, HasQuantizedWeights() ? kInt8Tolerance : kTolerance);
}

// Blocks that each head reads, gathered call by call.
class SelectedBlocks : public AttentionObserver {
 public:
  explicit SelectedBlocks(std::vector<int32_t>* masks, int64_t heads, int64_t length)
      : masks_(*masks), heads_(heads), length_(length) {}
  void OnAttention(const AttentionCall& call) override {
    const kernels::KvSelection& s = call.params->selection;
    if (!s.entries_made) return;  // another part of the layer's attention
    for (int64_t h = 0; h < call.segment->query.count; ++h) {
      const int64_t list_head = h * s.num_list_heads / call.segment->query.count;
      for (int32_t t = 0; t < s.num_tiles; ++t) {
        const kernels::QueryTile& tile = s.tiles[t];
        for (int32_t r = 0; r < tile.num_rows; ++r) {
          const int64_t i = tile.first_position + r;
          int32_t& mask = masks_[static_cast<size_t>(
              (call.layer * heads_ + call.segment->query.first + h) * length_ + i)];
          for (int32_t e = 0; e < s.list_count[list_head * s.num_tiles + t]; ++e) {
            const int32_t page = s.entries[s.list_begin[list_head * s.num_tiles + t] + e];
            if (page * int64_t{kernels::kPageTokens} <= i) mask |= 1 << page;
          }
        }
      }
    }
  }

 private:
  std::vector<int32_t>& masks_;
  int64_t heads_, length_;
};

TEST_P(FamilyParity, SelectsTheGoldenBlocks) {
  if (golden_[0].blocks.empty()) GTEST_SKIP() << "the family selects nothing by its queries";
  const GoldenSequence& golden = golden_[0];
  const auto length = static_cast<int64_t>(golden.tokens.size());
  for (const BackendKind kind : {BackendKind::kReference, BackendKind::kCpu}) {
    for (const int32_t chunk : {512, 65, 1}) {
      std::vector<int32_t> masks(golden.blocks.size(), 0);
      SelectedBlocks observer(&masks, spec_.layers[0].attention.num_heads, length);
      PagedRunner runner(&spec_, "{}", kind);
      runner.Observe(&observer);
      runner.Prefill(0, golden.tokens, chunk, RopeVariant(spec_, golden.tokens.size()));
      for (size_t at = 0; at < masks.size(); ++at) {
        ASSERT_EQ(masks[at], golden.blocks[at])
            << "backend " << static_cast<int>(kind) << ", chunks of " << chunk
            << ", layer and head " << static_cast<int64_t>(at) / length << ", position "
            << static_cast<int64_t>(at) % length;
      }
    }
  }
}

// Tokens that each row reads, as the layers' lists name them.
class ChosenTokens : public AttentionObserver {
 public:
  ChosenTokens(std::vector<int32_t>* chosen, int64_t length, int64_t topk)
      : chosen_(*chosen), length_(length), topk_(topk) {}
  void OnAttention(const AttentionCall& call) override {
    const kernels::KvSelection& s = call.params->selection;
    ASSERT_EQ(s.entry_tokens, 1);
    ASSERT_EQ(s.num_list_heads, 1);
    for (int32_t t = 0; t < s.num_tiles; ++t) {
      const kernels::QueryTile& tile = s.tiles[t];
      for (int32_t r = 0; r < tile.num_rows; ++r) {
        const int64_t i = tile.first_position + r;
        int32_t* out = chosen_.data() + (call.layer * length_ + i) * topk_;
        int64_t count = 0;
        for (int32_t e = 0; e < s.list_count[t]; ++e) {
          const int32_t token = s.entries[s.list_begin[t] + e];
          if (token > i) continue;
          ASSERT_LT(count, topk_);
          out[count++] = token;
        }
      }
    }
  }

 private:
  std::vector<int32_t>& chosen_;
  int64_t length_, topk_;
};

TEST_P(FamilyParity, ChoosesTheGoldenTokens) {
  const GoldenSequence& golden = golden_[0];
  if (golden.chosen.empty()) GTEST_SKIP() << "the family has no indexer";
  const auto length = static_cast<int64_t>(golden.tokens.size());
  const int64_t topk = spec_.layers[0].attention.native.dsa.topk;
  ASSERT_EQ(std::ssize(golden.chosen), std::ssize(spec_.layers) * length * topk);
  for (const BackendKind kind : {BackendKind::kReference, BackendKind::kCpu}) {
    for (const int32_t chunk : {512, 65, 1}) {
      std::vector<int32_t> chosen(golden.chosen.size(), -1);
      ChosenTokens observer(&chosen, length, topk);
      PagedRunner runner(&spec_, "{}", kind);
      runner.Observe(&observer);
      runner.Prefill(0, golden.tokens, chunk);
      for (size_t at = 0; at < chosen.size(); ++at) {
        ASSERT_EQ(chosen[at], golden.chosen[at])
            << "backend " << static_cast<int>(kind) << ", chunks of " << chunk << ", layer "
            << static_cast<int64_t>(at) / topk / length << ", position "
            << static_cast<int64_t>(at) / topk % length;
      }
    }
  }
}

TEST_P(FamilyParity, EveryChangedRuleIsSeen) {
  // Only a reading that is right shows that another is wrong.
  ASSERT_LE(Error(Run(spec_, BackendKind::kReference, golden_[0], 512), golden_[0]), kTolerance);
  std::vector<std::string> names;
  for (const Mutation& mutation : MutationsOf(spec_)) {
    names.push_back(mutation.name);
    ModelSpec changed = spec_;
    mutation.apply(&changed);
    double error = 0;
    for (const GoldenSequence& golden : golden_) {
      error = std::max(error, Error(Run(changed, BackendKind::kReference, golden, 512), golden));
    }
    EXPECT_GT(error, kTolerance) << mutation.name;
    RecordProperty(StrCat("mutation_", mutation.name), StrCat(error));
  }
  EXPECT_THAT(names, IsSupersetOf(GetParam().must_detect));
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, FamilyParity, ::testing::ValuesIn(kCheckpoints), TestName);

}  // namespace
}  // namespace longstride::model

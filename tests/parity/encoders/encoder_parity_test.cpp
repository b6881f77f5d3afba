// Encoders against implementations that are not ours: final states, class scores and embeddings of
// tiny random checkpoints (make_encoders.py), documents of every length alone and together.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <numeric>

#include "model/families/family.h"
#include "model/output_heads.h"
#include "model/tokenizer_loading.h"
#include "model/weights/mapped_file.h"
#include "model/weights/safetensors_parser.h"
#include "nlohmann/json.hpp"
#include "tests/model/decoder/paged_runner.h"
#include "tests/parity/families/mutations.h"

namespace longstride::model {
namespace {

using kernels::BackendKind;
using ::testing::HasSubstr;
using ::testing::IsSupersetOf;

// Of states, whose deviation is about 1, of probabilities and of the channels of unit vectors.
constexpr double kTolerance = 1e-4;
constexpr int32_t kStepTokens = 2048;  // all documents together

struct Checkpoint {
  std::string folder;
  std::string family;
  std::vector<std::string> must_detect;
  std::vector<int32_t> windows = {0, 9};
};

const Checkpoint kCheckpoints[] = {
    {"modernbert_classifier",
     "modernbert",
     {"window + 1", "window - 1", "window off", "rope bases swapped", "one rope for all", "RMSNorm",
      "reads back only", "embedding norm dropped", "gate and up swapped", "another pooling",
      "head activation dropped", "head norm dropped"}},
    {"modernbert_multi_label",
     "modernbert",
     {"window + 1", "window - 1", "rope bases swapped", "another pooling", "head bias dropped",
      "scores of the other kind"}},
    {"modernbert_embedder", "modernbert", {"window + 1", "window - 1", "another pooling"}},
    {"longformer_classifier",
     "longformer",
     {"window + 1",
      "window - 1",
      "window off",
      "RMSNorm",
      "reads back only",
      "no global token",
      "two global tokens",
      "global queries as the others",
      "global keys as the others",
      "global values as the others",
      "norms before the sum",
      "positions one late",
      "positions dropped",
      "output bias dropped",
      "norm after attention dropped",
      "post norms' bias dropped",
      "another activation",
      "another pooling",
      "head activation dropped",
      "head bias dropped"},
     {9, 3, 17}},
    {"longformer_embedder",
     "longformer",
     {"window + 1", "window - 1", "positions one late", "another pooling"}},
    {"embeddinggemma",
     "gemma3",
     {"window + 1", "window - 1", "window off", "rope bases swapped", "qk-norm skipped",
      "reads back only", "norm offset dropped", "embedding scale dropped", "another pooling",
      "head activation dropped", "head bias dropped"}},
};

void PrintTo(const Checkpoint& checkpoint, std::ostream* out) { *out << checkpoint.folder; }

std::string Folder(const std::string& checkpoint) {
  return StrCat(LONGSTRIDE_SOURCE_DIR, "/tests/parity/encoders/data/", checkpoint);
}

struct Document {
  std::vector<int32_t> tokens;
  std::vector<int32_t> positions;  // whose states are golden
  FloatRows states;
  std::vector<float> scores;  // of a classifier
};

class Golden {
 public:
  explicit Golden(const std::string& checkpoint) {
    auto file = MappedFile::Open(Folder(checkpoint) + "/golden.safetensors", "golden.safetensors");
    EXPECT_TRUE(file.ok()) << file.status();
    file_ = *std::move(file);
    auto tensors = ParseSafetensors(file_.bytes());
    EXPECT_TRUE(tensors.ok()) << tensors.status();
    for (const SafetensorsTensor& tensor : *tensors) by_name_[tensor.name] = tensor;
  }

  std::vector<Document> Documents() const {
    std::vector<Document> documents;
    for (int i = 0; by_name_.contains(StrCat("tokens.", i)); ++i) {
      Document d;
      d.tokens = Values<int32_t>(StrCat("tokens.", i));
      d.positions = Values<int32_t>(StrCat("positions.", i));
      const std::vector<float> states = Values<float>(StrCat("states.", i));
      const auto dim = static_cast<std::ptrdiff_t>(states.size() / d.positions.size());
      for (auto row = states.begin(); row != states.end(); row += dim) {
        d.states.emplace_back(row, row + dim);
      }
      d.scores = Values<float>(StrCat("scores.", i));
      documents.push_back(std::move(d));
    }
    return documents;
  }

 private:
  template <typename T>
  std::vector<T> Values(const std::string& name) const {
    const auto it = by_name_.find(name);
    if (it == by_name_.end()) return {};
    std::vector<T> values(it->second.bytes / sizeof(T));
    std::memcpy(values.data(), file_.bytes().data() + it->second.offset, it->second.bytes);
    return values;
  }

  MappedFile file_;
  std::map<std::string, SafetensorsTensor> by_name_;
};

double Difference(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double most = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = std::fabs(double{a[i]} - b[i]);
    if (std::isnan(difference)) return std::numeric_limits<double>::infinity();
    most = std::max(most, difference);
  }
  return most;
}

std::vector<float> Pool(const FloatRows& states, Pooling pooling) {
  if (pooling == Pooling::kFirst) return states.front();
  if (pooling == Pooling::kLast) return states.back();
  std::vector<double> sums(states.front().size(), 0.0);
  for (const std::vector<float>& row : states) {
    for (size_t d = 0; d < sums.size(); ++d) sums[d] += static_cast<double>(row[d]);
  }
  std::vector<float> mean;
  for (const double sum : sums) {
    mean.push_back(static_cast<float>(sum / static_cast<double>(states.size())));
  }
  return mean;
}

std::vector<float> UnitLength(std::vector<float> vector) {
  const double length = std::sqrt(std::inner_product(vector.begin(), vector.end(), vector.begin(), 0.0));
  for (float& x : vector) x = static_cast<float>(x / length);
  return vector;
}

FloatRows States(const ModelSpec& spec, BackendKind kind, const std::vector<int32_t>& tokens) {
  PagedRunner runner(&spec, "{}", kind, kernels::KvDType::kF32, kStepTokens);
  const absl::Status status = runner.Step({{.tokens = tokens, .wants_hidden = true}});
  EXPECT_TRUE(status.ok()) << status;
  return runner.hidden;
}

void AddGlobalMutations(std::vector<Mutation>* out) {
  const auto layers = [out](std::string name, std::function<void(LayerSpec*)> change) {
    out->push_back({std::move(name), [change](ModelSpec* s) {
                      for (LayerSpec& layer : s->layers) change(&layer);
                    }});
  };
  layers("no global token", [](LayerSpec* l) {
    l->attention.native.global_tokens = 0;
    l->weights.global_wq = {};
  });
  layers("global token in the others' projections",
         [](LayerSpec* l) { l->weights.global_wq = {}; });
  layers("two global tokens", [](LayerSpec* l) { l->attention.native.global_tokens = 2; });
  layers("global queries as the others", [](LayerSpec* l) {
    l->weights.global_wq = l->weights.wq;
    l->weights.global_bq = l->weights.bq;
  });
  layers("global keys as the others", [](LayerSpec* l) { l->weights.global_wk = l->weights.wk; });
  layers("global values as the others", [](LayerSpec* l) {
    l->weights.global_wv = l->weights.wv;
    l->weights.global_bv = l->weights.bv;
  });
  out->push_back({"reads back only", [](ModelSpec* s) {
                    s->causal = true;
                    for (LayerSpec& l : s->layers) {
                      l.attention.native.global_tokens = 0;
                      l.weights.global_wq = {};
                    }
                  }});
}

// Wrong readings beside those of every family.
std::vector<Mutation> EncoderMutations(const ModelSpec& spec) {
  std::vector<Mutation> out = MutationsOf(spec);
  const auto heads = [](std::string name, std::function<void(OutputHead*)> change) {
    return Mutation{std::move(name), [change](ModelSpec* s) {
                      change(&s->embedding_head);
                      if (s->classifier) change(&s->classifier->head);
                    }};
  };
  const auto layers = [&](std::string name, std::function<void(HeadLayer*)> change) {
    return heads(std::move(name), [change](OutputHead* h) {
      for (HeadLayer& layer : h->layers) change(&layer);
    });
  };
  const auto any = [&](const auto& test) {
    const OutputHead& head = spec.classifier ? spec.classifier->head : spec.embedding_head;
    return std::any_of(head.layers.begin(), head.layers.end(), test);
  };
  if (spec.layers[0].weights.global_wq.data != nullptr) {
    AddGlobalMutations(&out);
  } else {
    out.push_back({"reads back only", [](ModelSpec* s) { s->causal = true; }});
  }
  if (spec.norm_sums) {
    out.push_back({"norms before the sum", [](ModelSpec* s) {
                     s->norm_sums = false;
                     s->output_norm = s->embedding_norm;
                   }});
    out.push_back({"post norms' bias dropped", [](ModelSpec* s) {
                     for (LayerSpec& l : s->layers) {
                       l.weights.post_attn_norm_bias = l.weights.post_mlp_norm_bias = {};
                     }
                   }});
  }
  if (spec.position_embedding.data != nullptr) {
    out.push_back({"positions dropped", [](ModelSpec* s) { s->position_embedding = {}; }});
    out.push_back({"positions one late", [](ModelSpec* s) {
                     // The family's own table has rows before the first.
                     s->position_embedding.data =
                         s->position_embedding.ptr<float>() - s->position_embedding.shape[1];
                   }});
  }
  out.push_back(heads("another pooling", [](OutputHead* h) {
    h->pooling = h->pooling == Pooling::kMean ? Pooling::kFirst : Pooling::kMean;
  }));
  if (spec.embedding_norm.data != nullptr) {
    out.push_back({"embedding norm dropped", [](ModelSpec* s) { s->embedding_norm = {}; }});
  }
  if (any([](const HeadLayer& l) { return l.activation != HeadActivation::kNone; })) {
    out.push_back(layers("head activation dropped",
                         [](HeadLayer* l) { l->activation = HeadActivation::kNone; }));
  }
  if (any([](const HeadLayer& l) { return l.norm.data != nullptr; })) {
    out.push_back(layers("head norm dropped", [](HeadLayer* l) { l->norm = {}; }));
  }
  if (any([](const HeadLayer& l) { return l.bias.data != nullptr; })) {
    out.push_back(layers("head bias dropped", [](HeadLayer* l) { l->bias = {}; }));
  }
  if (spec.classifier) {
    out.push_back({"scores of the other kind", [](ModelSpec* s) {
                     s->classifier->scores = s->classifier->scores == ClassScores::kSoftmax
                                                 ? ClassScores::kSigmoid
                                                 : ClassScores::kSoftmax;
                   }});
  }
  return out;
}

class EncoderParity : public ::testing::TestWithParam<Checkpoint> {
 protected:
  void SetUp() override {
    auto file = WeightsFile::Open(Folder(GetParam().folder));
    ASSERT_TRUE(file.ok()) << file.status();
    file_ = *std::move(file);
    auto spec = LoadModelSpec(*file_);
    ASSERT_TRUE(spec.ok()) << spec.status();
    spec_ = *std::move(spec);
    documents_ = Golden(GetParam().folder).Documents();
    ASSERT_GE(documents_.size(), 10u);
    std::ifstream texts(Folder(GetParam().folder) + "/golden.json");
    texts_ = nlohmann::json::parse(texts)["texts"];
  }

  // Of the states and what is made of them, over all documents.
  double DocumentsError(const ModelSpec& spec, BackendKind kind) const {
    double error = 0;
    for (const Document& d : documents_) {
      const FloatRows states = States(spec, kind, d.tokens);
      if (states.size() != d.tokens.size()) return std::numeric_limits<double>::infinity();
      for (size_t i = 0; i < d.positions.size(); ++i) {
        error = std::max(error, Difference(states[static_cast<size_t>(d.positions[i])], d.states[i]));
      }
      if (!spec.classifier) continue;
      const std::vector<float> scores = Classify(spec, Pool(states, spec.classifier->head.pooling));
      error = std::max(error, Difference(scores, d.scores));
    }
    return error;
  }

  // The same from text to vector.
  double TextsError(const ModelSpec& spec, BackendKind kind) const {
    double error = 0;
    for (const auto& entry : texts_) {
      const FloatRows states = States(spec, kind, entry["ids"].get<std::vector<int32_t>>());
      const std::vector<float> made =
          spec.classifier ? Classify(spec, Pool(states, spec.classifier->head.pooling))
                          : UnitLength(Embed(spec, Pool(states, spec.embedding_head.pooling)));
      const auto golden =
          entry[spec.classifier ? "scores" : "embedding"].get<std::vector<float>>();
      error = std::max(error, Difference(made, golden));
    }
    return error;
  }

  std::unique_ptr<WeightsFile> file_;
  ModelSpec spec_;
  std::vector<Document> documents_;
  nlohmann::json texts_;
};

TEST_P(EncoderParity, IsRecognised) {
  EXPECT_EQ(spec_.family, GetParam().family);
  EXPECT_FALSE(spec_.causal);
  EXPECT_EQ(spec_.lm_head.data, nullptr);
  EXPECT_EQ(spec_.max_positions, 1024);
  EXPECT_EQ(spec_.classifier.has_value(), !documents_[0].scores.empty());
  for (const LayerSpec& layer : spec_.layers) {
    EXPECT_THAT(GetParam().windows, ::testing::Contains(layer.attention.native.window));
  }
  EXPECT_EQ(static_cast<size_t>(EmbeddingDim(spec_)),
            spec_.classifier ? 32u : texts_[0]["embedding"].size());
}

TEST_P(EncoderParity, ReferenceBackendGivesTheGoldenStates) {
  EXPECT_LE(DocumentsError(spec_, BackendKind::kReference), kTolerance);
  EXPECT_LE(TextsError(spec_, BackendKind::kReference), kTolerance);
}

TEST_P(EncoderParity, CpuBackendGivesTheGoldenStates) {
  const double documents = DocumentsError(spec_, BackendKind::kCpu);
  const double texts = TextsError(spec_, BackendKind::kCpu);
  EXPECT_LE(documents, kTolerance);
  EXPECT_LE(texts, kTolerance);
  RecordProperty("documents_error", StrCat(documents));
  RecordProperty("texts_error", StrCat(texts));
}

TEST_P(EncoderParity, TokenizerGivesTheGoldenIds) {
  const auto tokenizer = LoadTokenizer(*file_);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  for (const auto& entry : texts_) {
    const auto ids = (*tokenizer)->Encode(std::string_view(entry["text"].get_ref<const std::string&>()));
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, entry["ids"].get<std::vector<int32_t>>()) << entry["text"];
  }
}

TEST_P(EncoderParity, EveryChangedRuleIsSeen) {
  std::vector<std::string> names;
  for (const Mutation& mutation : EncoderMutations(spec_)) {
    names.push_back(mutation.name);
    ModelSpec changed = spec_;
    mutation.apply(&changed);
    EXPECT_GT(std::max(DocumentsError(changed, BackendKind::kCpu),
                       TextsError(changed, BackendKind::kCpu)),
              kTolerance)
        << mutation.name;
  }
  EXPECT_THAT(names, IsSupersetOf(GetParam().must_detect));
}

// To the bit, whatever else is in the step and however many threads compute it.
TEST_P(EncoderParity, ADocumentDoesNotDependOnItsCompany) {
  for (const int threads : {1, 2}) {
    for (const bool reversed : {false, true}) {
      std::vector<Document> order = documents_;
      if (reversed) std::reverse(order.begin(), order.end());
      PagedRunner together(&spec_, "{}", BackendKind::kCpu, kernels::KvDType::kF16, kStepTokens,
                           threads);
      std::vector<Piece> pieces;
      for (size_t i = 0; i < order.size(); ++i) {
        pieces.push_back({.sequence = static_cast<int>(i),
                          .tokens = order[i].tokens,
                          .wants_hidden = true});
      }
      const absl::Status status = together.Step(pieces);
      ASSERT_TRUE(status.ok()) << status;
      size_t row = 0;
      for (const Document& d : order) {
        PagedRunner alone(&spec_, "{}", BackendKind::kCpu, kernels::KvDType::kF16, kStepTokens);
        const absl::Status single = alone.Step({{.tokens = d.tokens, .wants_hidden = true}});
        ASSERT_TRUE(single.ok()) << single;
        for (const std::vector<float>& state : alone.hidden) {
          ASSERT_EQ(together.hidden[row++], state) << d.tokens.size() << " tokens";
        }
      }
    }
  }
}

TEST_P(EncoderParity, ADocumentIsNeverCut) {
  PagedRunner runner(&spec_, "{}", BackendKind::kCpu, kernels::KvDType::kF32, kStepTokens);
  ASSERT_TRUE(runner.Step({{.tokens = {5, 6, 7}, .wants_hidden = true}}).ok());
  const absl::Status rest = runner.Step({{.tokens = {8, 9}, .wants_hidden = true}});
  EXPECT_TRUE(absl::IsInvalidArgument(rest)) << rest;
  PagedRunner logits(&spec_, "{}", BackendKind::kCpu, kernels::KvDType::kF32, kStepTokens);
  const absl::Status none = logits.Step({{.tokens = {5, 6, 7}, .num_logits = 1}});
  EXPECT_THAT(none.ToString(), HasSubstr("encoder"));
}

// What is counted as visible and as read are the keys of a dense layer where the plan is dense.
TEST_P(EncoderParity, CountsKeysOfWholeDocuments) {
  PagedRunner runner(&spec_, R"({"default": {"pattern": "dense"}})", BackendKind::kCpu,
                     kernels::KvDType::kF32, kStepTokens);
  const std::vector<int32_t> tokens(100, 5);
  ASSERT_TRUE(runner.Step({{.tokens = tokens, .wants_hidden = true}}).ok());
  ASSERT_EQ(runner.counters.size(), 1u);
  const int64_t all = 100 * 100 * 4 * static_cast<int64_t>(spec_.layers.size());
  EXPECT_EQ(runner.counters[0].keys_total, all);
  EXPECT_EQ(runner.counters[0].keys_visible, all);
  // Kernels score whole blocks of keys.
  EXPECT_GE(runner.counters[0].keys_read, all);
  EXPECT_LE(runner.counters[0].keys_read, all * 128 / 100);
  EXPECT_NEAR(runner.plan().Density(99), 1.0, 1e-9);
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, EncoderParity, ::testing::ValuesIn(kCheckpoints),
                         [](const auto& info) { return info.param.folder; });

}  // namespace
}  // namespace longstride::model

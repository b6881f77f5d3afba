// Encoders' configurations in every spelling, and what is refused of them and of the modules behind.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/model/families/edited_checkpoint.h"

namespace longstride::model {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr const char* kBert = "modernbert_classifier";

ModelSpec Load(const std::string& name, const EditedCheckpoint::Edit& edit = {}) {
  auto spec = EditedCheckpoint(name, edit).Load();
  EXPECT_TRUE(spec.ok()) << spec.status();
  return spec.ok() ? *std::move(spec) : ModelSpec();
}

std::string Error(const std::string& name, const EditedCheckpoint::Edit& edit) {
  return EditedCheckpoint(name, edit).Error();
}

std::vector<int32_t> Windows(const ModelSpec& spec) {
  std::vector<int32_t> windows;
  for (const LayerSpec& layer : spec.layers) windows.push_back(layer.attention.native.window);
  return windows;
}

TEST(ModernBert, WindowsInEverySpelling) {
  EXPECT_THAT(Windows(Load(kBert)), ElementsAre(0, 9, 9, 0, 9));
  const auto old = [](json* c) {
    c->erase("layer_types");
    c->erase("rope_parameters");
    (*c)["local_attention"] = 128;
  };
  const ModelSpec published = Load(kBert, old);
  EXPECT_THAT(Windows(published), ElementsAre(0, 65, 65, 0, 65));
  EXPECT_LT(published.ropes[0].variants[0].inv_freq[1], published.ropes[1].variants[0].inv_freq[1]);
  const ModelSpec even = Load(kBert, [&](json* c) {
    old(c);
    (*c)["global_attn_every_n_layers"] = 2;
    (*c)["local_attention"] = 7;  // half of it, rounded down, to either side
    (*c)["local_rope_theta"] = nullptr;
  });
  EXPECT_THAT(Windows(even), ElementsAre(0, 4, 0, 4, 0));
  EXPECT_EQ(even.ropes[0].variants[0].inv_freq, even.ropes[1].variants[0].inv_freq);
}

TEST(ModernBert, ClassifiersAsTheConfigurationSays) {
  const ModelSpec spec = Load(kBert);
  ASSERT_TRUE(spec.classifier);
  EXPECT_THAT(spec.classifier->labels, ElementsAre("negative", "neutral", "positive"));
  EXPECT_EQ(spec.classifier->scores, ClassScores::kSoftmax);
  EXPECT_EQ(spec.classifier->head.pooling, Pooling::kFirst);
  EXPECT_EQ(spec.classifier->head.layers[0].activation, HeadActivation::kGelu);
  const ModelSpec many = Load("modernbert_multi_label");
  EXPECT_EQ(many.classifier->scores, ClassScores::kSigmoid);
  EXPECT_EQ(many.classifier->head.pooling, Pooling::kMean);
  EXPECT_EQ(Load(kBert, [](json* c) { (*c)["problem_type"] = "regression"; }).classifier->scores,
            ClassScores::kIdentity);
  EXPECT_THAT(Error(kBert, [](json* c) { (*c)["problem_type"] = "ranking"; }),
              HasSubstr("single_label_classification"));
  EXPECT_THAT(Error(kBert, [](json* c) { (*c)["classifier_pooling"] = "max"; }),
              HasSubstr("cls and mean"));
  EXPECT_THAT(Error(kBert, [](json* c) { (*c)["classifier_activation"] = "mish"; }),
              HasSubstr("\"mish\""));
  EXPECT_THAT(Error(kBert, [](json* c) { (*c)["id2label"].erase("1"); }), HasSubstr("\"id2label.1\""));
  EXPECT_THAT(Error(kBert, [](json* c) { (*c)["id2label"]["3"] = "x"; }),
              HasSubstr("classifier.weight"));
  EXPECT_THAT(Error(kBert, [](json* c) { c->erase("id2label"); }), HasSubstr("classifier.weight"));
  EXPECT_THAT(Error(kBert, [](json* c) {
                (*c)["architectures"] = {"ModernBertForTokenClassification"};
              }),
              HasSubstr("the only one with a classifier"));
}

TEST(ModernBert, RefusesWhatItDoesNotCompute) {
  for (const char* key : {"attention_bias", "mlp_bias", "norm_bias"}) {
    EXPECT_THAT(Error(kBert, [&](json* c) { (*c)[key] = true; }), HasSubstr(key));
  }
  EXPECT_THAT(Error(kBert, [](json* c) { (*c)["hidden_activation"] = "relu"; }),
              HasSubstr("hidden_activation"));
  EXPECT_THAT(Error(kBert, [](json* c) { (*c)["local_attention"] = 0; }),
              HasSubstr("local_attention"));
  EXPECT_THAT(Error(kBert, [](json* c) { (*c)["num_hidden_layers"] = 4; }), HasSubstr("for 4 layers"));
}

TEST(Longformer, WindowsInEverySpelling) {
  const char* name = "longformer_classifier";
  const auto with = [](const json& value) {
    return [value](json* c) { (*c)["attention_window"] = value; };
  };
  EXPECT_THAT(Windows(Load(name)), ElementsAre(9, 3, 17));
  EXPECT_THAT(Windows(Load(name, with(16))), ElementsAre(9, 9, 9));
  EXPECT_THAT(Windows(Load(name, [](json* c) { c->erase("attention_window"); })),
              ElementsAre(257, 257, 257));
  EXPECT_THAT(Error(name, with(15)), HasSubstr("15; an even number"));
  EXPECT_THAT(Error(name, with(0)), HasSubstr("even number"));
  EXPECT_THAT(Error(name, with({16, 16})), HasSubstr("2 windows for 3 layers"));
  EXPECT_THAT(Error(name, with(json::array({16}))), HasSubstr("1 windows for 3 layers"));
}

TEST(Longformer, OnlyClassifiersHaveAGlobalToken) {
  const ModelSpec spec = Load("longformer_classifier");
  ASSERT_TRUE(spec.classifier);
  EXPECT_THAT(spec.classifier->labels, ElementsAre("argument", "opinion", "report"));
  EXPECT_EQ(spec.classifier->head.pooling, Pooling::kFirst);
  EXPECT_EQ(spec.classifier->head.layers[0].activation, HeadActivation::kTanh);
  EXPECT_EQ(spec.layers[0].attention.native.global_tokens, 1);
  EXPECT_NE(spec.layers[0].weights.global_wq.data, nullptr);
  const ModelSpec bare = Load("longformer_embedder");
  EXPECT_FALSE(bare.classifier);
  EXPECT_EQ(bare.layers[0].attention.native.global_tokens, 0);
  EXPECT_EQ(bare.layers[0].weights.global_wq.data, nullptr);
  EXPECT_EQ(bare.max_positions, 1024);
}

TEST(Longformer, RefusesWhatItDoesNotCompute) {
  const char* name = "longformer_classifier";
  EXPECT_THAT(Error(name, [](json* c) { (*c)["position_embedding_type"] = "relative_key"; }),
              HasSubstr("absolute"));
  EXPECT_THAT(Error(name, [](json* c) { (*c)["is_decoder"] = true; }), HasSubstr("is_decoder"));
  EXPECT_THAT(Error(name, [](json* c) { (*c)["hidden_act"] = "relu"; }), HasSubstr("hidden_act"));
  EXPECT_THAT(Error(name, [](json* c) { (*c)["pad_token_id"] = 1024; }),
              HasSubstr("positions begin at 1025"));
  EXPECT_THAT(Error(name, [](json* c) { (*c)["max_position_embeddings"] = 512; }),
              HasSubstr("position_embeddings.weight"));
  EXPECT_THAT(
      Error(name, [](json* c) { (*c)["architectures"] = {"LongformerForTokenClassification"}; }),
      HasSubstr("the only one with a classifier"));
}

TEST(EmbeddingGemma, HalvesTheWindow) {
  const ModelSpec spec = Load("embeddinggemma");
  EXPECT_FALSE(spec.causal);
  EXPECT_THAT(Windows(spec), ElementsAre(9, 9, 9, 9, 9, 0, 9));
  EXPECT_EQ(spec.lm_head.data, nullptr);
  const ModelSpec causal = Load("embeddinggemma", [](json* c) {
    (*c)["use_bidirectional_attention"] = false;
  });
  EXPECT_TRUE(causal.causal);
  EXPECT_THAT(Windows(causal), ElementsAre(16, 16, 16, 16, 16, 0, 16));
}

class Modules : public ::testing::Test {
 protected:
  // The error of a generating model behind which stand these modules.
  std::string ErrorOf(const std::string& modules, const std::string& config = "{}") {
    EditedCheckpoint checkpoint("llama");
    checkpoint.Write("modules.json", modules);
    checkpoint.Write("1_X/config.json", config);
    return checkpoint.Error();
  }
  static std::string One(const std::string& type) {
    return R"([{"type": "sentence_transformers.models.)" + type + R"(", "path": "1_X"}])";
  }
};

TEST_F(Modules, PoolingInBothSpellings) {
  const std::pair<const char*, Pooling> cases[] = {
      {R"({"pooling_mode": "lasttoken"})", Pooling::kLast},
      {R"({"pooling_mode_lasttoken": true, "pooling_mode_mean_tokens": false})", Pooling::kLast},
      {R"({"pooling_mode_cls_token": true})", Pooling::kFirst},
      {R"({"pooling_mode": "mean", "include_prompt": true})", Pooling::kMean},
      {"{}", Pooling::kMean}};
  for (const auto& [config, pooling] : cases) {
    EditedCheckpoint checkpoint("llama");
    checkpoint.Write("modules.json", One("Pooling"));
    checkpoint.Write("1_X/config.json", config);
    const auto spec = checkpoint.Load();
    ASSERT_TRUE(spec.ok()) << spec.status();
    EXPECT_EQ(spec->embedding_head.pooling, pooling) << config;
    EXPECT_TRUE(spec->causal);
  }
}

TEST_F(Modules, RefusesByName) {
  EXPECT_THAT(ErrorOf(One("CNN")), HasSubstr("\"CNN\" is not supported"));
  EXPECT_THAT(ErrorOf(One("Pooling"), R"({"pooling_mode": "max"})"), HasSubstr("\"max\""));
  EXPECT_THAT(ErrorOf(One("Pooling"),
                      R"({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true})"),
              HasSubstr("cls and mean"));
  EXPECT_THAT(ErrorOf(One("Pooling"), R"({"include_prompt": false})"), HasSubstr("include_prompt"));
  EXPECT_THAT(ErrorOf(One("Dense"), R"({"in_features": 7, "out_features": 3})"), HasSubstr("gives 32"));
  EXPECT_THAT(ErrorOf(One("Dense"), R"({"in_features": 32, "out_features": 3})"),
              HasSubstr("1_X/linear.weight"));
  EXPECT_THAT(ErrorOf(R"([{"type": "a.Pooling", "path": "2_Absent"}])"), HasSubstr("config.json"));
  EXPECT_THAT(ErrorOf(R"([{"type": "a.Pooling", "path": "../x"}])"), HasSubstr("folder's name"));
  EXPECT_THAT(ErrorOf("{}"), HasSubstr("modules.json"));
  EXPECT_THAT(ErrorOf("[1]"), HasSubstr("modules.json"));
}

}  // namespace
}  // namespace longstride::model

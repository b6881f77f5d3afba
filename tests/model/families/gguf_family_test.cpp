#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "model/families/family.h"
#include "model/families/generation_defaults.h"
#include "model/weights/gguf_file.h"
#include "tests/testing/gguf_writer.h"

namespace longstride::model {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using testing::GgufWriter;
using ::testing::HasSubstr;

constexpr int kDim = 32;
constexpr int kFfn = 32;
constexpr int kVocab = 40;

// Metadata that every architecture has: 4 layers, 4 heads of 8 channels, 2 KV heads.
GgufWriter Base(const std::string& arch, int layers = 4) {
  GgufWriter writer;
  writer.SetString("general.architecture", arch);
  writer.SetString("general.name", "Tiny");
  writer.SetUint32("general.file_type", 15);
  writer.SetUint32(arch + ".block_count", static_cast<uint32_t>(layers));
  writer.SetUint32(arch + ".context_length", 1024);
  writer.SetUint32(arch + ".embedding_length", kDim);
  writer.SetUint32(arch + ".feed_forward_length", kFfn);
  writer.SetUint32(arch + ".attention.head_count", 4);
  writer.SetUint32(arch + ".attention.head_count_kv", 2);
  writer.AddZeros("token_embd.weight", {kVocab, kDim});
  writer.AddZeros("output_norm.weight", {kDim});
  return writer;
}

std::string Blk(int layer, const char* name) { return StrCat("blk.", layer, ".", name); }

void AddAttention(GgufWriter* writer, int layer) {
  writer->AddZeros(Blk(layer, "attn_q.weight"), {32, kDim});
  writer->AddZeros(Blk(layer, "attn_k.weight"), {16, kDim});
  writer->AddZeros(Blk(layer, "attn_v.weight"), {16, kDim});
  writer->AddZeros(Blk(layer, "attn_output.weight"), {kDim, 32});
}

void AddMlp(GgufWriter* writer, int layer) {
  writer->AddZeros(Blk(layer, "ffn_gate.weight"), {kFfn, kDim});
  writer->AddZeros(Blk(layer, "ffn_up.weight"), {kFfn, kDim});
  writer->AddZeros(Blk(layer, "ffn_down.weight"), {kDim, kFfn});
}

void AddNorms(GgufWriter* writer, int layer, const std::vector<const char*>& names) {
  for (const char* name : names) writer->AddZeros(Blk(layer, name), {kDim});
}

struct Loaded {
  std::vector<uint8_t> bytes;
  std::unique_ptr<WeightsFile> file;
  absl::StatusOr<ModelSpec> spec = absl::UnknownError("");
};

std::unique_ptr<Loaded> Load(const GgufWriter& writer) {
  auto loaded = std::make_unique<Loaded>();
  loaded->bytes = writer.Finish();
  auto file = OpenGgufMemory({loaded->bytes});
  EXPECT_TRUE(file.ok()) << file.status();
  loaded->file = *std::move(file);
  loaded->spec = LoadModelSpec(*loaded->file);
  return loaded;
}

std::vector<int32_t> Windows(const ModelSpec& spec) {
  std::vector<int32_t> windows;
  for (const LayerSpec& layer : spec.layers) windows.push_back(layer.attention.native.window);
  return windows;
}

GgufWriter Llama() {
  GgufWriter writer = Base("llama", 2);
  writer.SetFloat32("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  for (int i = 0; i < 2; ++i) {
    AddAttention(&writer, i);
    AddMlp(&writer, i);
    AddNorms(&writer, i, {"attn_norm.weight", "ffn_norm.weight"});
  }
  return writer;
}

TEST(GgufFamily, LlamaRotatesInterleavedPairs) {
  GgufWriter writer = Llama();
  writer.SetFloat32("llama.rope.freq_base", 500000.0f);
  const auto loaded = Load(writer);
  ASSERT_TRUE(loaded->spec.ok()) << loaded->spec.status();
  const ModelSpec& spec = *loaded->spec;
  EXPECT_TRUE(spec.ropes[0].variants[0].interleaved);
  EXPECT_EQ(spec.name, "Tiny");
  EXPECT_EQ(spec.weights_type, "Q4_K_M");
  EXPECT_EQ(spec.vocab_size, kVocab);
  EXPECT_TRUE(spec.tied_embedding);
  EXPECT_FLOAT_EQ(spec.ropes[0].variants[0].inv_freq[2],
                  static_cast<float>(std::pow(500000.0, -0.5)));
}

TEST(GgufFamily, LlamaDividesByTheFrequencyTensor) {
  GgufWriter writer = Llama();
  writer.AddFloats("rope_freqs.weight", {4}, {1, 1, 2, 8});
  const auto loaded = Load(writer);
  ASSERT_TRUE(loaded->spec.ok()) << loaded->spec.status();
  EXPECT_FLOAT_EQ(loaded->spec->ropes[0].variants[0].inv_freq[2], 0.01f / 2);
  EXPECT_FLOAT_EQ(loaded->spec->ropes[0].variants[0].inv_freq[3], 0.001f / 8);
  GgufWriter wrong = Llama();
  wrong.AddFloats("rope_freqs.weight", {3}, {1, 1, 2});
  EXPECT_THAT(std::string(Load(wrong)->spec.status().message()), HasSubstr("3 values"));
}

TEST(GgufFamily, LlamaTakesAWindowAndBiases) {
  GgufWriter writer = Llama();
  writer.SetUint32("llama.attention.sliding_window", 16);
  writer.AddZeros("blk.1.attn_q.bias", {32});
  const auto loaded = Load(writer);
  ASSERT_TRUE(loaded->spec.ok()) << loaded->spec.status();
  EXPECT_THAT(Windows(*loaded->spec), ElementsAre(16, 16));
  EXPECT_EQ(loaded->spec->layers[0].weights.bq.data, nullptr);
  EXPECT_NE(loaded->spec->layers[1].weights.bq.data, nullptr);
}

TEST(GgufFamily, RefusesMixturesAndUnknownArchitectures) {
  GgufWriter moe = Llama();
  moe.SetUint32("llama.expert_count", 8);
  EXPECT_THAT(std::string(Load(moe)->spec.status().message()), HasSubstr("Mixtral"));
  const auto other = Load(Base("rwkv7"));
  EXPECT_TRUE(absl::IsUnimplemented(other->spec.status()));
  EXPECT_THAT(std::string(other->spec.status().message()), HasSubstr("gpt-oss"));
  GgufWriter extra = Llama();
  extra.AddZeros("blk.0.attn_gate.weight", {4});
  EXPECT_THAT(std::string(Load(extra)->spec.status().message()), HasSubstr("attn_gate"));
}

TEST(GgufFamily, Gemma3HasItsPatternByArchitecture) {
  GgufWriter writer = Base("gemma3", 7);
  writer.SetFloat32("gemma3.attention.layer_norm_rms_epsilon", 1e-6f);
  writer.SetUint32("gemma3.attention.key_length", 8);
  writer.SetUint32("gemma3.attention.sliding_window", 512);
  writer.SetFloat32("gemma3.rope.freq_base", 1e6f);
  writer.SetString("gemma3.rope.scaling.type", "linear");
  writer.SetFloat32("gemma3.rope.scaling.factor", 8.0f);
  for (int i = 0; i < 7; ++i) {
    AddAttention(&writer, i);
    AddMlp(&writer, i);
    AddNorms(&writer, i,
             {"attn_norm.weight", "ffn_norm.weight", "post_attention_norm.weight",
              "post_ffw_norm.weight"});
    writer.AddZeros(Blk(i, "attn_q_norm.weight"), {8});
    writer.AddZeros(Blk(i, "attn_k_norm.weight"), {8});
  }
  const auto loaded = Load(writer);
  ASSERT_TRUE(loaded->spec.ok()) << loaded->spec.status();
  EXPECT_THAT(Windows(*loaded->spec), ElementsAre(512, 512, 512, 512, 512, 0, 512));
  EXPECT_EQ(loaded->spec->norm_weight_offset, 0.0f);
  EXPECT_FLOAT_EQ(loaded->spec->ropes[0].variants[0].inv_freq[0], 0.125f);
  EXPECT_EQ(loaded->spec->ropes[1].variants[0].inv_freq[0], 1.0f);
  EXPECT_FLOAT_EQ(loaded->spec->ropes[1].variants[0].inv_freq[2], 0.01f);
}

TEST(GgufFamily, Gemma2DefaultsToItsCapsAndWindow) {
  GgufWriter writer = Base("gemma2");
  writer.SetFloat32("gemma2.attention.layer_norm_rms_epsilon", 1e-6f);
  for (int i = 0; i < 4; ++i) {
    AddAttention(&writer, i);
    AddMlp(&writer, i);
    AddNorms(&writer, i,
             {"attn_norm.weight", "ffn_norm.weight", "post_attention_norm.weight",
              "post_ffw_norm.weight"});
  }
  const auto loaded = Load(writer);
  ASSERT_TRUE(loaded->spec.ok()) << loaded->spec.status();
  EXPECT_THAT(Windows(*loaded->spec), ElementsAre(4096, 0, 4096, 0));
  EXPECT_EQ(loaded->spec->layers[0].attention.softcap, 50.0f);
  EXPECT_EQ(loaded->spec->logit_softcap, 30.0f);
}

TEST(GgufFamily, QwenNeedsItsBiases) {
  GgufWriter writer = Base("qwen2", 1);
  writer.SetFloat32("qwen2.attention.layer_norm_rms_epsilon", 1e-6f);
  AddAttention(&writer, 0);
  AddMlp(&writer, 0);
  AddNorms(&writer, 0, {"attn_norm.weight", "ffn_norm.weight"});
  GgufWriter biased = writer;
  biased.AddZeros("blk.0.attn_q.bias", {32});
  biased.AddZeros("blk.0.attn_k.bias", {16});
  biased.AddZeros("blk.0.attn_v.bias", {16});
  const auto loaded = Load(biased);
  ASSERT_TRUE(loaded->spec.ok()) << loaded->spec.status();
  EXPECT_FALSE(loaded->spec->ropes[0].variants[0].interleaved);
  EXPECT_THAT(std::string(Load(writer)->spec.status().message()), HasSubstr("attn_q.bias"));
}

TEST(GgufFamily, Qwen3NormsEveryHead) {
  GgufWriter writer = Base("qwen3", 1);
  writer.SetFloat32("qwen3.attention.layer_norm_rms_epsilon", 1e-6f);
  AddAttention(&writer, 0);
  AddMlp(&writer, 0);
  AddNorms(&writer, 0, {"attn_norm.weight", "ffn_norm.weight"});
  writer.AddZeros("blk.0.attn_q_norm.weight", {8});
  writer.AddZeros("blk.0.attn_k_norm.weight", {8});
  const auto loaded = Load(writer);
  ASSERT_TRUE(loaded->spec.ok()) << loaded->spec.status();
  EXPECT_EQ(loaded->spec->layers[0].attention.qk_norm, QkNorm::kPerHead);
}

TEST(GgufFamily, Phi3SplitsFusedMatricesAndReadsLongRope) {
  GgufWriter writer = Base("phi3", 1);
  writer.SetFloat32("phi3.attention.layer_norm_rms_epsilon", 1e-5f);
  writer.SetUint32("phi3.attention.sliding_window", 100);
  writer.SetUint32("phi3.rope.scaling.original_context_length", 256);
  writer.SetFloat32("phi3.rope.scaling.attn_factor", 1.25f);
  writer.SetUint32("phi3.rope.dimension_count", 6);
  writer.AddFloats("rope_factors_short.weight", {3}, {1, 1, 2});
  writer.AddFloats("rope_factors_long.weight", {3}, {1, 4, 8});
  writer.AddZeros("output.weight", {kVocab, kDim});
  writer.AddZeros("blk.0.attn_qkv.weight", {64, kDim});
  writer.AddZeros("blk.0.attn_output.weight", {kDim, 32});
  writer.AddZeros("blk.0.ffn_up.weight", {2 * kFfn, kDim});
  writer.AddZeros("blk.0.ffn_down.weight", {kDim, kFfn});
  AddNorms(&writer, 0, {"attn_norm.weight", "ffn_norm.weight"});
  const auto loaded = Load(writer);
  ASSERT_TRUE(loaded->spec.ok()) << loaded->spec.status();
  const RopeSpec& rope = loaded->spec->ropes[0];
  ASSERT_EQ(rope.variants.size(), 2u);
  EXPECT_THAT(rope.variant_lengths, ElementsAre(256));
  EXPECT_EQ(rope.variants[0].scale, 1.25f);
  EXPECT_EQ(rope.variants[1].inv_freq.size(), 3u);
  EXPECT_THAT(Windows(*loaded->spec), ElementsAre(100));
  EXPECT_FALSE(loaded->spec->tied_embedding);
}

TEST(GgufFamily, Cohere2TakesItsScaleFromTheFile) {
  GgufWriter writer = Base("cohere2");
  writer.SetFloat32("cohere2.attention.layer_norm_epsilon", 1e-5f);
  writer.SetFloat32("cohere2.logit_scale", 0.25f);
  writer.SetUint32("cohere2.attention.sliding_window", 64);
  writer.SetString("cohere2.rope.scaling.type", "none");
  for (int i = 0; i < 4; ++i) {
    AddAttention(&writer, i);
    AddMlp(&writer, i);
    AddNorms(&writer, i, {"attn_norm.weight"});
  }
  const auto loaded = Load(writer);
  ASSERT_TRUE(loaded->spec.ok()) << loaded->spec.status();
  EXPECT_THAT(Windows(*loaded->spec), ElementsAre(64, 64, 64, 0));
  EXPECT_EQ(loaded->spec->layers[3].attention.rope, -1);
  EXPECT_EQ(loaded->spec->logit_scale, 0.25f);
  EXPECT_EQ(loaded->spec->norm, NormKind::kLayerNorm);
}

GgufWriter Olmo() {
  GgufWriter writer = Base("olmo2");
  writer.SetFloat32("olmo2.attention.layer_norm_rms_epsilon", 1e-6f);
  writer.AddZeros("output.weight", {kVocab, kDim});
  for (int i = 0; i < 4; ++i) {
    AddAttention(&writer, i);
    AddMlp(&writer, i);
    AddNorms(&writer, i, {"post_attention_norm.weight", "post_ffw_norm.weight"});
    writer.AddZeros(Blk(i, "attn_q_norm.weight"), {32});
    writer.AddZeros(Blk(i, "attn_k_norm.weight"), {16});
  }
  return writer;
}

// The same architecture name carries both generations.
TEST(GgufFamily, Olmo3IsOlmo2WithAWindow) {
  const auto second = Load(Olmo());
  ASSERT_TRUE(second->spec.ok()) << second->spec.status();
  EXPECT_EQ(second->spec->family, "olmo2");
  EXPECT_THAT(Windows(*second->spec), ElementsAre(0, 0, 0, 0));
  GgufWriter writer = Olmo();
  writer.SetUint32("olmo2.attention.sliding_window", 64);
  writer.SetString("olmo2.rope.scaling.type", "yarn");
  writer.SetFloat32("olmo2.rope.scaling.factor", 8.0f);
  writer.SetUint32("olmo2.rope.scaling.original_context_length", 128);
  writer.SetFloat32("olmo2.rope.scaling.yarn_attn_factor", 1.2079442f);
  const auto third = Load(writer);
  ASSERT_TRUE(third->spec.ok()) << third->spec.status();
  EXPECT_EQ(third->spec->family, "olmo3");
  EXPECT_THAT(Windows(*third->spec), ElementsAre(64, 64, 64, 0));
  EXPECT_NEAR(third->spec->ropes[0].variants[0].scale, 1.2079442, 1e-5);
  EXPECT_EQ(third->spec->ropes[1].variants[0].scale, 1.0f);
  EXPECT_EQ(third->spec->layers[0].attention.rope, 1);
  EXPECT_EQ(third->spec->layers[3].attention.rope, 0);
}

TEST(GgufFamily, Llama4HasItsPatternByArchitecture) {
  GgufWriter writer = Base("llama4");
  writer.SetFloat32("llama4.attention.layer_norm_rms_epsilon", 1e-5f);
  writer.SetUint32("llama4.interleave_moe_layer_step", 2);
  writer.SetUint32("llama4.expert_count", 3);
  writer.SetUint32("llama4.expert_used_count", 1);
  writer.SetUint32("llama4.expert_feed_forward_length", 8);
  for (int i = 0; i < 4; ++i) {
    AddAttention(&writer, i);
    AddNorms(&writer, i, {"attn_norm.weight", "ffn_norm.weight"});
    if (i % 2 == 0) {
      AddMlp(&writer, i);
      continue;
    }
    writer.AddZeros(Blk(i, "ffn_gate_inp.weight"), {3, kDim});
    writer.AddZeros(Blk(i, "ffn_gate_exps.weight"), {3, 8, kDim});
    writer.AddZeros(Blk(i, "ffn_up_exps.weight"), {3, 8, kDim});
    writer.AddZeros(Blk(i, "ffn_down_exps.weight"), {3, kDim, 8});
    writer.AddZeros(Blk(i, "ffn_gate_shexp.weight"), {8, kDim});
    writer.AddZeros(Blk(i, "ffn_up_shexp.weight"), {8, kDim});
    writer.AddZeros(Blk(i, "ffn_down_shexp.weight"), {kDim, 8});
  }
  const auto loaded = Load(writer);
  ASSERT_TRUE(loaded->spec.ok()) << loaded->spec.status();
  const ModelSpec& spec = *loaded->spec;
  EXPECT_EQ(spec.layers[0].attention.native.chunk, 8192);
  EXPECT_EQ(spec.layers[3].attention.native.chunk, 0);
  EXPECT_EQ(spec.layers[3].attention.rope, -1);
  EXPECT_TRUE(spec.layers[3].attention.position_scale);
  EXPECT_EQ(spec.layers[1].mlp.num_experts, 3);
  EXPECT_EQ(spec.layers[1].weights.expert_down[2].shape[0], kDim);
  EXPECT_EQ(spec.layers[2].mlp.num_experts, 0);
}

// The models of scripts/fetch_models.py, where they have been fetched.
TEST(GgufFamily, ReadsThePublishedModels) {
  const std::string folder = StrCat(LONGSTRIDE_SOURCE_DIR, "/models/");
  const std::string gemma = folder + "gemma-3-270m-q4_k_m.gguf";
  const std::string smollm = folder + "SmolLM2-135M-Instruct.Q4_1.gguf";
  if (!std::filesystem::exists(gemma) || !std::filesystem::exists(smollm)) {
    GTEST_SKIP() << "the models are not there: run scripts/fetch_models.py";
  }
  auto file = WeightsFile::Open(gemma);
  ASSERT_TRUE(file.ok()) << file.status();
  auto spec = LoadModelSpec(**file);
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->layers.size(), 18u);
  const std::vector<int32_t> windows = Windows(*spec);
  EXPECT_EQ(std::count(windows.begin(), windows.end(), 512), 15);
  EXPECT_EQ(spec->max_positions, 32768);
  EXPECT_EQ(spec->num_parameters, 268098176);
  EXPECT_THAT(ReadGenerationDefaults(**file, spec->vocab_size)->eos_ids, ElementsAre(1, 106));
  file = WeightsFile::Open(smollm);
  ASSERT_TRUE(file.ok()) << file.status();
  spec = LoadModelSpec(**file);
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->family, "llama");
  EXPECT_EQ(spec->weights_type, "Q4_1");
  EXPECT_THAT(ReadGenerationDefaults(**file, spec->vocab_size)->eos_ids, Contains(2));
}

}  // namespace
}  // namespace longstride::model

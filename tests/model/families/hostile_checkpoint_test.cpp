// Damaged and hostile checkpoints end in an error or in a spec that is sound, never in a crash.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <iterator>
#include <random>

#include "model/families/generation_defaults.h"
#include "model/weights/gguf_file.h"
#include "model/weights/gguf_parser.h"
#include "tests/model/families/edited_checkpoint.h"

namespace longstride::model {
namespace {

using nlohmann::json;

constexpr const char* kFolders[] = {"cohere2",
                                    "deepseek_v2",
                                    "deepseek_v3",
                                    "deepseek_v32",
                                    "gemma2",
                                    "gemma3",
                                    "glm_moe_dsa",
                                    "gpt_oss",
                                    "gpt_oss_mxfp4",
                                    "llama",
                                    "llama4",
                                    "minicpm",
                                    "mistral",
                                    "moba",
                                    "nsa",
                                    "olmo2",
                                    "olmo3",
                                    "phi3_longrope",
                                    "phi3",
                                    "qwen2",
                                    "qwen3",
                                    "qwen2_dual_chunk",
                                    "embeddinggemma",
                                    "longformer_classifier",
                                    "longformer_embedder",
                                    "modernbert_classifier",
                                    "modernbert_multi_label"};

// What the forward pass takes for granted.
void ExpectSound(const ModelSpec& spec) {
  ASSERT_FALSE(spec.layers.empty());
  EXPECT_EQ(spec.embedding.shape[0], spec.vocab_size);
  EXPECT_EQ(spec.lm_head.shape[1], spec.causal ? spec.dim : 0);
  EXPECT_EQ(spec.output_norm.data == nullptr, spec.norm_sums);
  if (spec.position_embedding.data != nullptr) {
    EXPECT_GT(spec.max_positions, 0);
    EXPECT_EQ(spec.position_embedding.shape[0], spec.max_positions);
  }
  if (spec.classifier) {
    EXPECT_EQ(spec.classifier->head.layers.back().weight.shape[0],
              static_cast<int64_t>(spec.classifier->labels.size()));
  }
  if (spec.dual_chunk) {
    EXPECT_GT(spec.dual_chunk->stride(), 0);
    EXPECT_EQ(spec.dual_chunk->stride() % DualChunk::kAlignment, 0);
  }
  for (const LayerSpec& layer : spec.layers) {
    const AttentionSpec& a = layer.attention;
    EXPECT_TRUE(std::isfinite(a.scale));
    EXPECT_GT(a.head_dim, 0);
    EXPECT_EQ(a.num_heads % a.num_kv_heads, 0);
    EXPECT_GE(a.native.window, 0);
    EXPECT_GE(a.native.chunk, 0);
    EXPECT_EQ(a.native.global_tokens > 0, layer.weights.global_wq.data != nullptr);
    if (a.native.infllm_v2.topk > 0) {
      EXPECT_GE(a.native.infllm_v2.init_blocks, 0);
      EXPECT_GT(a.native.infllm_v2.topk, a.native.infllm_v2.init_blocks);
      EXPECT_GE(a.native.infllm_v2.window, 0);
      EXPECT_GE(a.native.infllm_v2.dense_len, 0);
    }
    if (a.native.moba.chunk > 0) {
      EXPECT_EQ(a.native.moba.chunk % kernels::kPageTokens, 0);
      EXPECT_GT(a.native.moba.topk, 0);
    }
    EXPECT_EQ(a.gates, a.native.nsa.block_counts > 0 ? Nsa::kParts : 0);
    if (a.gates > 0) {
      EXPECT_GE(a.native.nsa.window, 0);
      EXPECT_EQ(layer.weights.attn_gates.shape[0], int64_t{a.num_heads} * a.gates);
    }
    if (a.indexer.num_heads > 0) {
      EXPECT_GT(a.native.dsa.topk, 0);
      EXPECT_TRUE(a.is_latent() && a.latent.q_rank > 0);
      EXPECT_GE(a.indexer.head_dim, a.latent.rope_dim);
      EXPECT_LT(a.indexer.rope, static_cast<int32_t>(spec.ropes.size()));
      EXPECT_EQ(layer.weights.index_norm.shape[0], a.indexer.head_dim);
    }
    EXPECT_LT(a.rope, static_cast<int32_t>(spec.ropes.size()));
    EXPECT_EQ(layer.weights.wo.shape[1],
              int64_t{a.num_heads} * (a.is_latent() ? a.latent.value_dim : a.head_dim));
    if (a.is_latent()) {
      EXPECT_EQ(a.num_kv_heads, 1);
      EXPECT_EQ(a.head_dim, a.latent.kv_rank + a.latent.rope_dim);
      EXPECT_EQ(layer.weights.key_up.size(), static_cast<size_t>(a.num_heads));
      EXPECT_EQ(layer.weights.value_up.size(), static_cast<size_t>(a.num_heads));
    }
    if (layer.mlp.num_experts > 0) {
      const kernels::ExpertGroups& g = layer.mlp.groups;
      EXPECT_EQ(layer.mlp.num_experts % g.count, 0);
      EXPECT_TRUE(g.chosen >= 1 && g.chosen <= g.count);
      EXPECT_LE(layer.mlp.top_k, layer.mlp.num_experts / g.count * g.chosen);
    }
    EXPECT_LE(layer.mlp.top_k, layer.mlp.num_experts);
    EXPECT_EQ(layer.weights.expert_up.size(), static_cast<size_t>(layer.mlp.num_experts));
  }
  for (const RopeSpec& rope : spec.ropes) {
    ASSERT_EQ(rope.variants.size(), rope.variant_lengths.size() + 1);
    for (const RopeTable& table : rope.variants) {
      EXPECT_LE(2 * table.inv_freq.size(), static_cast<size_t>(spec.layers[0].attention.head_dim));
      for (const float frequency : table.inv_freq) EXPECT_TRUE(std::isfinite(frequency));
    }
  }
}

// Calls `visit` with each value of the document, nested ones too.
void ForEachValue(json* document, const std::function<void(json*)>& visit) {
  for (auto& [key, value] : document->items()) {
    visit(&value);
    if (value.is_structured()) ForEachValue(&value, visit);
  }
}

TEST(HostileCheckpoint, SurvivesEveryConfigurationValueReplaced) {
  const json values[] = {nullptr,
                         true,
                         0,
                         -1,
                         1,
                         7,
                         1e300,
                         -1e300,
                         1e-300,
                         "x",
                         "su",
                         INT64_MAX,
                         0.5,
                         1.5,
                         65536,
                         UINT64_MAX,
                         json::array(),
                         json::object(),
                         json::array({1e300}),
                         json::array({"x"})};
  int loaded = 0;
  for (const char* folder : kFolders) {
    SCOPED_TRACE(folder);
    json original;
    EditedCheckpoint checkpoint(folder, [&](json* config) { original = *config; });
    ForEachValue(&original, [&](json* value) {
      const json before = *value;
      for (const json& hostile : values) {
        *value = hostile;
        checkpoint.Rewrite(original);
        const auto spec = checkpoint.Load();
        if (spec.ok()) {
          ++loaded;
          ExpectSound(*spec);
        } else {
          EXPECT_FALSE(spec.status().message().empty());
        }
      }
      *value = before;
    });
  }
  EXPECT_GT(loaded, 1000);  // keys that change nothing here
}

TEST(HostileCheckpoint, SurvivesEveryGgufHeaderByteChanged) {
  const uint64_t seed = 41;
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  for (const char* folder : {"llama", "gemma3", "gpt_oss_mxfp4"}) {
    SCOPED_TRACE(folder);
    std::ifstream in(
        StrCat(LONGSTRIDE_SOURCE_DIR, "/tests/parity/families/data/", folder, "/model.gguf"),
        std::ios::binary);
    std::vector<uint8_t> bytes((std::istreambuf_iterator<char>(in)), {});
    const auto header = ParseGguf(bytes);
    ASSERT_TRUE(header.ok()) << header.status();
    for (size_t i = 0; i < header->header_bytes; ++i) {
      const uint8_t before = bytes[i];
      bytes[i] = static_cast<uint8_t>(before ^ (1 + random() % 255));
      const auto file = OpenGgufMemory({bytes});
      if (file.ok()) {
        const auto spec = LoadModelSpec(**file);
        if (spec.ok()) {
          ExpectSound(*spec);
          (void)ReadGenerationDefaults(**file, spec->vocab_size);
        }
      }
      bytes[i] = before;
    }
  }
}

}  // namespace
}  // namespace longstride::model

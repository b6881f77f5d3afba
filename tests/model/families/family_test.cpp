#include "model/families/family.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/model/families/edited_checkpoint.h"
#include "tests/testing/safetensors_writer.h"

namespace longstride::model {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<int32_t> Windows(const ModelSpec& spec) {
  std::vector<int32_t> windows;
  for (const LayerSpec& layer : spec.layers) windows.push_back(layer.attention.native.window);
  return windows;
}

std::vector<int32_t> Ropes(const ModelSpec& spec) {
  std::vector<int32_t> ropes;
  for (const LayerSpec& layer : spec.layers) ropes.push_back(layer.attention.rope);
  return ropes;
}

ModelSpec Load(const std::string& name, const EditedCheckpoint::Edit& edit = {}) {
  EditedCheckpoint checkpoint(name, edit);
  auto spec = checkpoint.Load();
  EXPECT_TRUE(spec.ok()) << spec.status();
  return spec.ok() ? *std::move(spec) : ModelSpec();
}

std::string Error(const std::string& name, const EditedCheckpoint::Edit& edit) {
  return EditedCheckpoint(name, edit).Error();
}

TEST(Family, NamesAnUnknownArchitectureAndTheSupportedOnes) {
  const std::string error = Error("llama", [](json* c) { (*c)["model_type"] = "mamba"; });
  EXPECT_THAT(error, HasSubstr("\"mamba\" is not supported"));
  for (const Family& family : Families()) {
    for (const std::string_view type : family.hf_model_types) {
      EXPECT_THAT(error, HasSubstr(std::string(type)));
    }
  }
  EXPECT_THAT(Error("llama", [](json* c) { c->erase("model_type"); }),
              HasSubstr("\"model_type\" is missing"));
}

TEST(Family, NamesAreUnique) {
  std::vector<std::string_view> names;
  for (const Family& family : Families()) {
    names.insert(names.end(), family.hf_model_types.begin(), family.hf_model_types.end());
  }
  std::sort(names.begin(), names.end());
  EXPECT_EQ(std::adjacent_find(names.begin(), names.end()), names.end());
}

TEST(Family, NamesTheTensorWhoseShapeDoesNotFit) {
  const std::string error = Error("llama", [](json* c) { (*c)["intermediate_size"] = 40; });
  EXPECT_THAT(error, HasSubstr("model.layers.0.mlp.gate_proj.weight"));
  EXPECT_THAT(error, HasSubstr("[32, 32]"));
  EXPECT_THAT(error, HasSubstr("[40, 32]"));
}

TEST(Family, NamesAMissingTensor) {
  EXPECT_THAT(Error("llama", [](json* c) { (*c)["num_hidden_layers"] = 4; }),
              HasSubstr("no tensor \"model.layers.3."));
  EXPECT_THAT(Error("llama", [](json* c) { (*c)["attention_bias"] = true; }),
              HasSubstr("no tensor \"model.layers.0.self_attn.q_proj.bias\""));
}

// A tensor that nobody asks for means a function that is not computed.
TEST(Family, RefusesTensorsThatItDoesNotUse) {
  const std::string error = Error("llama", [](json* c) { (*c)["num_hidden_layers"] = 2; });
  EXPECT_THAT(error, HasSubstr("9 tensors"));
  EXPECT_THAT(error, HasSubstr("model.layers.2."));
  EXPECT_THAT(Error("llama_rope_llama3", [](json* c) { (*c)["attention_bias"] = false; }),
              HasSubstr("does not use"));
}

TEST(Family, ReadsMiniCpmScalesAndSparseConfig) {
  const ModelSpec spec = Load("minicpm");
  EXPECT_EQ(spec.embedding_scale, 3.0f);
  EXPECT_FLOAT_EQ(spec.residual_scale, 1.4f / std::sqrt(2.0f));
  EXPECT_FLOAT_EQ(spec.logit_scale, 16.0f / 32.0f);
  EXPECT_TRUE(spec.tied_embedding);
  EXPECT_EQ(spec.layers[1].attention.native.infllm_v2,
            (InfLlmV2{.topk = 2, .init_blocks = 1, .window = 64, .dense_len = 230}));
  // Released checkpoints come without the object too: dense. -1: sparse at any length.
  const ModelSpec dense = Load("minicpm", [](json* c) { c->erase("sparse_config"); });
  EXPECT_EQ(dense.layers[0].attention.native, NativeSparsity());
  const ModelSpec always = Load("minicpm", [](json* c) {
    (*c)["sparse_config"] = {{"dense_len", -1}};
  });
  EXPECT_EQ(always.layers[0].attention.native.infllm_v2,
            (InfLlmV2{.topk = 64, .init_blocks = 1, .window = 2048, .dense_len = 0}));
}

TEST(Family, RefusesLearnedSparsityThatItDoesNotCompute) {
  const auto error = [](const char* key, const json& value) {
    return Error("minicpm", [&](json* c) { (*c)["sparse_config"][key] = value; });
  };
  EXPECT_THAT(error("kernel_size", 64), HasSubstr("is 64; only 32 is supported"));
  EXPECT_THAT(error("block_size", 128), HasSubstr("sparse_config.block_size"));
  EXPECT_THAT(error("use_nope", true), HasSubstr("a variant of the architecture"));
  EXPECT_THAT(error("topk", 1), HasSubstr("2 or more is allowed"));
  EXPECT_THAT(error("dense_len", -2), HasSubstr("dense_len"));
  EXPECT_THAT(Error("minicpm", [](json* c) { (*c)["dim_model_base"] = 0; }),
              HasSubstr("a number above 0 is allowed"));
  EXPECT_THAT(Error("minicpm", [](json* c) { (*c)["num_experts"] = 8; }),
              HasSubstr("only 0 is supported"));
  EXPECT_THAT(Error("moba", [](json* c) { (*c)["moba_chunk_size"] = 100; }),
              HasSubstr("is 100; only multiples of 64 are supported"));
  EXPECT_THAT(Error("moba", [](json* c) { c->erase("moba_topk"); }), HasSubstr("moba_topk"));
}

TEST(Family, ReadsNsaAsItsCodeComputes) {
  const ModelSpec spec = Load("nsa");
  const AttentionSpec& a = spec.layers[1].attention;
  EXPECT_EQ(a.native.nsa, (Nsa{.block_counts = 3, .window = 100}));
  EXPECT_EQ(a.gates, 3);
  EXPECT_EQ(spec.layers[1].weights.attn_gates.shape[0], 12);
  EXPECT_EQ(a.num_heads, 4);
  EXPECT_EQ(a.num_kv_heads, 2);
  EXPECT_EQ(spec.norm_eps, 1e-6f);
  // The configuration says 32, which the code does not hand on.
  EXPECT_EQ(a.head_dim, 8);
  EXPECT_FLOAT_EQ(a.scale, 1.0f / std::sqrt(8.0f));
  const ModelSpec defaults = Load("nsa", [](json* c) {
    for (const char* key : {"block_size", "block_counts", "window_size", "rope_theta", "norm_eps",
                            "head_dim", "hidden_act"}) {
      c->erase(key);
    }
  });
  EXPECT_EQ(defaults.layers[0].attention.native.nsa, (Nsa{.block_counts = 16, .window = 512}));
  EXPECT_EQ(defaults.layers[0].attention.head_dim, 8);
  // Two thirds of four times the width, in whole 256s: the tensors are narrower.
  EXPECT_THAT(Error("nsa", [](json* c) { c->erase("intermediate_size"); }), HasSubstr("[256, 32]"));
  EXPECT_THAT(Error("nsa", [](json* c) { (*c)["block_size"] = 32; }),
              HasSubstr("is 32; only 64 is supported"));
  EXPECT_THAT(Error("nsa", [](json* c) { (*c)["block_counts"] = nullptr; }),
              HasSubstr("block_counts\" is null"));
  EXPECT_THAT(Error("nsa", [](json* c) { (*c)["num_heads"] = (*c)["num_kv_heads"] = 32; }),
              HasSubstr("has 16 rows, which are not those of 32 key/value heads"));
  EXPECT_THAT(Error("nsa", [](json* c) { (*c)["qkv_bias"] = false; }), HasSubstr("does not use"));
  EXPECT_THAT(Error("nsa",
                    [](json* c) {
                      (*c)["rope_scaling"] = {{"factor", 2}};
                    }),
              HasSubstr("rope_scaling"));
  EXPECT_THAT(Error("nsa", [](json* c) { (*c)["hidden_act"] = "relu"; }), HasSubstr("hidden_act"));
}

TEST(Family, ReadsWhichLayersHaveAnIndexer) {
  const auto indexers = [](const EditedCheckpoint::Edit& edit) {
    std::string layers;
    for (const LayerSpec& layer : Load("glm_moe_dsa", edit).layers) {
      EXPECT_EQ(layer.attention.native.dsa.topk, 21);
      layers += layer.attention.indexer.num_heads > 0 ? 'F' : 'S';
    }
    return layers;
  };
  EXPECT_EQ(indexers({}), "FFSFS");
  EXPECT_EQ(indexers([](json* c) {  // index_topk_freq is 2, index_skip_topk_offset too
              c->erase("indexer_types");
            }),
            "FFSFS");
  EXPECT_EQ(indexers([](json* c) {
              c->erase("indexer_types");
              (*c)["index_topk_pattern"] = "FFSFSF";  // that of a predicting layer behind
            }),
            "FFSFS");
  const auto refusal = [](const char* key, const json& value) {
    return Error("glm_moe_dsa", [&](json* c) {
      c->erase("indexer_types");
      (*c)[key] = value;
    });
  };
  EXPECT_THAT(refusal("index_topk_pattern", "FFSF"), HasSubstr("is of 4 layers"));
  EXPECT_THAT(refusal("index_topk_pattern", "SFFFS"), HasSubstr("makes layer 0 neither full"));
  EXPECT_THAT(refusal("index_topk_pattern", "FFXFS"), HasSubstr("makes layer 2 neither full"));
  EXPECT_THAT(refusal("indexer_types", {"full", "full", "half", "full", "full"}),
              HasSubstr("makes layer 2 neither full"));
  EXPECT_THAT(refusal("index_topk_freq", 0), HasSubstr("index_topk_freq"));
  // A layer that must have an indexer and has none, and the other way round.
  EXPECT_THAT(refusal("index_topk_freq", 1), HasSubstr("model.layers.2.self_attn.indexer.wq_b"));
  EXPECT_THAT(refusal("index_topk_freq", 4), HasSubstr("does not use"));
  // Rotated by pairs, as attention is; or by halves where the file says so.
  EXPECT_EQ(Load("glm_moe_dsa").ropes.size(), 1u);
  const ModelSpec halves =
      Load("glm_moe_dsa", [](json* c) { (*c)["indexer_rope_interleave"] = false; });
  ASSERT_EQ(halves.ropes.size(), 2u);
  EXPECT_TRUE(halves.ropes[0].variants[0].interleaved);
  EXPECT_FALSE(halves.ropes[1].variants[0].interleaved);
  EXPECT_EQ(halves.layers[0].attention.indexer.rope, 1);
}

TEST(Family, RefusesHostileIndexers) {
  const auto error = [](const char* key, const json& value) {
    return Error("deepseek_v32", [&](json* c) { (*c)[key] = value; });
  };
  EXPECT_THAT(error("index_topk", 0), HasSubstr("\"index_topk\" is 0"));
  EXPECT_THAT(error("index_topk", -1), HasSubstr("index_topk"));
  EXPECT_THAT(error("index_topk", int64_t{1} << 40), HasSubstr("index_topk"));
  EXPECT_THAT(error("index_topk", nullptr), HasSubstr("index_topk"));
  EXPECT_THAT(error("index_n_heads", 0), HasSubstr("index_n_heads"));
  // Fewer channels than are rotated, and other shapes than the tensors have.
  EXPECT_THAT(error("index_head_dim", 7), HasSubstr("index_head_dim"));
  EXPECT_THAT(error("index_head_dim", 16), HasSubstr("indexer.wq_b.weight"));
  EXPECT_THAT(error("index_n_heads", 8), HasSubstr("indexer.wq_b.weight"));
  EXPECT_THAT(error("q_lora_rank", nullptr),
              HasSubstr("makes its queries from the queries' latent"));
  EXPECT_THAT(error("mlp_layer_types", {"sparse", "dense", "sparse"}),
              HasSubstr("first_k_dense_replace"));
  // Without index keys: the model before this one, whose family does not know the tensors.
  EXPECT_THAT(error("model_type", "deepseek_v3"), HasSubstr("indexer"));
  EXPECT_THAT(Error("deepseek_v3",
                    [](json* c) {
                      (*c)["model_type"] = "deepseek_v32";
                      (*c)["index_topk"] = 8;
                      (*c)["index_n_heads"] = 2;
                      (*c)["index_head_dim"] = 8;
                    }),
              HasSubstr("model.layers.0.self_attn.indexer.wq_b.weight"));
}

TEST(Family, RefusesHostileDimensions) {
  for (const auto& [key, value] :
       std::vector<std::pair<const char*, json>>{{"hidden_size", 0},
                                                 {"hidden_size", -32},
                                                 {"hidden_size", 1e18},
                                                 {"hidden_size", "32"},
                                                 {"num_hidden_layers", 1000000},
                                                 {"num_attention_heads", 0},
                                                 {"num_key_value_heads", 3},
                                                 {"head_dim", 15},
                                                 {"vocab_size", 1e12},
                                                 {"rms_norm_eps", -1},
                                                 {"max_position_embeddings", 0}}) {
    const std::string error = Error("llama", [&, k = key, v = value](json* c) { (*c)[k] = v; });
    EXPECT_NE(error, "no error") << key << " " << value;
  }
}

TEST(Family, RefusesVariantsThatItDoesNotCompute) {
  EXPECT_THAT(Error("llama",
                    [](json* c) {
                      (*c)["quantization_config"] = {{"quant_method", "gptq"}};
                    }),
              HasSubstr("gptq"));
  EXPECT_THAT(Error("llama", [](json* c) { (*c)["hidden_act"] = "relu6"; }), HasSubstr("relu6"));
  EXPECT_THAT(Error("llama", [](json* c) { (*c)["sliding_window"] = 4096; }),
              HasSubstr("sliding_window"));
  EXPECT_THAT(
      Error("qwen2",
            [](json* c) {
              (*c)["layer_types"] = {"full_attention", "linear_attention", "full_attention"};
            }),
      HasSubstr("linear_attention"));
  EXPECT_THAT(Error("qwen2", [](json* c) { (*c)["layer_types"] = {"full_attention"}; }),
              HasSubstr("1 entries for 3 layers"));
  EXPECT_THAT(Error("gemma3", [](json* c) { (*c)["attn_logit_softcapping"] = 50.0; }),
              HasSubstr("attn_logit_softcapping"));
  EXPECT_THAT(Error("olmo2", [](json* c) { (*c)["clip_qkv"] = 8.0; }), HasSubstr("clip_qkv"));
  EXPECT_THAT(Error("gpt_oss", [](json* c) { (*c)["swiglu_alpha"] = 1.5; }),
              HasSubstr("swiglu_alpha"));
  EXPECT_THAT(
      Error("gpt_oss_mxfp4", [](json* c) { (*c)["quantization_config"]["quant_method"] = "fp8"; }),
      HasSubstr("fp8"));
}

TEST(Family, MistralWindowIsOffWhereNullAndDefaultWhereAbsent) {
  EXPECT_THAT(Windows(Load("mistral")), ElementsAre(8, 8, 8));
  EXPECT_THAT(Windows(Load("mistral", [](json* c) { (*c)["sliding_window"] = nullptr; })),
              ElementsAre(0, 0, 0));
  EXPECT_THAT(Windows(Load("mistral", [](json* c) { c->erase("sliding_window"); })),
              ElementsAre(4096, 4096, 4096));
}

// Many published configurations name a window and leave it off.
TEST(Family, QwenWindowCountsOnlyWhereItIsSwitchedOn) {
  const auto old_spelling = [](bool on) {
    return [on](json* c) {
      c->erase("layer_types");
      (*c)["use_sliding_window"] = on;
      (*c)["sliding_window"] = 8;
      (*c)["max_window_layers"] = 1;
    };
  };
  EXPECT_THAT(Windows(Load("qwen2", old_spelling(true))), ElementsAre(0, 8, 8));
  EXPECT_THAT(Windows(Load("qwen2", old_spelling(false))), ElementsAre(0, 0, 0));
  EXPECT_THAT(Windows(Load("qwen3", old_spelling(true))), ElementsAre(0, 8, 8));
}

TEST(Family, QwenReadsDualChunkAttention) {
  const auto dual = [](const char* key, json value) {
    return [key, value = std::move(value)](json* c) {
      (*c)["dual_chunk_attention_config"][key] = value;
    };
  };
  const ModelSpec spec = Load("qwen2_dual_chunk");
  ASSERT_TRUE(spec.dual_chunk.has_value());
  EXPECT_EQ(spec.dual_chunk->chunk_size, 144);
  EXPECT_EQ(spec.dual_chunk->stride(), 128);
  // From 300 tokens to the context of 1024 in sixteenths of a doubling, by the prompt.
  const RopeSpec& rope = spec.ropes[0];
  EXPECT_TRUE(rope.by_prompt);
  ASSERT_EQ(rope.variants.size(), 30u);
  EXPECT_EQ(rope.variant_lengths[0], 300);
  EXPECT_EQ(rope.variant_lengths[16], 600);
  EXPECT_EQ(rope.variants[0].scale, 1.0f);
  EXPECT_NEAR(rope.variants[1].scale, 0.1 * std::log(2.0) / 32 + 1, 1e-6);
  EXPECT_NEAR(rope.variants[17].scale, 0.1 * std::log(2.0) * 16.5 / 16 + 1, 1e-6);
  EXPECT_EQ(spec.notes.size(), 1u);

  const ModelSpec sparse = Load("qwen3_dual_chunk");
  EXPECT_EQ(sparse.ropes[0].variants.size(), 1u);
  ASSERT_EQ(sparse.notes.size(), 1u);
  EXPECT_THAT(sparse.notes[0], HasSubstr("all keys are read instead"));
  EXPECT_TRUE(Load("qwen3_dual_chunk", dual("sparse_attention_enabled", false)).notes.empty());
  // As published: 8192 and 1024.
  const ModelSpec defaults = Load(
      "qwen2_dual_chunk", [](json* c) { (*c)["dual_chunk_attention_config"] = json::object(); });
  EXPECT_EQ(defaults.dual_chunk->stride(), 7168);
  EXPECT_EQ(defaults.ropes[0].variants.size(), 1u);

  EXPECT_THAT(Error("qwen2_dual_chunk", dual("local_size", 144)),
              HasSubstr("local_size\" is 144; it must be below chunk_size, which is 144"));
  EXPECT_THAT(Error("qwen2_dual_chunk", dual("local_size", 20)),
              HasSubstr("their difference must be a multiple of 128"));
  EXPECT_THAT(Error("qwen2_dual_chunk", dual("chunk_size", -1)), HasSubstr("chunk_size"));
  EXPECT_THAT(Error("qwen2_dual_chunk", dual("chunk_size", "large")), HasSubstr("chunk_size"));
  EXPECT_THAT(Error("qwen2_dual_chunk", dual("third_size", 1)), HasSubstr("third_size"));
  EXPECT_THAT(Error("qwen2_dual_chunk",
                    [](json* c) {
                      (*c)["rope_scaling"] = {{"rope_type", "linear"}, {"factor", 2.0}};
                    }),
              HasSubstr("beside a rotary scaling"));
  EXPECT_THAT(Error("qwen2_dual_chunk", [](json* c) { (*c)["dual_chunk_attention_config"] = 3; }),
              HasSubstr("dual_chunk_attention_config"));
}

TEST(Family, YarnExtendsTheContext) {
  const ModelSpec spec = Load("qwen2", [](json* c) { (*c)["max_position_embeddings"] = 32; });
  EXPECT_EQ(spec.max_positions, 128);
}

TEST(Family, Gemma2AlternatesFromASlidingLayer) {
  const ModelSpec spec = Load("gemma2", [](json* c) { c->erase("layer_types"); });
  EXPECT_THAT(Windows(spec), ElementsAre(8, 0, 8, 0));
  EXPECT_EQ(spec.norm_weight_offset, 1.0f);
  EXPECT_EQ(spec.layers[0].attention.softcap, 4.0f);
  EXPECT_EQ(spec.logit_softcap, 5.0f);
  EXPECT_FLOAT_EQ(spec.layers[0].attention.scale, 1.0f / std::sqrt(24.0f));
  const ModelSpec uncapped =
      Load("gemma2", [](json* c) { (*c)["attn_logit_softcapping"] = nullptr; });
  EXPECT_EQ(uncapped.layers[0].attention.softcap, 0.0f);
  const ModelSpec defaults = Load("gemma2", [](json* c) { c->erase("attn_logit_softcapping"); });
  EXPECT_EQ(defaults.layers[0].attention.softcap, 50.0f);
}

// The same function from the spelling of the first Gemma 3 checkpoints.
TEST(Family, Gemma3ReadsOldAndNewSpellings) {
  const ModelSpec current = Load("gemma3");
  const ModelSpec old = Load("gemma3", [](json* c) {
    c->erase("layer_types");
    c->erase("rope_parameters");
    (*c)["sliding_window_pattern"] = 6;
    (*c)["rope_theta"] = 1000000.0;
    (*c)["rope_local_base_freq"] = 10000.0;
    (*c)["rope_scaling"] = {{"rope_type", "linear"}, {"factor", 8.0}};
  });
  EXPECT_THAT(Windows(current), ElementsAre(8, 8, 8, 8, 8, 0, 8));
  EXPECT_THAT(Ropes(current), ElementsAre(1, 1, 1, 1, 1, 0, 1));
  EXPECT_EQ(Windows(old), Windows(current));
  EXPECT_EQ(Ropes(old), Ropes(current));
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(old.ropes[i].variants[0].inv_freq, current.ropes[i].variants[0].inv_freq);
  }
  EXPECT_FLOAT_EQ(current.ropes[0].variants[0].inv_freq[0], 1.0f / 8.0f);
  EXPECT_EQ(current.ropes[1].variants[0].inv_freq[0], 1.0f);
  EXPECT_FLOAT_EQ(current.embedding_scale, std::sqrt(32.0f));
  EXPECT_TRUE(current.tied_embedding);
}

TEST(Family, Gemma3ScalesByTheConfiguredScalar) {
  const ModelSpec spec = Load("gemma3", [](json* c) { (*c)["query_pre_attn_scalar"] = 168; });
  EXPECT_FLOAT_EQ(spec.layers[0].attention.scale, 1.0f / std::sqrt(168.0f));
  EXPECT_NE(Error("gemma3", [](json* c) { (*c)["query_pre_attn_scalar"] = 0; }), "no error");
}

TEST(Family, Gemma3FindsTheTextModelOfAMultimodalConfiguration) {
  const ModelSpec spec = Load("gemma3", [](json* c) {
    json text = *c;
    *c = {{"model_type", "gemma3"}, {"text_config", text}, {"vision_config", json::object()}};
  });
  EXPECT_THAT(Windows(spec), ElementsAre(8, 8, 8, 8, 8, 0, 8));
}

TEST(Family, Cohere2RotatesSlidingLayersOnly) {
  const ModelSpec spec = Load("cohere2", [](json* c) { c->erase("layer_types"); });
  EXPECT_THAT(Windows(spec), ElementsAre(8, 8, 8, 0, 8));
  EXPECT_THAT(Ropes(spec), ElementsAre(0, 0, 0, -1, 0));
  EXPECT_TRUE(spec.ropes[0].variants[0].interleaved);
  EXPECT_TRUE(spec.parallel_block);
  EXPECT_EQ(spec.norm, NormKind::kLayerNorm);
  EXPECT_EQ(spec.logit_scale, 0.25f);
}

// A scaling that the configuration states once belongs to the full layers all the same.
TEST(Family, Olmo3ScalesFullLayersOnlyInEverySpelling) {
  const ModelSpec current = Load("olmo3");
  const ModelSpec old = Load("olmo3", [](json* c) {
    c->erase("layer_types");
    json scaling = (*c)["rope_parameters"]["full_attention"];
    (*c)["rope_theta"] = scaling["rope_theta"];
    scaling.erase("rope_theta");
    c->erase("rope_parameters");
    (*c)["rope_scaling"] = scaling;
  });
  for (const ModelSpec* spec : {&current, &old}) {
    EXPECT_THAT(Windows(*spec), ElementsAre(8, 8, 8, 0, 8));
    EXPECT_THAT(Ropes(*spec), ElementsAre(1, 1, 1, 0, 1));
    EXPECT_GT(spec->ropes[0].variants[0].scale, 1.1f);
    EXPECT_EQ(spec->ropes[1].variants[0].scale, 1.0f);
    EXPECT_FLOAT_EQ(spec->ropes[1].variants[0].inv_freq[4], 0.01f);
    EXPECT_FLOAT_EQ(spec->ropes[0].variants[0].inv_freq[7],
                    current.ropes[0].variants[0].inv_freq[7]);
  }
}

TEST(Family, Olmo2NormsTheBranchesOutputAndTheWholeProjection) {
  const ModelSpec spec = Load("olmo2");
  const LayerSpec& layer = spec.layers[0];
  EXPECT_EQ(layer.weights.attn_norm.data, nullptr);
  EXPECT_EQ(layer.weights.mlp_norm.data, nullptr);
  EXPECT_NE(layer.weights.post_attn_norm.data, nullptr);
  EXPECT_EQ(layer.attention.qk_norm, QkNorm::kFullWidth);
  EXPECT_EQ(layer.weights.k_norm.shape[0], 16);
}

TEST(Family, Phi3SplitsItsFusedMatricesByRows) {
  const ModelSpec spec = Load("phi3");
  const LayerWeights& weights = spec.layers[0].weights;
  EXPECT_EQ(weights.wq.shape[0], 32);
  EXPECT_EQ(weights.wk.shape[0], 16);
  EXPECT_EQ(weights.wk.ptr<float>(), weights.wq.ptr<float>() + 32 * 32);
  EXPECT_EQ(weights.wv.ptr<float>(), weights.wk.ptr<float>() + 16 * 32);
  EXPECT_EQ(weights.up.ptr<float>(), weights.gate.ptr<float>() + 32 * 32);
  EXPECT_EQ(spec.ropes[0].variants[0].inv_freq.size(), 2u);  // half of 8 channels
  EXPECT_EQ(Load("phi3_longrope").ropes[0].variant_lengths, std::vector<int32_t>{64});
}

TEST(Family, GptOssReadsPatternSinksAndExperts) {
  const ModelSpec spec = Load("gpt_oss", [](json* c) { c->erase("layer_types"); });
  EXPECT_THAT(Windows(spec), ElementsAre(8, 0, 8, 0));
  const LayerSpec& layer = spec.layers[0];
  EXPECT_EQ(layer.weights.sinks.shape[0], 4);
  EXPECT_EQ(layer.mlp.num_experts, 4);
  EXPECT_EQ(layer.mlp.top_k, 2);
  EXPECT_EQ(layer.mlp.activation, kernels::Activation::kSwigluOai);
  EXPECT_EQ(layer.mlp.activation_limit, 2.0f);
  ASSERT_EQ(layer.weights.expert_gate.size(), 4u);
  EXPECT_EQ(layer.weights.expert_down[3].shape[0], 32);
  EXPECT_EQ(layer.weights.expert_gate_up_bias.shape[1], 64);
  EXPECT_EQ(Load("gpt_oss_mxfp4").layers[0].weights.expert_up[1].dtype, kernels::DType::kMXFP4);
  EXPECT_THAT(Error("gpt_oss", [](json* c) { (*c)["num_experts_per_tok"] = 9; }),
              HasSubstr("9 experts"));
}

TEST(Family, Llama4ReadsItsPatternInEverySpelling) {
  const auto check = [](const ModelSpec& spec) {
    EXPECT_THAT(Ropes(spec), ElementsAre(0, 0, 0, -1, 0));
    for (size_t i = 0; i < 5; ++i) {
      const LayerSpec& layer = spec.layers[i];
      EXPECT_EQ(layer.attention.native.chunk, i == 3 ? 0 : 8);
      EXPECT_EQ(layer.attention.position_scale, i == 3);
      EXPECT_EQ(layer.attention.qk_norm, i == 3 ? QkNorm::kNone : QkNorm::kL2AfterRope);
      EXPECT_EQ(layer.mlp.num_experts, i % 2 == 1 ? 4 : 0);
      EXPECT_EQ(layer.mlp.shared_ffn_dim, i % 2 == 1 ? 32 : 0);
      EXPECT_EQ(layer.mlp.ffn_dim, i % 2 == 1 ? 32 : 48);
    }
    EXPECT_TRUE(spec.ropes[0].variants[0].interleaved);
  };
  check(Load("llama4"));
  check(Load("llama4", [](json* c) {
    c->erase("layer_types");
    c->erase("moe_layers");
    (*c)["no_rope_layers"] = json::array();  // empty: the default
  }));
  check(Load("llama4", [](json* c) {
    json text = *c;
    *c = {{"model_type", "llama4"}, {"text_config", text}};
  }));
  const ModelSpec plain = Load("llama4", [](json* c) {
    (*c)["use_qk_norm"] = false;
    (*c)["attn_temperature_tuning"] = 0;
  });
  EXPECT_EQ(plain.layers[0].attention.qk_norm, QkNorm::kNone);
  EXPECT_FALSE(plain.layers[3].attention.position_scale);
}

TEST(Family, TiedEmbeddingIsTheHead) {
  const ModelSpec spec = Load("llama_rope_llama3");
  EXPECT_TRUE(spec.tied_embedding);
  EXPECT_EQ(spec.lm_head.data, spec.embedding.data);
  EXPECT_THAT(Error("llama_rope_llama3", [](json* c) { (*c)["tie_word_embeddings"] = false; }),
              HasSubstr("lm_head.weight"));
}

}  // namespace
}  // namespace longstride::model

// One tiny model for each way in which families differ.
#pragma once

#include <random>
#include <vector>

#include "tests/model/decoder/tiny_model.h"

namespace longstride::model {

inline std::vector<int32_t> RandomTokens(size_t n, int32_t vocab, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> tokens(n);
  for (int32_t& t : tokens) t = static_cast<int32_t>(random() % static_cast<unsigned>(vocab));
  return tokens;
}

inline std::vector<TinyOptions> Architectures() {
  return {
      {.name = "plain"},
      {.name = "llama_like", .rope_scale = 1.2f, .tied = true},
      {.name = "mistral_window", .window = 24},
      {.name = "window_past_pages", .layers = 3, .window = 70},
      {.name = "gemma2_like",
       .norm_offset = 1.0f,
       .post_norm = true,
       .softcap = 5.0f,
       .logit_softcap = 3.0f,
       .embedding_scale = 6.0f,
       .tied = true,
       .activation = kernels::Activation::kGeluTanh,
       .window = 30},
      {.name = "gemma3_like",
       .norm_offset = 1.0f,
       .post_norm = true,
       .qk_norm = QkNorm::kPerHead,
       .tied = true,
       .activation = kernels::Activation::kGeluTanh,
       .window = 20},
      {.name = "qwen_biases", .biases = true},
      {.name = "gpt_oss_like",
       .sinks = true,
       .biases = true,
       .activation = kernels::Activation::kSwigluOai,
       .experts = 6,
       .window = 16},
      {.name = "moe_all_softmax",
       .experts = 5,
       .scoring = kernels::ExpertScoring::kSoftmaxThenTopK,
       .renormalize = false},
      {.name = "moe_renormalised",
       .residual_scale = 0.5f,
       .experts = 5,
       .top_k = 3,
       .scoring = kernels::ExpertScoring::kSoftmaxThenTopK},
      {.name = "cohere_like",
       .norm = NormKind::kLayerNorm,
       .norm_bias = true,
       .parallel = true,
       .interleaved = true,
       .nope_every_second = true,
       .logit_scale = 0.25f,
       .tied = true,
       .window = 40},
      {.name = "cohere_qk_norm",
       .norm = NormKind::kLayerNorm,
       .parallel = true,
       .qk_norm = QkNorm::kLayerNormPerHead,
       .interleaved = true},
      {.name = "olmo2_like", .pre_norm = false, .post_norm = true, .qk_norm = QkNorm::kFullWidth},
      {.name = "llama4_like",
       .qk_norm = QkNorm::kL2AfterRope,
       .interleaved = true,
       .nope_every_second = true,
       .position_scale = true,
       .experts = 4,
       .top_k = 1,
       .shared_ffn = 24,
       .scoring = kernels::ExpertScoring::kSigmoidInput,
       .chunk = 32},
      {.name = "partial_rope", .partial_rope = true, .activation = kernels::Activation::kGelu},
      {.name = "rope_variants", .rope_variants = 2},
      {.name = "dual_chunk",
       .rope_variants = 2,
       .biases = true,
       .chunk_size = 136,
       .local_size = 8},
      {.name = "multi_head", .heads = 6, .kv_heads = 6, .residual_scale = 0.7f},
      {.name = "multi_query", .heads = 6, .kv_heads = 1, .window = 33},
      {.name = "one_layer", .layers = 1},
      {.name = "nsa", .heads = 6, .nsa_blocks = 2, .nsa_window = 20},
      {.name = "nsa_no_window", .qk_norm = QkNorm::kPerHead, .biases = true, .nsa_blocks = 1},
  };
}

}  // namespace longstride::model

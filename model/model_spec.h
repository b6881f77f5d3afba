// What the forward pass needs to know about a checkpoint: dimensions, per-layer rules, and views of
// its weights. A family (model/families/*.cpp) fills it in from the checkpoint's metadata and
// tensor names; one decoder runs every ModelSpec. No code of the forward pass asks for a model's
// name.
#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/op_params.h"
#include "kernels/tensor_view.h"

namespace longstride::model {

// One rotary table. inv_freq already holds every scaling (linear, Llama 3, YaRN, longrope),
// computed in float64 and rounded once. Channels beyond 2*inv_freq.size() are not rotated.
struct RopeTable {
  std::vector<float> inv_freq;  // radians per position
  bool interleaved = false;     // pairs (2f, 2f+1) instead of (f, f + n)
  float scale = 1.0f;           // multiplies cos and sin (YaRN, longrope attention factor)
};

// A rotary embedding of some layers. `variants` has more than one entry where the table depends on
// the request's total length (longrope: short, long): a request whose prompt + max tokens exceeds
// variant_lengths[v] uses variant v + 1 for all of its keys. variant_lengths is ascending and one
// shorter than variants.
struct RopeSpec {
  std::vector<RopeTable> variants;
  std::vector<int32_t> variant_lengths;
  bool by_prompt = false;  // the prompt's length alone chooses, whatever max tokens is
};

// Dual chunk attention (arXiv 2402.17463, 2501.15383): no rotary distance is larger than
// chunk_size. With s = stride(), the key at j is rotated at j mod s; the query at i is rotated
// thrice, for the keys of its own run of s positions, for those of the run before it, and for all
// earlier ones. The three scores are of one softmax. Distances up to local_size are the true ones.
struct DualChunk {
  static constexpr int32_t kParts = 3;
  // stride() is a multiple of this: no query tile and no entry of a list lies in two runs.
  static constexpr int32_t kAlignment = 128;
  int32_t chunk_size = 0;
  int32_t local_size = 0;  // below chunk_size
  constexpr int32_t stride() const { return chunk_size - local_size; }
  // Rotary position of the key at j.
  constexpr int32_t KeyPosition(int32_t j) const { return j % stride(); }
  // Rotary position of the query at i for the keys of a part: 0 its own run, 1 the one before, 2
  // earlier.
  constexpr int32_t QueryPosition(int32_t i, int part) const {
    const int32_t past = part == 0 ? 0 : part == 1 ? i % stride() + stride() : 2 * stride() - 1;
    return part == 0 ? i % stride() : past < chunk_size ? past : chunk_size;
  }
};

enum class QkNorm : uint8_t {
  kNone,
  kPerHead,           // RMSNorm over head_dim, before RoPE (Gemma 3, Qwen3)
  kFullWidth,         // RMSNorm over all heads' channels, before the head split (OLMo 2)
  kL2AfterRope,       // weightless, after RoPE (Llama 4)
  kLayerNormPerHead,  // Cohere with use_qk_norm: LayerNorm with weight [heads*head_dim]
};

enum class NormKind : uint8_t { kRms, kLayerNorm };

// InfLLM-v2 (arXiv 2509.24663); what a query reads: model/sparsity/infllm_v2.cpp.
struct InfLlmV2 {
  int32_t topk = 0;  // blocks of 64 keys beside the window's, the first ones among them; 0: none
  int32_t init_blocks = 1;
  int32_t window = 2048;     // keys: the window / 64 blocks before the query's own are read
  int32_t dense_len = 8192;  // a query that sees fewer keys reads them all
  friend auto operator<=>(const InfLlmV2&, const InfLlmV2&) = default;
};

// MoBA (arXiv 2502.13189); what a query reads: model/sparsity/moba.cpp.
struct Moba {
  int32_t chunk = 0;  // keys of a block; 0: none
  int32_t topk = 0;   // blocks, the query's own among them
  bool generated = false;  // generated tokens choose too, else they read everything
  friend auto operator<=>(const Moba&, const Moba&) = default;
};

// DeepSeek sparse attention; what a query reads: model/sparsity/dsa.cpp. A layer without an Indexer
// reads what the layer before it does.
struct Dsa {
  int32_t topk = 0;  // tokens of a query; 0: none
  friend auto operator<=>(const Dsa&, const Dsa&) = default;
};

// Native sparse attention (arXiv 2502.11089); what a query reads: model/sparsity/nsa.cpp. Of layers
// whose attention is a sum of kParts parts (AttentionSpec::gates).
struct Nsa {
  static constexpr int32_t kParts = 3;  // compressed, selected, sliding
  int32_t block_counts = 0;             // blocks of 64 keys, the query's own among them; 0: none
  int32_t window = 0;                   // keys of the sliding part; 0: it reads nothing
  friend auto operator<=>(const Nsa&, const Nsa&) = default;
};

// The checkpoint's own sparsity of one layer; what is actually served is the layer's policy
// (config/sparsity_policy.h), which this is the default of.
struct NativeSparsity {
  // Keys a query sees, itself included; 0: all. In an encoder it sees as many ahead:
  // |i - j| < window.
  int32_t window = 0;
  // In an encoder beside a window: the first tokens that every query reads and that read
  // everything.
  int32_t global_tokens = 0;
  int32_t chunk = 0;  // Llama 4's chunked attention; 0: none
  InfLlmV2 infllm_v2;
  Moba moba;
  Dsa dsa;
  Nsa nsa;
  friend auto operator<=>(const NativeSparsity&, const NativeSparsity&) = default;
};

// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434) in its absorbed form: a token's cache
// entry is its latent [kv_rank] beside one rotated key part [rope_dim] that all heads share, read
// as one KV head of kv_rank + rope_dim channels that is key and value at once (of the value only
// the latent counts). A head's query comes into the latent's space by its key_up, what it attended
// leaves that by its value_up.
struct LatentAttention {
  int32_t kv_rank = 0;    // 0: ordinary attention
  int32_t q_rank = 0;     // queries are made from a latent of so many channels; 0: from the stream
  int32_t nope_dim = 0;   // channels of a head's query that are not rotated; they come first
  int32_t rope_dim = 0;   // and that are
  int32_t value_dim = 0;  // of a head
};

// The lightning indexer of a latent layer: its own small queries and keys, by which tokens are
// chosen (kernels::SelectTokensParams). Queries come from the queries' latent, keys and the heads'
// weights from the stream. Source: DeepSeek-V3.2 (github.com/deepseek-ai/DeepSeek-V3.2-Exp),
// without the Hadamard rotation, which no product sees, and without rounding to fp8.
struct Indexer {
  int32_t num_heads = 0;  // 0: none
  int32_t head_dim = 0;
  int32_t rope = -1;       // index into ModelSpec::ropes, of the first channels of queries and keys
  float norm_eps = 1e-6f;  // of the keys' LayerNorm
};

struct AttentionSpec {
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  float scale = 1.0f;
  float softcap = 0.0f;  // 0: none
  int32_t rope = 0;      // index into ModelSpec::ropes, or -1: no RoPE (NoPE layers)
  QkNorm qk_norm = QkNorm::kNone;
  float qk_norm_eps = 1e-6f;
  bool position_scale = false;  // Llama 4's query temperature on NoPE layers
  float position_attn_scale = 0.1f;
  float position_floor_scale = 8192.0f;
  // What an fp8 cache divides keys and values by before it stores them: the checkpoint's, or 1.
  float k_scale = 1.0f, v_scale = 1.0f;
  LatentAttention latent;  // then num_kv_heads is 1 and head_dim kv_rank + rope_dim
  Indexer indexer;
  // Attentions of the layer, each a softmax over keys of its own, that a sum weighted by gates
  // joins (kernels::GateAttentionParams); 0: one attention without a gate.
  int32_t gates = 0;
  NativeSparsity native;

  bool is_latent() const { return latent.kv_rank > 0; }
};

struct MlpSpec {
  int32_t ffn_dim = 0;
  kernels::Activation activation = kernels::Activation::kSilu;
  float activation_limit = 7.0f;
  // Mixture of experts, if num_experts > 0. ffn_dim is then one expert's.
  int32_t num_experts = 0;
  int32_t top_k = 0;
  kernels::ExpertScoring scoring = kernels::ExpertScoring::kSoftmaxOfTopK;
  bool renormalize = true;
  kernels::ExpertGroups groups;
  float expert_scale = 1.0f;  // of the routed experts' weights
  int32_t shared_ffn_dim =
      0;  // a dense expert added to the routed ones (Llama 4, DeepSeek); 0: none
};

// Views into the checkpoint; data == nullptr where a family has no such tensor. Norm weights and
// biases are float32 (families convert into ModelSpec::owned where the file has another type).
struct LayerWeights {
  kernels::TensorView attn_norm;  // [dim] before attention
  kernels::TensorView attn_norm_bias;
  kernels::TensorView wq, wk, wv;  // [heads*head_dim, dim]; fused tensors are split by rows
  kernels::TensorView bq, bk, bv;
  // What the queries of global tokens are made with, and the keys and values that these read, in
  // place of the above (Longformer); none where they share those.
  kernels::TensorView global_wq, global_wk, global_wv;
  kernels::TensorView global_bq, global_bk, global_bv;
  kernels::TensorView q_norm, k_norm;
  // Latent attention: wq makes the queries' latent [q_rank, dim] (none where q_rank is 0), wk the
  // keys' one and the shared part [kv_rank + rope_dim, dim], q_norm and k_norm are those of the
  // latents, there is no wv, and wo is [dim, heads*value_dim].
  kernels::TensorView q_up;                   // [heads*(nope_dim + rope_dim), q_rank or dim]
  std::vector<kernels::TensorView> key_up;    // [heads], each [kv_rank, nope_dim]
  std::vector<kernels::TensorView> value_up;  // [heads], each [value_dim, kv_rank]
  // The indexer's queries [heads*head_dim, q_rank], keys [head_dim, dim] and heads' weights [heads,
  // dim], and the LayerNorm of its keys.
  kernels::TensorView index_q, index_k, index_weights;
  kernels::TensorView index_norm, index_norm_bias;
  kernels::TensorView attn_gates;  // [heads*gates, dim]: those of a head side by side
  kernels::TensorView sinks;  // [heads] f32
  kernels::TensorView wo;     // [dim, heads*head_dim]
  kernels::TensorView bo;
  // [dim] on the attention branch's output, before the residual (behind it: ModelSpec::norm_sums)
  kernels::TensorView post_attn_norm, post_attn_norm_bias;
  kernels::TensorView mlp_norm;  // [dim] before the MLP
  kernels::TensorView mlp_norm_bias;
  // [ffn, dim], [ffn, dim], [dim, ffn]; also the shared expert. No up: an MLP without a gate.
  kernels::TensorView gate, up, down;
  kernels::TensorView gate_bias, up_bias, down_bias;
  kernels::TensorView post_mlp_norm, post_mlp_norm_bias;  // [dim] on the MLP branch's output
  kernels::TensorView router;                             // [experts, dim]
  kernels::TensorView router_bias;                        // [experts]
  kernels::TensorView selection_bias;  // [experts]: see MoeParams
  // Per expert: gate rows [ffn, dim], up rows [ffn, dim] (de-interleaved by the family), down.
  std::vector<kernels::TensorView> expert_gate, expert_up, expert_down;
  kernels::TensorView expert_gate_up_bias;  // [experts, 2*ffn] gate part first
  kernels::TensorView expert_down_bias;     // [experts, dim]
};

struct LayerSpec {
  AttentionSpec attention;
  MlpSpec mlp;
  LayerWeights weights;
};

// How the final states of a text's tokens (after the output norm) become one vector.
enum class Pooling : uint8_t { kMean, kFirst, kLast };

enum class HeadActivation : uint8_t { kNone, kGelu, kGeluTanh, kRelu, kSilu, kTanh };

// out = norm(activation(weight * in + bias)), each where it is there. All float32, in host memory.
struct HeadLayer {
  kernels::TensorView weight;  // [out, in]
  kernels::TensorView bias;    // [out]
  HeadActivation activation = HeadActivation::kNone;
  kernels::TensorView norm, norm_bias;  // LayerNorm [out], with the spec's norm_eps
};

// What is computed of the pooled states; the first layer reads `dim` channels.
struct OutputHead {
  Pooling pooling = Pooling::kMean;
  std::vector<HeadLayer> layers;
};

enum class ClassScores : uint8_t {
  kSoftmax,   // one label of several
  kSigmoid,   // each label by itself
  kIdentity,  // regression: numbers, not probabilities
};

struct Classifier {
  OutputHead head;  // its last layer gives a score for each label
  std::vector<std::string> labels;
  ClassScores scores = ClassScores::kSoftmax;
};

struct ModelSpec {
  std::string family;        // "gemma3": as registered, for messages and metrics
  std::string name;          // the checkpoint's own name, or its folder or file name
  std::string weights_type;  // "Q4_K_M", "bf16": what the checkpoint calls itself
  std::string digest;        // WeightsFile::digest() of the checkpoint
  int32_t vocab_size = 0;
  int32_t dim = 0;
  int32_t max_positions = 0;  // context length of the checkpoint
  // False: an encoder. Its tokens read what follows them too, so that a text is computed in one
  // step, and it has no lm_head.
  bool causal = true;
  NormKind norm = NormKind::kRms;
  float norm_eps = 1e-6f;
  float norm_weight_offset = 0.0f;  // 1 where weights are stored as (w - 1)
  // Residual wiring. Default: x += attn(norm(x)); x += mlp(norm(x)). With parallel_block both read
  // the same norm (Cohere). Post norms apply where their weight is there; a missing attn_norm or
  // mlp_norm means the branch reads the residual stream itself (OLMo 2).
  bool parallel_block = false;
  // Post norms are of the residual stream with the branch in it, x = norm(x + branch): there is no
  // output norm then (BERT and its kin).
  bool norm_sums = false;
  float embedding_scale = 1.0f;
  float residual_scale = 1.0f;  // on each branch before it is added
  float logit_scale = 1.0f;
  float logit_softcap = 0.0f;
  std::vector<RopeSpec> ropes;
  // Of all layers; the variants of their ropes differ in scale alone then.
  std::optional<DualChunk> dual_chunk;
  std::vector<LayerSpec> layers;
  kernels::TensorView embedding;    // [vocab, dim]
  // [max_positions, dim] added to the scaled embeddings by position; none where positions are
  // rotary.
  kernels::TensorView position_embedding;
  kernels::TensorView embedding_norm, embedding_norm_bias;  // [dim] on the embeddings (ModernBERT)
  kernels::TensorView output_norm;                          // [dim]; none with norm_sums
  kernels::TensorView output_norm_bias;
  kernels::TensorView lm_head;  // [vocab, dim]; the embedding's view where tied
  bool tied_embedding = false;
  OutputHead embedding_head;             // of embeddings
  std::optional<Classifier> classifier;  // sequence classification, where the checkpoint has it
  int64_t num_parameters = 0;
  // What is served otherwise than the checkpoint's configuration says, and how far its family is
  // tested where that is not on released weights: a sentence each.
  std::vector<std::string> notes;
  // Memory of tensors that had to be converted when the checkpoint was read.
  std::vector<std::shared_ptr<std::vector<float>>> owned;
  std::vector<std::shared_ptr<std::vector<uint8_t>>> owned_bytes;
};

}  // namespace longstride::model

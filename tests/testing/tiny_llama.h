// A checkpoint that any test can load: random weights and a vocabulary of bytes.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "config/base/strings.h"
#include "tests/testing/gguf_writer.h"

namespace longstride::testing {

inline constexpr int kTinyVocab = 259 + 5;

// A llama checkpoint of two layers with a byte-fallback vocabulary, random weights.
inline GgufWriter TinyLlama(unsigned seed = 4, uint32_t context = 512) {
  GgufWriter w;
  std::mt19937 random(seed);
  const auto add = [&](const std::string& name, const std::vector<int64_t>& shape) {
    int64_t n = 1;
    for (const int64_t d : shape) n *= d;
    std::vector<float> values(static_cast<size_t>(n));
    for (float& v : values) v = static_cast<float>(random() % 2001) / 1000.0f - 1.0f;
    w.AddFloats(name, shape, values);
  };
  w.SetString("general.architecture", "llama");
  w.SetString("general.name", "Tiny");
  w.SetUint32("llama.block_count", 2);
  w.SetUint32("llama.context_length", context);
  w.SetUint32("llama.embedding_length", 32);
  w.SetUint32("llama.feed_forward_length", 32);
  w.SetUint32("llama.attention.head_count", 4);
  w.SetUint32("llama.attention.head_count_kv", 2);
  w.SetFloat32("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
  std::vector<int32_t> types = {2, 3, 3};
  std::vector<float> scores = {0, 0, 0};
  for (int byte = 0; byte < 256; ++byte) {
    constexpr char kHex[] = "0123456789ABCDEF";
    tokens.push_back({'<', '0', 'x', kHex[byte >> 4], kHex[byte & 15], '>'});
    types.push_back(6);
    scores.push_back(0);
  }
  for (const char* text : {"\xe2\x96\x81", "a", "b", "ab", "c"}) {
    tokens.emplace_back(text);
    types.push_back(1);
    scores.push_back(-static_cast<float>(tokens.size()));
  }
  w.SetString("tokenizer.ggml.model", "llama");
  w.SetStrings("tokenizer.ggml.tokens", tokens);
  w.SetFloats("tokenizer.ggml.scores", scores);
  w.SetInts("tokenizer.ggml.token_type", types);
  w.SetUint32("tokenizer.ggml.bos_token_id", 1);
  w.SetUint32("tokenizer.ggml.eos_token_id", 2);
  add("token_embd.weight", {kTinyVocab, 32});
  add("output_norm.weight", {32});
  for (int l = 0; l < 2; ++l) {
    const std::string p = StrCat("blk.", l, ".");
    for (const char* name : {"attn_norm", "ffn_norm"}) add(p + name + ".weight", {32});
    add(p + "attn_q.weight", {32, 32});
    add(p + "attn_k.weight", {16, 32});
    add(p + "attn_v.weight", {16, 32});
    add(p + "attn_output.weight", {32, 32});
    add(p + "ffn_gate.weight", {32, 32});
    add(p + "ffn_up.weight", {32, 32});
    add(p + "ffn_down.weight", {32, 32});
  }
  return w;
}

}  // namespace longstride::testing

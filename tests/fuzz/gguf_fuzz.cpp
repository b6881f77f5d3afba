// GGUF files, from their header to the model's specification, tokenizer and chat template.
#include "config/base/check.h"
#include "config/base/strings.h"
#include "model/families/family.h"
#include "model/families/generation_defaults.h"
#include "model/tokenizer_loading.h"
#include "model/weights/gguf_file.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/testing/gguf_writer.h"

namespace longstride::fuzz {

void RunInput(std::string_view input) {
  const auto file =
      model::OpenGgufMemory({{reinterpret_cast<const uint8_t*>(input.data()), input.size()}});
  if (!file.ok()) return;
  for (const std::string& name : (*file)->tensor_names()) {
    const auto view = (*file)->Tensor(name);
    LS_CHECK(view.ok());
    const auto* bytes = view->ptr<const char>();
    LS_CHECK(bytes >= input.data() && bytes + view->num_bytes() <= input.data() + input.size());
  }
  LS_CHECK(!(*file)->digest().empty());
  (void)model::CheckpointChatTemplate(**file);
  const auto tokenizer = model::LoadTokenizer(**file);
  if (tokenizer.ok()) (void)(*tokenizer)->Encode("Hello, world\n");
  const auto spec = model::LoadModelSpec(**file);
  if (spec.ok()) (void)model::ReadGenerationDefaults(**file, spec->vocab_size);
}

namespace {

std::string Finish(const testing::GgufWriter& writer) {
  const std::vector<uint8_t> bytes = writer.Finish();
  return {bytes.begin(), bytes.end()};
}

// One layer of a tiny model with its vocabulary: three special tokens, ASCII with GPT-2's blank,
// and "He".
testing::GgufWriter Checkpoint(const std::string& arch) {
  std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
  for (char c = '!'; c <= '~'; ++c) tokens.emplace_back(1, c);
  tokens.insert(tokens.end(), {"Ġ", "He"});
  std::vector<int32_t> types(tokens.size(), 1);
  types[0] = 2;
  types[1] = types[2] = 3;
  testing::GgufWriter writer;
  writer.SetString("general.architecture", arch);
  writer.SetString("general.name", "Tiny");
  writer.SetUint32(arch + ".block_count", 1);
  writer.SetUint32(arch + ".context_length", 64);
  writer.SetUint32(arch + ".embedding_length", 4);
  writer.SetUint32(arch + ".feed_forward_length", 4);
  writer.SetUint32(arch + ".attention.head_count", 2);
  writer.SetUint32(arch + ".attention.head_count_kv", 1);
  writer.SetFloat32(arch + ".attention.layer_norm_rms_epsilon", 1e-5f);
  writer.SetUint32(arch + ".rope.dimension_count", 2);
  writer.SetFloat32(arch + ".rope.freq_base", 10000.0f);
  writer.SetString(arch + ".rope.scaling.type", "yarn");
  writer.SetFloat32(arch + ".rope.scaling.factor", 4.0f);
  writer.SetUint32(arch + ".rope.scaling.original_context_length", 16);
  writer.SetStrings("tokenizer.ggml.tokens", tokens);
  writer.SetInts("tokenizer.ggml.token_type", types);
  writer.SetFloats("tokenizer.ggml.scores", std::vector<float>(tokens.size(), -1.5f));
  writer.SetUint32("tokenizer.ggml.bos_token_id", 1);
  writer.SetUint32("tokenizer.ggml.eos_token_id", 2);
  writer.SetBool("tokenizer.ggml.add_bos_token", true);
  writer.SetString("tokenizer.chat_template", "{{ messages[0].content }}");
  writer.AddZeros("token_embd.weight", {static_cast<int64_t>(tokens.size()), 4});
  writer.AddZeros("output_norm.weight", {4});
  for (const char* name : {"attn_norm", "ffn_norm"}) {
    writer.AddZeros(StrCat("blk.0.", name, ".weight"), {4});
  }
  for (const char* name : {"attn_q", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}) {
    writer.AddZeros(StrCat("blk.0.", name, ".weight"), {4, 4});
  }
  for (const char* name : {"attn_k", "attn_v"}) {
    writer.AddZeros(StrCat("blk.0.", name, ".weight"), {2, 4});
  }
  return writer;
}

}  // namespace

std::vector<std::string> Seeds() {
  testing::GgufWriter llama = Checkpoint("llama");
  llama.SetString("tokenizer.ggml.model", "llama");
  testing::GgufWriter qwen = Checkpoint("qwen2");
  qwen.SetString("tokenizer.ggml.model", "gpt2");
  qwen.SetString("tokenizer.ggml.pre", "qwen2");
  qwen.SetStrings("tokenizer.ggml.merges", {"H e"});
  qwen.AddZeros("blk.0.attn_q.bias", {4});
  qwen.AddZeros("blk.0.attn_k.bias", {2});
  qwen.AddZeros("blk.0.attn_v.bias", {2});
  testing::GgufWriter gemma = Checkpoint("gemma3");
  gemma.SetString("tokenizer.ggml.model", "llama");
  gemma.SetUint32("gemma3.attention.sliding_window", 16);
  for (const char* name : {"post_attention_norm", "post_ffw_norm"}) {
    gemma.AddZeros(StrCat("blk.0.", name, ".weight"), {4});
  }
  for (const char* name : {"attn_q_norm", "attn_k_norm"}) {
    gemma.AddZeros(StrCat("blk.0.", name, ".weight"), {2});
  }
  testing::GgufWriter split;
  split.version = 2;
  split.SetUint16("split.no", 0);
  split.SetUint16("split.count", 1);
  split.SetInt32("split.tensors.count", 1);
  split.SetUint32("general.alignment", 8);
  split.alignment = 8;
  split.AddTensor("q", 8, {2, 32}, std::vector<uint8_t>(68));
  return {Finish(llama), Finish(qwen), Finish(gemma), Finish(split)};
}

}  // namespace longstride::fuzz

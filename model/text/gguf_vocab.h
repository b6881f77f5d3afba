// The tokenizer part of a GGUF file's metadata, as the weights loader reads it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace longstride::model {

// tokenizer.ggml.token_type
enum class GgufTokenType : int32_t {
  kUndefined = 0,
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

// Fields keep the file's meaning; absent keys are empty or nullopt. Nothing is checked here:
// Tokenizer::FromGguf checks every size and id.
struct GgufVocab {
  std::string model;         // tokenizer.ggml.model: "llama" (SentencePiece BPE), "gpt2" (byte-level)
  std::string pre;           // tokenizer.ggml.pre: names the pre-tokeniser of byte-level kinds
  std::string architecture;  // general.architecture: "phi3" has tokens that swallow blanks
  std::vector<std::string> tokens;
  std::vector<float> scores;         // one per token where model is "llama"
  std::vector<int32_t> token_types;  // GgufTokenType; empty means all normal
  std::vector<std::string> merges;   // "left right", where model is "gpt2"
  std::optional<int32_t> bos, eos, eot, eom, unk, pad;
  std::optional<bool> add_bos, add_eos, add_space_prefix;
};

}  // namespace longstride::model

// A model whose tokens are bytes (token id = byte value), so that tests can name ids by letters.
#pragma once

#include <memory>

#include "model/text/tokenizer.h"
#include "server/frontend/served_model.h"

namespace longstride::testing {

inline constexpr int32_t kBos = 256;
inline constexpr int32_t kEos = 257;
inline constexpr int32_t kImStart = 258;
inline constexpr int32_t kImEnd = 259;
inline constexpr int32_t kByteVocab = 260;

// Byte-level BPE without merges, and four special tokens: <|bos|>, <|eos|>, <|im_start|>,
// <|im_end|>.
std::unique_ptr<model::Tokenizer> MakeByteTokenizer();

// "bytes", with a context of 512 tokens. `tokenizer` must outlive it.
frontend::ServedModel MakeByteModel(const model::Tokenizer* tokenizer);

}  // namespace longstride::testing

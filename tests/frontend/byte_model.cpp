#include "tests/frontend/byte_model.h"

#include <string>

#include <nlohmann/json.hpp>

#include "config/base/check.h"

namespace longstride::testing {
namespace {

// GPT-2's printable stand-in for a byte: Latin-1 where printable, else from U+0100 on.
std::string StandIn(int byte) {
  const auto printable = [](int b) {
    return (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || (b >= 0xAE && b <= 0xFF);
  };
  int code = byte;
  if (!printable(byte)) {
    code = 0x100;
    for (int b = 0; b < byte; ++b) code += printable(b) ? 0 : 1;
  }
  std::string out;
  if (code < 0x80) {
    out.push_back(static_cast<char>(code));
  } else {
    out.push_back(static_cast<char>(0xC0 | (code >> 6)));
    out.push_back(static_cast<char>(0x80 | (code & 0x3F)));
  }
  return out;
}

}  // namespace

std::unique_ptr<model::Tokenizer> MakeByteTokenizer() {
  nlohmann::json vocab = nlohmann::json::object();
  for (int b = 0; b < 256; ++b) vocab[StandIn(b)] = b;
  nlohmann::json added = nlohmann::json::array();
  const char* const names[] = {"<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"};
  for (int i = 0; i < 4; ++i) {
    vocab[names[i]] = 256 + i;
    added.push_back({{"id", 256 + i},
                     {"content", names[i]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  const nlohmann::json byte_level = {{"type", "ByteLevel"},
                                     {"add_prefix_space", false},
                                     {"trim_offsets", true},
                                     {"use_regex", false}};
  const nlohmann::json file = {{"version", "1.0"},
                               {"truncation", nullptr},
                               {"padding", nullptr},
                               {"added_tokens", added},
                               {"normalizer", nullptr},
                               {"pre_tokenizer", byte_level},
                               {"post_processor", nullptr},
                               {"decoder", byte_level},
                               {"model",
                                {{"type", "BPE"},
                                 {"dropout", nullptr},
                                 {"unk_token", nullptr},
                                 {"continuing_subword_prefix", nullptr},
                                 {"end_of_word_suffix", nullptr},
                                 {"fuse_unk", false},
                                 {"byte_fallback", false},
                                 {"vocab", vocab},
                                 {"merges", nlohmann::json::array()}}}};
  const nlohmann::json config = {
      {"bos_token", "<|bos|>"}, {"eos_token", "<|eos|>"}, {"add_bos_token", false}};
  auto tokenizer = model::Tokenizer::FromTokenizerJson(file.dump(), config.dump());
  if (!tokenizer.ok()) fprintf(stderr, "%s\n", std::string(tokenizer.status().message()).c_str());
  LS_CHECK(tokenizer.ok());
  return *std::move(tokenizer);
}

frontend::ServedModel MakeByteModel(const model::Tokenizer* tokenizer) {
  frontend::ServedModel served;
  served.name = "bytes";
  served.family = "test";
  served.model_digest = "0123456789abcdef";
  served.plan_name = "native";
  served.plan_digest = "fedcba9876543210";
  served.kv_dtype = "f16";
  served.device = "cpu";
  served.max_context = 512;
  served.vocab_size = kByteVocab;
  served.dim = 2;
  served.created = absl::FromUnixSeconds(1700000000);
  served.tokenizer = tokenizer;
  served.defaults.eos_ids = {kEos, kImEnd};
  return served;
}

}  // namespace longstride::testing

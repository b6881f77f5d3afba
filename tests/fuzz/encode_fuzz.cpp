// Texts of clients to tokens and back. The input's first byte chooses the tokenizer, its second where
// the text is cut into two spans.
#include <algorithm>

#include "config/base/check.h"
#include "config/base/strings.h"
#include "model/text/stream_decoder.h"
#include "model/text/tokenizer.h"
#include "model/text/unicode.h"
#include "tests/fuzz/fuzz_target.h"

namespace longstride::fuzz {
namespace {

constexpr std::string_view kTokenizers[] = {"cohere", "components", "gemma",   "gpt-oss", "llama2",
                                            "llama3", "mistral",    "olmo",    "phi-2",   "phi3",
                                            "qwen2",  "unigram",    "unigram-bytes", "words"};

const model::Tokenizer& Tokenizer(size_t index) {
  static const auto& tokenizers = *[] {
    auto* loaded = new std::vector<std::unique_ptr<model::Tokenizer>>;
    for (const std::string_view name : kTokenizers) {
      auto tokenizer = model::Tokenizer::FromTokenizerJson(
          ReadFile(StrCat("tests/parity/text/data/tokenizers/", name, ".json")), "");
      LS_CHECK(tokenizer.ok());
      loaded->push_back(*std::move(tokenizer));
    }
    return loaded;
  }();
  return *tokenizers[index % tokenizers.size()];
}

}  // namespace

void RunInput(std::string_view input) {
  InputParts parts(input);
  const model::Tokenizer& tokenizer = Tokenizer(parts.Byte());
  const size_t cut = parts.Byte();
  const std::string_view text = parts.rest();
  const auto ids = tokenizer.Encode(text);
  const bool valid = model::FirstInvalidUtf8(text) == std::string_view::npos;
  LS_CHECK(ids.ok() ? valid : !valid || absl::IsResourceExhausted(ids.status()));
  if (!ids.ok()) return;

  const size_t at = std::min(cut, text.size());
  const model::TextSpan spans[] = {{text.substr(0, at)}, {text.substr(at)}};
  const auto from_spans = tokenizer.Encode(spans);
  LS_CHECK(from_spans.ok() && *from_spans == *ids);
  const model::TextSpan special[] = {{text.substr(0, at), true}, {text.substr(at), false}};
  LS_CHECK(tokenizer.Encode(special).ok());

  for (const bool skip_special : {false, true}) {
    const auto decoded = tokenizer.Decode(*ids, skip_special);
    LS_CHECK(decoded.ok());
    LS_CHECK_EQ(model::FirstInvalidUtf8(*decoded), std::string_view::npos);
    model::StreamDecoder stream(tokenizer, {.skip_special = skip_special});
    std::string streamed;
    for (const int32_t id : *ids) {
      const auto piece = stream.Push(id);
      LS_CHECK(piece.ok());
      streamed += *piece;
    }
    streamed += stream.Flush();
    LS_CHECK_EQ(streamed, *decoded);
  }
}

std::vector<std::string> Seeds() {
  std::string text;
  for (const char c : ReadFile("tests/parity/text/data/fragments.txt")) {
    if (c != '\n') text += c;
  }
  std::vector<std::string> seeds;
  for (size_t i = 0; i < std::size(kTokenizers); ++i) {
    const std::string head = {static_cast<char>(i), '\x03'};
    seeds.push_back(head + "I'LL say <s> hello</s> to 12345 naïve 世界 👋🏽!\n\n\t  end <|eot_id|>");
    seeds.push_back(head + text);
  }
  return seeds;
}

}  // namespace longstride::fuzz

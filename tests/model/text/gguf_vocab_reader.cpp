#include "tests/model/text/gguf_vocab_reader.h"

#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <variant>
#include <vector>

namespace longstride::model {
namespace {

using Strings = std::vector<std::string>;
using Floats = std::vector<float>;
using Ints = std::vector<int32_t>;
using Value = std::variant<std::monostate, std::string, int64_t, bool, Strings, Floats, Ints>;

class Reader {
 public:
  explicit Reader(const std::string& path) : file_(path, std::ios::binary) {}
  bool ok() const { return static_cast<bool>(file_); }

  template <typename T>
  T Get() {
    T value{};
    file_.read(reinterpret_cast<char*>(&value), sizeof value);
    return value;
  }
  std::string GetString() {
    std::string text(Get<uint64_t>(), '\0');
    file_.read(text.data(), static_cast<std::streamsize>(text.size()));
    return text;
  }
  Value GetValue(uint32_t type) {
    switch (type) {
      case 0: return static_cast<int64_t>(Get<uint8_t>());
      case 1: return static_cast<int64_t>(Get<int8_t>());
      case 2: return static_cast<int64_t>(Get<uint16_t>());
      case 3: return static_cast<int64_t>(Get<int16_t>());
      case 4: return static_cast<int64_t>(Get<uint32_t>());
      case 5: return static_cast<int64_t>(Get<int32_t>());
      case 6: Get<float>(); return {};
      case 7: return Get<uint8_t>() != 0;
      case 8: return GetString();
      case 9: return GetArray();
      case 10: return static_cast<int64_t>(Get<uint64_t>());
      case 11: return Get<int64_t>();
      case 12: Get<double>(); return {};
      default: file_.setstate(std::ios::failbit); return {};
    }
  }

 private:
  Value GetArray() {
    const auto type = Get<uint32_t>();
    const auto count = Get<uint64_t>();
    Strings strings;
    Floats floats;
    Ints ints;
    for (uint64_t i = 0; i < count && ok(); ++i) {
      if (type == 8) {
        strings.push_back(GetString());
      } else if (type == 6) {
        floats.push_back(Get<float>());
      } else if (const Value value = GetValue(type); const auto* n = std::get_if<int64_t>(&value)) {
        ints.push_back(static_cast<int32_t>(*n));
      }
    }
    if (type == 8) return strings;
    if (type == 6) return floats;
    return ints;
  }

  std::ifstream file_;
};

std::map<std::string, Value> ReadMetadata(const std::string& path) {
  std::map<std::string, Value> metadata;
  Reader reader(path);
  if (!reader.ok() || reader.Get<uint32_t>() != 0x46554747) return metadata;
  reader.Get<uint32_t>();  // version
  reader.Get<uint64_t>();  // tensors
  const auto count = reader.Get<uint64_t>();
  for (uint64_t i = 0; i < count && reader.ok(); ++i) {
    std::string key = reader.GetString();
    const auto type = reader.Get<uint32_t>();
    metadata[key] = reader.GetValue(type);
  }
  return metadata;
}

template <typename T, typename U>
void Take(std::map<std::string, Value>& metadata, const char* key, U* out) {
  const auto it = metadata.find(key);
  if (it == metadata.end()) return;
  if (auto* value = std::get_if<T>(&it->second)) *out = std::move(*value);
}

void TakeId(std::map<std::string, Value>& metadata, const char* key, std::optional<int32_t>* id) {
  int64_t value = -1;
  Take<int64_t>(metadata, key, &value);
  if (value >= 0) *id = static_cast<int32_t>(value);
}

}  // namespace

std::optional<GgufVocab> ReadGgufVocab(const std::string& path) {
  std::map<std::string, Value> metadata = ReadMetadata(path);
  if (metadata.empty()) return std::nullopt;
  GgufVocab vocab;
  Take<std::string>(metadata, "general.architecture", &vocab.architecture);
  Take<std::string>(metadata, "tokenizer.ggml.model", &vocab.model);
  Take<std::string>(metadata, "tokenizer.ggml.pre", &vocab.pre);
  Take<Strings>(metadata, "tokenizer.ggml.tokens", &vocab.tokens);
  Take<Floats>(metadata, "tokenizer.ggml.scores", &vocab.scores);
  Take<Ints>(metadata, "tokenizer.ggml.token_type", &vocab.token_types);
  Take<Strings>(metadata, "tokenizer.ggml.merges", &vocab.merges);
  TakeId(metadata, "tokenizer.ggml.bos_token_id", &vocab.bos);
  TakeId(metadata, "tokenizer.ggml.eos_token_id", &vocab.eos);
  TakeId(metadata, "tokenizer.ggml.unknown_token_id", &vocab.unk);
  TakeId(metadata, "tokenizer.ggml.padding_token_id", &vocab.pad);
  Take<bool>(metadata, "tokenizer.ggml.add_bos_token", &vocab.add_bos);
  Take<bool>(metadata, "tokenizer.ggml.add_eos_token", &vocab.add_eos);
  Take<bool>(metadata, "tokenizer.ggml.add_space_prefix", &vocab.add_space_prefix);
  return vocab;
}

std::string ReadGgufChatTemplate(const std::string& path) {
  std::map<std::string, Value> metadata = ReadMetadata(path);
  std::string text;
  Take<std::string>(metadata, "tokenizer.chat_template", &text);
  return text;
}

}  // namespace longstride::model

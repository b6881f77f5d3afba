// Headers of safetensors files, and their index. The input is either.
#include <algorithm>

#include "config/base/check.h"
#include "model/weights/safetensors_parser.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/testing/safetensors_writer.h"

namespace longstride::fuzz {

void RunInput(std::string_view input) {
  (void)model::ParseSafetensorsIndex(input);
  auto tensors = model::ParseSafetensors(
      {reinterpret_cast<const uint8_t*>(input.data()), input.size()});
  if (!tensors.ok()) return;
  std::sort(tensors->begin(), tensors->end(),
            [](const auto& a, const auto& b) { return a.offset < b.offset; });
  size_t end = 0;
  for (const model::SafetensorsTensor& tensor : *tensors) {
    if (tensor.bytes == 0) continue;
    LS_CHECK_GE(tensor.offset, end);
    LS_CHECK_LE(tensor.offset, input.size());
    LS_CHECK_LE(tensor.bytes, input.size() - tensor.offset);
    end = tensor.offset + tensor.bytes;
  }
}

std::vector<std::string> Seeds() {
  testing::SafetensorsWriter writer;
  writer.AddZeros("model.embed_tokens.weight", {6, 4});
  writer.Add("norm", "BF16", {3}, std::vector<uint8_t>(6));
  writer.Add("mask", "BOOL", {2}, std::vector<uint8_t>(2));
  const std::vector<uint8_t> file = writer.Finish();
  const std::vector<uint8_t> empty = testing::SafetensorsWriter().Finish();
  return {
      std::string(file.begin(), file.end()),
      std::string(empty.begin(), empty.end()),
      R"({"metadata": {"total_size": 8}, "weight_map": {"a": "model-00001-of-00002.safetensors",)"
      R"( "b\u00e9": "model-00002-of-00002.safetensors"}})",
  };
}

}  // namespace longstride::fuzz

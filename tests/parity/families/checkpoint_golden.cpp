#include "tests/parity/families/checkpoint_golden.h"

#include <cmath>
#include <cstring>
#include <map>

#include "model/weights/mapped_file.h"
#include "model/weights/safetensors_parser.h"

namespace longstride::model {
namespace {

template <typename T>
std::vector<T> Values(std::span<const uint8_t> file, const SafetensorsTensor& tensor) {
  std::vector<T> values(tensor.bytes / sizeof(T));
  std::memcpy(values.data(), file.data() + tensor.offset, tensor.bytes);
  return values;
}

double Deviation(const std::vector<float>& values) {
  double sum = 0;
  double squares = 0;
  for (const float value : values) {
    sum += value;
    squares += double{value} * value;
  }
  const auto count = static_cast<double>(values.size());
  return std::sqrt(squares / count - sum / count * sum / count);
}

}  // namespace

std::string CheckpointFolder(const std::string& checkpoint) {
  return StrCat(LONGSTRIDE_SOURCE_DIR, "/tests/parity/families/data/", checkpoint);
}

absl::StatusOr<std::vector<GoldenSequence>> ReadGolden(const std::string& checkpoint) {
  ASSIGN_OR_RETURN(
      const MappedFile file,
      MappedFile::Open(CheckpointFolder(checkpoint) + "/golden.safetensors", "golden.safetensors"));
  ASSIGN_OR_RETURN(const std::vector<SafetensorsTensor> tensors, ParseSafetensors(file.bytes()));
  std::map<std::string, SafetensorsTensor> by_name;
  for (const SafetensorsTensor& tensor : tensors) by_name[tensor.name] = tensor;
  std::vector<GoldenSequence> sequences;
  while (by_name.contains(StrCat("tokens.", sequences.size()))) {
    const std::string suffix = StrCat(".", sequences.size());
    GoldenSequence sequence;
    sequence.tokens = Values<int32_t>(file.bytes(), by_name["tokens" + suffix]);
    sequence.positions = Values<int32_t>(file.bytes(), by_name["positions" + suffix]);
    const std::vector<float> logits = Values<float>(file.bytes(), by_name["logits" + suffix]);
    const auto vocab = static_cast<std::ptrdiff_t>(by_name["logits" + suffix].shape[1]);
    for (auto row = logits.begin(); row != logits.end(); row += vocab) {
      sequence.logits.emplace_back(row, row + vocab);
    }
    sequence.deviation = Deviation(logits);
    if (by_name.contains("blocks" + suffix)) {
      sequence.blocks = Values<int32_t>(file.bytes(), by_name["blocks" + suffix]);
    }
    if (by_name.contains("chosen" + suffix)) {
      sequence.chosen = Values<int32_t>(file.bytes(), by_name["chosen" + suffix]);
    }
    sequences.push_back(std::move(sequence));
  }
  return sequences;
}

}  // namespace longstride::model

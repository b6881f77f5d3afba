#include "model/weights/gguf_file.h"

#include <cstdio>
#include <map>
#include <mutex>
#include <utility>

#include "model/weights/checkpoint_digest.h"
#include "model/weights/gguf_parser.h"
#include "model/weights/mapped_file.h"

namespace longstride::model {
namespace {

constexpr int64_t kMaxParts = 1024;

struct Part {
  MappedFile mapping;  // empty where the memory is the caller's
  std::span<const uint8_t> bytes;
  GgufHeader header;
};

// An integer metadata value, or `fallback` where the key is absent or no integer.
int64_t IntValue(const Part& part, std::string_view key, int64_t fallback) {
  const auto it = part.header.metadata.find(key);
  if (it == part.header.metadata.end()) return fallback;
  const std::vector<int64_t> values = GgufIntElements(part.bytes, it->second);
  return values.size() == 1 ? values[0] : fallback;
}

class GgufFile final : public WeightsFile {
 public:
  // Checks that the parts belong together.
  static absl::StatusOr<std::unique_ptr<WeightsFile>> Create(std::string name,
                                                             std::vector<Part> parts) {
    std::unique_ptr<GgufFile> file(new GgufFile(std::move(name), std::move(parts)));
    RETURN_IF_ERROR(file->CheckParts());
    RETURN_IF_ERROR(file->IndexTensors());
    file->metadata_json_ = GgufMetadataJson(file->first().bytes, file->first().header);
    return std::unique_ptr<WeightsFile>(std::move(file));
  }

  CheckpointFormat format() const override { return CheckpointFormat::kGguf; }
  std::string name() const override { return name_; }
  const std::string& metadata_json() const override { return metadata_json_; }

  std::vector<std::string> tensor_names() const override {
    std::vector<std::string> names;
    for (const Part& part : parts_) {
      for (const GgufTensor& tensor : part.header.tensors) names.push_back(tensor.name);
    }
    return names;
  }

  absl::StatusOr<kernels::TensorView> Tensor(std::string_view name) const override {
    const auto it = tensors_.find(name);
    if (it == tensors_.end()) {
      return absl::NotFoundError(StrCat("the checkpoint has no tensor \"", name, "\""));
    }
    return it->second;
  }

  std::vector<std::string> GgufStrings(std::string_view key) const override {
    return Elements<std::string>(key, GgufStringElements);
  }
  std::vector<float> GgufFloats(std::string_view key) const override {
    const std::vector<double> numbers = Elements<double>(key, GgufNumberElements);
    return {numbers.begin(), numbers.end()};
  }
  std::vector<int64_t> GgufInts(std::string_view key) const override {
    return Elements<int64_t>(key, GgufIntElements);
  }

  std::optional<std::string> TextFile(std::string_view) const override { return std::nullopt; }

  void Release(const kernels::TensorView& view) const override {
    const auto* data = view.ptr<const uint8_t>();
    for (const Part& part : parts_) {
      const std::span<const uint8_t> mapped = part.mapping.bytes();
      if (!mapped.empty() && data >= mapped.data() && data < mapped.data() + mapped.size()) {
        ReleasePages(data, static_cast<size_t>(view.num_bytes()));
      }
    }
  }

  std::string digest() const override {
    std::call_once(digest_once_, [this] { digest_ = ComputeDigest(); });
    return digest_;
  }

  int64_t file_bytes() const override {
    int64_t bytes = 0;
    for (const Part& part : parts_) bytes += static_cast<int64_t>(part.bytes.size());
    return bytes;
  }

 private:
  GgufFile(std::string name, std::vector<Part> parts)
      : name_(std::move(name)), parts_(std::move(parts)) {}

  const Part& first() const { return parts_.front(); }

  absl::Status CheckParts() const {
    int64_t num_tensors = 0;
    for (size_t i = 0; i < parts_.size(); ++i) {
      num_tensors += static_cast<int64_t>(parts_[i].header.tensors.size());
      const int64_t number = IntValue(parts_[i], "split.no", 0);
      const int64_t count = IntValue(parts_[i], "split.count", 1);
      // Writers of a single file may leave split.count at 0.
      if (number != static_cast<int64_t>(i) ||
          (count > 1 ? count : 1) != static_cast<int64_t>(parts_.size())) {
        return absl::InvalidArgumentError(
            StrCat("part ", i + 1, " of the split GGUF checkpoint says that it is part ",
                   number + 1, " of ", count, "; expected part ", i + 1, " of ", parts_.size()));
      }
    }
    const int64_t announced = IntValue(first(), "split.tensors.count", num_tensors);
    if (parts_.size() > 1 && announced != num_tensors) {
      return absl::InvalidArgumentError(StrCat("the split GGUF checkpoint announces ", announced,
                                               " tensors, but its parts have ", num_tensors));
    }
    return absl::OkStatus();
  }

  absl::Status IndexTensors() {
    for (const Part& part : parts_) {
      for (const GgufTensor& tensor : part.header.tensors) {
        const auto view = kernels::TensorView::Contiguous(
            part.bytes.data() + tensor.offset, tensor.dtype, tensor.shape.data(), tensor.rank);
        if (!tensors_.emplace(tensor.name, view).second) {
          return absl::InvalidArgumentError(
              "two parts of the split GGUF checkpoint have a tensor of the same name");
        }
      }
    }
    return absl::OkStatus();
  }

  template <typename T>
  std::vector<T> Elements(std::string_view key, std::vector<T> (*read)(std::span<const uint8_t>,
                                                                       const GgufValue&)) const {
    const auto it = first().header.metadata.find(key);
    if (it == first().header.metadata.end()) return {};
    std::vector<T> elements = read(first().bytes, it->second);
    // Vocabularies are megabytes that nobody reads again.
    constexpr size_t kLarge = size_t{1} << 16;
    if (!first().mapping.bytes().empty() && it->second.bytes >= kLarge) {
      ReleasePages(first().bytes.data() + it->second.position, it->second.bytes);
    }
    return elements;
  }

  std::string ComputeDigest() const {
    CheckpointDigest digest;
    for (const Part& part : parts_) {
      digest.AddBytes(part.bytes.first(part.header.header_bytes));
      if (!part.mapping.bytes().empty()) {
        ReleasePages(part.bytes.data(), part.header.header_bytes);
      }
      for (const GgufTensor& tensor : part.header.tensors) {
        digest.AddTensor(tensor.name, tensors_.find(tensor.name)->second);
      }
    }
    return digest.Finish();
  }

  std::string name_;
  std::vector<Part> parts_;
  std::map<std::string, kernels::TensorView, std::less<>> tensors_;
  std::string metadata_json_;
  mutable std::once_flag digest_once_;
  mutable std::string digest_;
};

std::string PlainName(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  return slash == std::string::npos ? path : path.substr(slash + 1);
}

absl::StatusOr<Part> OpenPart(const std::string& path) {
  Part part;
  ASSIGN_OR_RETURN(part.mapping, MappedFile::Open(path, PlainName(path)));
  part.bytes = part.mapping.bytes();
  ASSIGN_OR_RETURN(part.header, ParseGguf(part.bytes));
  return part;
}

// "dir/name-00001-of-00003.gguf" with another number; empty where `path` is not named so.
std::string PartPath(const std::string& path, int64_t number, int64_t count) {
  char first[32];
  char wanted[32];
  std::snprintf(first, sizeof(first), "-%05d-of-%05d.gguf", 1, static_cast<int>(count));
  std::snprintf(wanted, sizeof(wanted), "-%05d-of-%05d.gguf", static_cast<int>(number),
                static_cast<int>(count));
  const std::string_view suffix(first);
  if (path.size() < suffix.size() || !std::string_view(path).ends_with(suffix)) return "";
  return path.substr(0, path.size() - suffix.size()) + wanted;
}

}  // namespace

absl::StatusOr<std::unique_ptr<WeightsFile>> OpenGguf(const std::string& path) {
  std::vector<Part> parts;
  ASSIGN_OR_RETURN(Part first, OpenPart(path));
  const int64_t count = IntValue(first, "split.count", 1);
  const int64_t number = IntValue(first, "split.no", 0);
  if (number != 0) {
    return absl::InvalidArgumentError(StrCat("this is part ", number + 1,
                                             " of a GGUF checkpoint of ", count,
                                             " parts; give the first part"));
  }
  if (count > kMaxParts) {
    return absl::InvalidArgumentError(StrCat("the GGUF checkpoint says that it has ", count,
                                             " parts; at most ", kMaxParts, " are allowed"));
  }
  parts.push_back(std::move(first));
  for (int64_t i = 2; i <= count; ++i) {
    const std::string next = PartPath(path, i, count);
    if (next.empty()) {
      return absl::InvalidArgumentError(StrCat("the GGUF checkpoint has ", count,
                                               " parts, so its first file must be named like "
                                               "name-00001-of-0000",
                                               count, ".gguf for the others to be found"));
    }
    ASSIGN_OR_RETURN(Part part, OpenPart(next));
    parts.push_back(std::move(part));
  }
  std::string name = PlainName(path);
  if (std::string_view(name).ends_with(".gguf")) name.resize(name.size() - 5);
  return GgufFile::Create(std::move(name), std::move(parts));
}

absl::StatusOr<std::unique_ptr<WeightsFile>> OpenGgufMemory(
    const std::vector<std::span<const uint8_t>>& parts) {
  if (parts.empty()) return absl::InvalidArgumentError("no GGUF data was given");
  std::vector<Part> parsed;
  for (const std::span<const uint8_t> bytes : parts) {
    Part part;
    part.bytes = bytes;
    ASSIGN_OR_RETURN(part.header, ParseGguf(bytes));
    parsed.push_back(std::move(part));
  }
  return GgufFile::Create("memory", std::move(parsed));
}

}  // namespace longstride::model

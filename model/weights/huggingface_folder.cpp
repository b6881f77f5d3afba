#include "model/weights/huggingface_folder.h"

#include <map>
#include <mutex>
#include <set>
#include <utility>

#include "model/weights/checkpoint_digest.h"
#include "model/weights/json_check.h"
#include "model/weights/mapped_file.h"
#include "model/weights/safetensors_parser.h"

namespace longstride::model {
namespace {

constexpr size_t kMaxConfigBytes = size_t{16} << 20;
constexpr size_t kMaxTextBytes = size_t{256} << 20;  // large vocabularies' tokenizer.json are 40 MB
constexpr int kMaxConfigDepth = 64;
constexpr std::string_view kConfig = "config.json";
constexpr std::string_view kWhole = "model.safetensors";
constexpr std::string_view kIndex = "model.safetensors.index.json";

// The text of folder/name. NOT_FOUND, INVALID_ARGUMENT (too large).
absl::StatusOr<std::string> ReadText(const std::string& folder, std::string_view name,
                                     size_t max_bytes) {
  ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(StrCat(folder, "/", name), name));
  if (file.bytes().size() > max_bytes) {
    return absl::InvalidArgumentError(
        StrCat(name, " has ", file.bytes().size(), " bytes; at most ", max_bytes, " are allowed"));
  }
  return std::string(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
}

struct Shard {
  MappedFile mapping;
  std::vector<SafetensorsTensor> tensors;
};

struct Entry {
  kernels::TensorView view;  // data == nullptr where the type is not read
  std::string type_name;
};

class HuggingFaceFolder final : public WeightsFile {
 public:
  static absl::StatusOr<std::unique_ptr<WeightsFile>> Create(const std::string& folder) {
    std::unique_ptr<HuggingFaceFolder> checkpoint(new HuggingFaceFolder(folder));
    ASSIGN_OR_RETURN(checkpoint->config_, ReadText(folder, kConfig, kMaxConfigBytes));
    RETURN_IF_ERROR(
        CheckJsonLimits(checkpoint->config_, kConfig, kMaxConfigBytes, kMaxConfigDepth));
    RETURN_IF_ERROR(checkpoint->OpenShards());
    return std::unique_ptr<WeightsFile>(std::move(checkpoint));
  }

  CheckpointFormat format() const override { return CheckpointFormat::kHuggingFace; }
  std::string name() const override {
    const size_t end = folder_.find_last_not_of('/');
    const std::string trimmed = folder_.substr(0, end + 1);
    return trimmed.substr(trimmed.find_last_of('/') + 1);
  }
  const std::string& metadata_json() const override { return config_; }

  std::vector<std::string> tensor_names() const override {
    std::vector<std::string> names;
    for (const auto& [name, entry] : tensors_) names.push_back(name);
    return names;
  }

  absl::StatusOr<kernels::TensorView> Tensor(std::string_view name) const override {
    const auto it = tensors_.find(name);
    if (it == tensors_.end()) {
      return absl::NotFoundError(StrCat("the checkpoint has no tensor \"", name, "\""));
    }
    if (it->second.view.data == nullptr) {
      return absl::UnimplementedError(
          StrCat("tensor \"", name, "\" has type ", it->second.type_name,
                 ", which is not read; supported are F32, F16, BF16, F8_E4M3, U8, I8, I32, I64"));
    }
    return it->second.view;
  }

  std::vector<std::string> GgufStrings(std::string_view) const override { return {}; }
  std::vector<float> GgufFloats(std::string_view) const override { return {}; }
  std::vector<int64_t> GgufInts(std::string_view) const override { return {}; }

  std::optional<std::string> TextFile(std::string_view name) const override {
    if (name.find('/') != std::string_view::npos || name.find('\0') != std::string_view::npos) {
      return std::nullopt;
    }
    absl::StatusOr<std::string> text = ReadText(folder_, name, kMaxTextBytes);
    if (!text.ok()) return std::nullopt;
    return *std::move(text);
  }

  void Release(const kernels::TensorView& view) const override {
    const auto* data = view.ptr<const uint8_t>();
    for (const Shard& shard : shards_) {
      const std::span<const uint8_t> mapped = shard.mapping.bytes();
      if (data >= mapped.data() && data < mapped.data() + mapped.size()) {
        ReleasePages(data, static_cast<size_t>(view.num_bytes()));
      }
    }
  }

  std::string digest() const override {
    std::call_once(digest_once_, [this] {
      CheckpointDigest digest;
      digest.AddText(config_);
      for (const auto& [name, entry] : tensors_) {
        if (entry.view.data != nullptr) digest.AddTensor(name, entry.view);
      }
      digest_ = digest.Finish();
    });
    return digest_;
  }

  int64_t file_bytes() const override {
    int64_t bytes = 0;
    for (const Shard& shard : shards_) bytes += static_cast<int64_t>(shard.mapping.bytes().size());
    return bytes;
  }

 private:
  explicit HuggingFaceFolder(std::string folder) : folder_(std::move(folder)) {}

  absl::Status OpenShards() {
    absl::StatusOr<std::string> index = ReadText(folder_, kIndex, kMaxConfigBytes * 4);
    if (absl::IsNotFound(index.status())) {
      const absl::Status status = AddShard(std::string(kWhole));
      if (!absl::IsNotFound(status)) return status;
      return absl::NotFoundError(
          "the model folder has neither model.safetensors nor model.safetensors.index.json; only "
          "safetensors weights are read (.bin and .pt files may run code): convert the checkpoint");
    }
    RETURN_IF_ERROR(index.status());
    ASSIGN_OR_RETURN(const auto entries, ParseSafetensorsIndex(*index));
    std::set<std::string> files;
    for (const auto& [tensor, file] : entries) {
      if (files.insert(file).second) RETURN_IF_ERROR(AddShard(file));
    }
    for (const auto& [tensor, file] : entries) {
      if (tensors_.find(tensor) == tensors_.end()) {
        return absl::InvalidArgumentError(
            StrCat(kIndex, " names tensor \"", tensor, "\", which its file does not hold"));
      }
    }
    if (files.empty()) {
      return absl::InvalidArgumentError(StrCat(kIndex, " names no tensor"));
    }
    return absl::OkStatus();
  }

  absl::Status AddShard(const std::string& name) {
    Shard shard;
    ASSIGN_OR_RETURN(shard.mapping, MappedFile::Open(StrCat(folder_, "/", name), name));
    absl::StatusOr<std::vector<SafetensorsTensor>> tensors =
        ParseSafetensors(shard.mapping.bytes());
    if (!tensors.ok()) return Annotate(tensors.status(), name);
    for (const SafetensorsTensor& tensor : *tensors) {
      Entry entry;
      entry.type_name = tensor.type_name;
      if (tensor.dtype.has_value()) {
        entry.view =
            kernels::TensorView::Contiguous(shard.mapping.bytes().data() + tensor.offset,
                                            *tensor.dtype, tensor.shape.data(), tensor.rank);
      }
      if (!tensors_.emplace(tensor.name, std::move(entry)).second) {
        return absl::InvalidArgumentError("two safetensors files have a tensor of the same name");
      }
    }
    shards_.push_back(std::move(shard));
    return absl::OkStatus();
  }

  std::string folder_;
  std::string config_;
  std::vector<Shard> shards_;
  std::map<std::string, Entry, std::less<>> tensors_;
  mutable std::once_flag digest_once_;
  mutable std::string digest_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<WeightsFile>> OpenHuggingFaceFolder(const std::string& path) {
  return HuggingFaceFolder::Create(path);
}

}  // namespace longstride::model

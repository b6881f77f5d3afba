#include "model/weights/huggingface_folder.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <set>
#include <utility>

#include "model/weights/checkpoint_digest.h"
#include "model/weights/json_check.h"
#include "model/weights/mapped_file.h"
#include "model/weights/safetensors_parser.h"
#include "nlohmann/json.hpp"

namespace longstride::model {
namespace {

constexpr size_t kMaxConfigBytes = size_t{16} << 20;
constexpr size_t kMaxTextBytes = size_t{256} << 20;  // large vocabularies' tokenizer.json are 40 MB
constexpr int kMaxConfigDepth = 64;
constexpr std::string_view kConfig = "config.json";
constexpr std::string_view kWhole = "model.safetensors";
constexpr std::string_view kIndex = "model.safetensors.index.json";
constexpr std::string_view kModules = "modules.json";
constexpr size_t kMaxModules = 16;

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

bool IsPlainName(std::string_view name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\\\0", 3)) == std::string_view::npos;
}

// [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}, …]
absl::StatusOr<std::vector<CheckpointModule>> ParseModules(const std::string& text) {
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  std::vector<CheckpointModule> modules;
  if (!json.is_array() || json.size() > kMaxModules) {
    return absl::InvalidArgumentError(
        StrCat(kModules, " is not a JSON list of at most ", kMaxModules, " modules"));
  }
  for (const auto& entry : json) {
    const auto text_of = [&entry](const char* key) {
      const bool there = entry.is_object() && entry.contains(key) && entry[key].is_string();
      return there ? entry[key].get<std::string>() : std::string("?/");
    };
    CheckpointModule module{.type = text_of("type"), .folder = text_of("path")};
    module.type = module.type.substr(module.type.find_last_of('.') + 1);
    if (!IsPlainName(module.type) || (!module.folder.empty() && !IsPlainName(module.folder))) {
      return absl::InvalidArgumentError(
          StrCat(kModules, ": a module needs a \"type\" and a \"path\" that is a folder's name"));
    }
    modules.push_back(std::move(module));
  }
  return modules;
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
    RETURN_IF_ERROR(checkpoint->OpenModules());
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
    const size_t slash = name.find('/');
    if (slash != std::string_view::npos && !HasModule(name.substr(0, slash))) return std::nullopt;
    if (!IsPlainName(name.substr(slash + 1))) return std::nullopt;
    absl::StatusOr<std::string> text = ReadText(folder_, name, kMaxTextBytes);
    if (!text.ok()) return std::nullopt;
    return *std::move(text);
  }

  std::vector<CheckpointModule> modules() const override { return modules_; }

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
      for (const CheckpointModule& module : modules_) {
        digest.AddText(StrCat(module.type, " ", module.folder));
        digest.AddText(TextFile(StrCat(module.folder, "/", kConfig)).value_or(""));
      }
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

  bool HasModule(std::string_view folder) const {
    return !folder.empty() && std::any_of(modules_.begin(), modules_.end(),
                                          [&](const auto& m) { return m.folder == folder; });
  }

  absl::Status OpenModules() {
    const absl::StatusOr<std::string> text = ReadText(folder_, kModules, kMaxConfigBytes);
    if (absl::IsNotFound(text.status())) return absl::OkStatus();
    RETURN_IF_ERROR(text.status());
    RETURN_IF_ERROR(CheckJsonLimits(*text, kModules, kMaxConfigBytes, kMaxConfigDepth));
    ASSIGN_OR_RETURN(modules_, ParseModules(*text));
    for (const CheckpointModule& module : modules_) {
      if (module.folder.empty()) continue;
      const absl::Status status =
          AddShard(StrCat(module.folder, "/", kWhole), StrCat(module.folder, "/"));
      if (!status.ok() && !absl::IsNotFound(status)) return status;
    }
    return absl::OkStatus();
  }

  // Tensors are named with `prefix`.
  absl::Status AddShard(const std::string& name, const std::string& prefix = "") {
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
      if (!tensors_.emplace(prefix + tensor.name, std::move(entry)).second) {
        return absl::InvalidArgumentError("two safetensors files have a tensor of the same name");
      }
    }
    shards_.push_back(std::move(shard));
    return absl::OkStatus();
  }

  std::string folder_;
  std::string config_;
  std::vector<CheckpointModule> modules_;
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

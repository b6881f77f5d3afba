// config.json and generation_config.json. The input's first byte chooses the checkpoint whose tensors
// stand beside it, so that a changed configuration meets the shapes that it speaks of.
#include <cmath>
#include <memory>

#include "config/base/check.h"
#include "config/base/strings.h"
#include "model/families/family.h"
#include "model/families/generation_defaults.h"
#include "model/weights/weights_file.h"
#include "tests/fuzz/fuzz_target.h"

namespace longstride::fuzz {
namespace {

constexpr std::string_view kFolders[] = {"families/data/cohere2",
                                         "families/data/gemma2",
                                         "families/data/gemma3",
                                         "families/data/gpt_oss",
                                         "families/data/gpt_oss_mxfp4",
                                         "families/data/llama",
                                         "families/data/llama4",
                                         "families/data/mistral",
                                         "families/data/olmo2",
                                         "families/data/olmo3",
                                         "families/data/phi3_longrope",
                                         "families/data/phi3",
                                         "families/data/qwen2",
                                         "families/data/qwen3",
                                         "encoders/data/embeddinggemma",
                                         "encoders/data/modernbert_classifier",
                                         "encoders/data/longformer_classifier"};

const model::WeightsFile& Checkpoint(size_t index) {
  static const auto& files = *[] {
    auto* opened = new std::vector<std::unique_ptr<model::WeightsFile>>;
    for (const std::string_view folder : kFolders) {
      auto file = model::WeightsFile::Open(
          StrCat(LONGSTRIDE_SOURCE_DIR, "/tests/parity/", folder));
      LS_CHECK(file.ok());
      opened->push_back(*std::move(file));
    }
    return opened;
  }();
  return *files[index % files.size()];
}

// A checkpoint with another configuration.
class Reconfigured final : public model::WeightsFile {
 public:
  Reconfigured(const model::WeightsFile& file, std::string_view config)
      : file_(file), config_(config) {}

  model::CheckpointFormat format() const override { return file_.format(); }
  std::string name() const override { return file_.name(); }
  const std::string& metadata_json() const override { return config_; }
  std::vector<std::string> tensor_names() const override { return file_.tensor_names(); }
  absl::StatusOr<kernels::TensorView> Tensor(std::string_view name) const override {
    return file_.Tensor(name);
  }
  std::vector<std::string> GgufStrings(std::string_view) const override { return {}; }
  std::vector<float> GgufFloats(std::string_view) const override { return {}; }
  std::vector<int64_t> GgufInts(std::string_view) const override { return {}; }
  std::optional<std::string> TextFile(std::string_view name) const override {
    return name == "generation_config.json" ? std::optional(config_) : std::nullopt;
  }
  void Release(const kernels::TensorView&) const override {}
  std::string digest() const override { return file_.digest(); }
  int64_t file_bytes() const override { return file_.file_bytes(); }

 private:
  const model::WeightsFile& file_;
  const std::string config_;
};

}  // namespace

void RunInput(std::string_view input) {
  InputParts parts(input);
  const size_t index = parts.Byte();
  const Reconfigured file(Checkpoint(index), parts.rest());
  const auto spec = model::LoadModelSpec(file);
  if (spec.ok()) {
    for (const model::LayerSpec& layer : spec->layers) {
      LS_CHECK(std::isfinite(layer.attention.scale));
      LS_CHECK_GE(layer.attention.native.window, 0);
      LS_CHECK_GE(layer.attention.native.chunk, 0);
      LS_CHECK_LT(layer.attention.rope, static_cast<int32_t>(spec->ropes.size()));
    }
  }
  (void)model::ReadGenerationDefaults(file, spec.ok() ? spec->vocab_size : 32);
}

std::vector<std::string> Seeds() {
  std::vector<std::string> seeds;
  for (const std::string_view folder : kFolders) {
    seeds.push_back(static_cast<char>(seeds.size()) +
                    ReadFile(StrCat("tests/parity/", folder, "/config.json")));
  }
  seeds.push_back(
      R"(_{"eos_token_id": [1, 2], "bos_token_id": 0, "pad_token_id": 3, "do_sample": true,)"
      R"( "temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.1})");
  return seeds;
}

}  // namespace longstride::fuzz

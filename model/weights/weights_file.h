// A checkpoint on disk: memory-mapped tensors by name, metadata, tokenizer and chat template.
// GGUF (v2, v3, split files) and Hugging Face folders (safetensors, sharded). Files are untrusted:
// every size, offset and count is checked before a byte is used.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "config/base/status.h"
#include "kernels/tensor_view.h"

namespace longstride::model {

enum class CheckpointFormat { kGguf, kHuggingFace };

// One step of a sentence-transformers folder (modules.json).
struct CheckpointModule {
  std::string type;    // "Pooling": without the Python package
  std::string folder;  // "1_Pooling"; "": the checkpoint itself
};

// Immutable and thread-safe after Open. Views stay valid while the object lives.
class WeightsFile {
 public:
  virtual ~WeightsFile() = default;

  // `path`: a .gguf file (for split files the first part, -00001-of-000NN.gguf) or a folder with
  // config.json and *.safetensors. NOT_FOUND, INVALID_ARGUMENT (what is wrong with the file,
  // where), UNIMPLEMENTED (a tensor type we do not read, named).
  static absl::StatusOr<std::unique_ptr<WeightsFile>> Open(const std::string& path);

  virtual CheckpointFormat format() const = 0;
  // Plain name of the file (without .gguf) or folder; no path.
  virtual std::string name() const = 0;
  // Metadata as JSON text: config.json itself, or the GGUF key/value pairs as one flat object
  // (arrays longer than 4,096 elements left out; see GgufStrings etc. below for those).
  virtual const std::string& metadata_json() const = 0;
  virtual std::vector<std::string> tensor_names() const = 0;
  // Tensors of a module's folder are named with it: "2_Dense/linear.weight". NOT_FOUND names the
  // tensor. Shapes are row-major, outermost first: a GGUF [640, 2048] weight
  // is the matrix [2048 rows, 640 columns].
  virtual absl::StatusOr<kernels::TensorView> Tensor(std::string_view name) const = 0;
  bool Has(std::string_view name) const { return Tensor(name).ok(); }

  // Large GGUF arrays by key; empty where absent or of another type.
  virtual std::vector<std::string> GgufStrings(std::string_view key) const = 0;
  virtual std::vector<float> GgufFloats(std::string_view key) const = 0;
  virtual std::vector<int64_t> GgufInts(std::string_view key) const = 0;

  // Text files of a Hugging Face folder (tokenizer.json, generation_config.json,
  // chat_template.jinja, tokenizer_config.json …) and of its modules ("1_Pooling/config.json");
  // nullopt where absent (always for GGUF).
  virtual std::optional<std::string> TextFile(std::string_view name) const = 0;

  // What makes embeddings of the checkpoint's states, in order; empty where it does not say.
  virtual std::vector<CheckpointModule> modules() const { return {}; }

  // Tells the system that a tensor's file pages are not needed any more (it was repacked). The view
  // stays valid; touching it reads the file again.
  virtual void Release(const kernels::TensorView& view) const = 0;

  // 128-bit digest (hex) over metadata, tensor names, types, shapes and a fixed sample of every
  // tensor's bytes: identifies the checkpoint cheaply at start.
  virtual std::string digest() const = 0;
  virtual int64_t file_bytes() const = 0;
};

}  // namespace longstride::model

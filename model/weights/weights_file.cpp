#include "model/weights/weights_file.h"

#include <sys/stat.h>

#include "model/weights/gguf_file.h"
#include "model/weights/huggingface_folder.h"

namespace longstride::model {

absl::StatusOr<std::unique_ptr<WeightsFile>> WeightsFile::Open(const std::string& path) {
  struct stat info = {};
  if (stat(path.c_str(), &info) != 0) {
    return absl::NotFoundError(
        "the model path does not exist or cannot be read; give a .gguf file or a folder with "
        "config.json and safetensors files");
  }
  return S_ISDIR(info.st_mode) ? OpenHuggingFaceFolder(path) : OpenGguf(path);
}

}  // namespace longstride::model

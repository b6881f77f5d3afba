// A committed tiny checkpoint with an edited configuration: what a loader makes of other spellings
// and of settings that it must refuse.
#pragma once

#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>

#include "config/base/check.h"
#include "config/base/strings.h"
#include "model/families/family.h"
#include "nlohmann/json.hpp"
#include "tests/testing/temp_folder.h"

namespace longstride::model {

class EditedCheckpoint {
 public:
  using Edit = std::function<void(nlohmann::json*)>;

  explicit EditedCheckpoint(const std::string& name, const Edit& edit = {}) {
    std::string source = StrCat(LONGSTRIDE_SOURCE_DIR, "/tests/parity/families/data/", name, "/");
    if (!std::filesystem::exists(source)) {
      source = StrCat(LONGSTRIDE_SOURCE_DIR, "/tests/parity/encoders/data/", name, "/");
    }
    nlohmann::json config = nlohmann::json::parse(std::ifstream(source + "config.json"));
    if (edit) edit(&config);
    folder_.Write("config.json", config.dump());
    std::filesystem::create_symlink(source + "model.safetensors",
                                    folder_.File("model.safetensors"));
  }

  // Another file of the folder.
  void Write(const std::string& name, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(folder_.File(name)).parent_path());
    folder_.Write(name, text);
  }
  void Rewrite(const nlohmann::json& config) { folder_.Write("config.json", config.dump()); }

  absl::StatusOr<ModelSpec> Load() {
    ASSIGN_OR_RETURN(file_, WeightsFile::Open(folder_.path()));
    return LoadModelSpec(*file_);
  }
  // The message of the error that loading must end in.
  std::string Error() {
    const auto spec = Load();
    return spec.ok() ? "no error" : std::string(spec.status().message());
  }

 private:
  testing::TempFolder folder_;
  std::unique_ptr<WeightsFile> file_;
};

}  // namespace longstride::model

// What encoders share in reading a classifier of whole texts.
#pragma once

#include <string_view>

#include "config/base/status.h"
#include "model/families/config_reader.h"
#include "model/model_spec.h"
#include "model/weights/weights_file.h"

namespace longstride::model {

// Labels ("id2label": {"0": "negative", "1": "positive"}; two where it is absent) and what becomes
// of their scores ("problem_type"). UNIMPLEMENTED: another problem.
absl::Status ReadClasses(const ConfigReader& config, Classifier* classifier);

// Whether the file has a classifier, by its tensor `weight`. UNIMPLEMENTED where "architectures"
// says that it is not `architecture`: a token classifier must not be taken for a text's.
absl::StatusOr<bool> Classifies(const ConfigReader& config, const WeightsFile& file,
                                std::string_view weight, std::string_view architecture);

}  // namespace longstride::model

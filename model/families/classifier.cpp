#include "model/families/classifier.h"

#include <string>
#include <utility>
#include <vector>

namespace longstride::model {
namespace {

constexpr int64_t kMaxLabels = 1 << 16;

absl::StatusOr<std::vector<std::string>> ReadLabels(const ConfigReader& config) {
  if (!config.Has("id2label")) return std::vector<std::string>{"LABEL_0", "LABEL_1"};
  ASSIGN_OR_RETURN(const ConfigReader names, config.Object("id2label"));
  const size_t count = names.Keys().size();
  if (count == 0 || count > kMaxLabels) {
    return absl::InvalidArgumentError(StrCat(config.Place("id2label"), " has ", count,
                                             " labels; 1 to ", kMaxLabels, " are allowed"));
  }
  std::vector<std::string> labels;
  for (size_t i = 0; i < count; ++i) {
    ASSIGN_OR_RETURN(std::string label, names.String(StrCat(i)));
    labels.push_back(std::move(label));
  }
  return labels;
}

absl::StatusOr<ClassScores> ReadScores(const ConfigReader& config, size_t num_labels) {
  ASSIGN_OR_RETURN(const std::string problem, config.StringOr("problem_type", ""));
  if (problem == "regression") return ClassScores::kIdentity;
  if (problem == "multi_label_classification") return ClassScores::kSigmoid;
  if (!problem.empty() && problem != "single_label_classification") {
    return absl::UnimplementedError(
        StrCat(config.Place("problem_type"), " is \"", problem.substr(0, 80),
               "\"; supported are regression, single_label_classification and "
               "multi_label_classification"));
  }
  return num_labels > 1 ? ClassScores::kSoftmax : ClassScores::kSigmoid;
}

}  // namespace

absl::Status ReadClasses(const ConfigReader& config, Classifier* classifier) {
  ASSIGN_OR_RETURN(classifier->labels, ReadLabels(config));
  ASSIGN_OR_RETURN(classifier->scores, ReadScores(config, classifier->labels.size()));
  return absl::OkStatus();
}

absl::StatusOr<bool> Classifies(const ConfigReader& config, const WeightsFile& file,
                                std::string_view weight, std::string_view architecture) {
  if (!file.Has(weight)) return false;
  if (!config.Has("architectures")) return true;
  ASSIGN_OR_RETURN(const std::vector<std::string> names, config.Strings("architectures"));
  if (names.size() == 1 && names[0] == architecture) return true;
  return absl::UnimplementedError(StrCat(config.Place("architectures"), " is not ", architecture,
                                         ", the only one with a classifier that is supported"));
}

}  // namespace longstride::model

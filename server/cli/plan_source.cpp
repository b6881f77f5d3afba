#include "server/cli/plan_source.h"

#include <filesystem>

#include "config/nearest_name.h"
#include "config/profiles.h"
#include "server/cli/command.h"

namespace longstride::cli {
namespace {

constexpr int64_t kMaxPlanBytes = int64_t{1} << 20;

}  // namespace

absl::StatusOr<NamedPlan> ReadPlan(const std::string& name) {
  NamedPlan plan;
  std::vector<std::string> names;
  for (const Profile& profile : Profiles()) {
    names.emplace_back(profile.name);
    if (profile.name == name) plan.text = std::string(profile.text);
  }
  if (!plan.text.empty()) {
    ASSIGN_OR_RETURN(plan.policy, SparsityPolicy::Parse(plan.text));
    return plan;
  }
  std::error_code error;
  if (!std::filesystem::exists(name, error)) {
    return absl::InvalidArgumentError(StrCat("The plan ", Quoted(name),
                                             " is neither a file nor one of the built-in profiles ",
                                             JoinNames(names), ".", DidYouMean(name, names)));
  }
  ASSIGN_OR_RETURN(plan.text, ReadTextFile(name, "The plan file", kMaxPlanBytes));
  ASSIGN_OR_RETURN(plan.policy, SparsityPolicy::Load(name));
  return plan;
}

}  // namespace longstride::cli

#include "config/profiles.h"

#include "config/nearest_name.h"

namespace longstride {

absl::StatusOr<std::string_view> FindProfile(std::string_view name) {
  std::vector<std::string> names;
  for (const Profile& profile : Profiles()) {
    if (profile.name == name) return profile.text;
    names.emplace_back(profile.name);
  }
  return absl::InvalidArgumentError(StrCat("sparsity.profile: got ", Quoted(name),
                                           "; allowed is one of ", JoinNames(names), ".",
                                           DidYouMean(name, names)));
}

}  // namespace longstride

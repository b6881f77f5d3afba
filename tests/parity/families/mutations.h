// Wrong readings of a checkpoint. Each must be seen by the parity test: a comparison that a changed
// rule passes proves nothing about the rule.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "model/model_spec.h"

namespace longstride::model {

struct Mutation {
  std::string name;
  std::function<void(ModelSpec*)> apply;
};

// Those that change the function of this spec.
std::vector<Mutation> MutationsOf(const ModelSpec& spec);

}  // namespace longstride::model

// What BERT's descendants share: learned absolute positions and token types, whose sum with the
// token's embedding is normed; blocks that norm the sum of the residual stream and a branch
// (LayerNorm); an MLP without a gate; biases throughout. Source: BERT (arXiv 1810.04805) and
// Hugging Face's names.
#pragma once

#include <string>
#include <string_view>

#include "config/base/status.h"
#include "model/families/config_reader.h"
#include "model/families/transformer.h"
#include "model/model_spec.h"

namespace longstride::model {

// Dimensions, activation ("hidden_act") and how such a spec computes. Text position 0 is row
// `first_position` of the position table; the context is shorter by that. Absent keys mean
// `defaults`. INVALID_ARGUMENT, UNIMPLEMENTED: a decoder, or positions of another kind.
absl::StatusOr<ModelSpec> ReadBertSpec(std::string_view family, const ConfigReader& config,
                                       const DecoderShape& defaults, std::string_view activation,
                                       int32_t first_position);

// Embeddings and layers under `prefix` ("bert." or ""). Every token is of type 0, whose embedding
// is added to the position table.
absl::Status BindBert(const std::string& prefix, const ConfigReader& config, BiasRule qkv_bias,
                      int32_t first_position, WeightBinder* binder, ModelSpec* spec);

// activation(dense(first token)), then a score for each label: "classifier.dense" and
// "classifier.out_proj".
absl::StatusOr<Classifier> BindBertClassifier(const ConfigReader& config, HeadActivation activation,
                                              WeightBinder* binder, int32_t dim);

}  // namespace longstride::model

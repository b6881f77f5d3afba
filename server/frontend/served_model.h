// What the front end knows of the model being served. Borrowed pointers belong to model::Model.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "model/families/generation_defaults.h"
#include "model/text/tokenizer.h"

namespace longstride::model {
class ChatTemplate;
class Model;
struct SparsityPlan;
}  // namespace longstride::model

namespace longstride::frontend {

struct ServedModel {
  std::string name;
  std::string family;
  std::string weights_type;
  std::string model_digest;
  std::string plan_name;
  std::string plan_digest;
  std::string kv_dtype;
  std::string device;
  int32_t max_context = 0;
  int32_t vocab_size = 0;  // rows of the model's output
  int32_t dim = 0;         // of embeddings
  bool causal = true;      // false: an encoder, which generates nothing
  std::vector<std::string> labels;  // of a classifier; empty: the model has none
  int32_t num_layers = 0;
  int64_t num_parameters = 0;
  absl::Time created;
  const model::Tokenizer* tokenizer = nullptr;
  const model::ChatTemplate* chat_template = nullptr;  // null: completions only
  const model::SparsityPlan* plan = nullptr;           // null only in tests
  model::GenerationDefaults defaults;

  // Largest token id plus one that a request may name.
  int32_t max_token_id() const {
    return vocab_size < tokenizer->vocab_size() ? vocab_size : tokenizer->vocab_size();
  }
  // Short digest of weights and plan: equal fingerprints mean the same function.
  std::string Fingerprint() const;
};

// Must not outlive `model`.
ServedModel DescribeModel(model::Model& model);

}  // namespace longstride::frontend

#include "absl/time/clock.h"
#include "model/model.h"
#include "model/output_heads.h"
#include "server/frontend/served_model.h"

namespace longstride::frontend {

ServedModel DescribeModel(model::Model& model) {
  ServedModel served;
  served.name = model.name();
  served.family = model.spec().family;
  served.weights_type = model.spec().weights_type;
  served.model_digest = model.model_digest();
  served.plan_name = model.plan().name;
  served.plan_digest = model.plan().digest;
  served.kv_dtype = kernels::KvDTypeName(model.cache().options().dtype);
  served.device = model.backend().Describe();
  served.max_context = model.max_context();
  served.vocab_size = model.spec().vocab_size;
  served.dim = model::EmbeddingDim(model.spec());
  served.causal = model.spec().causal;
  if (model.spec().classifier) served.labels = model.spec().classifier->labels;
  served.num_layers = static_cast<int32_t>(model.spec().layers.size());
  served.num_parameters = model.spec().num_parameters;
  served.created = absl::Now();
  served.tokenizer = &model.tokenizer();
  served.chat_template = model.chat_template();
  served.plan = &model.plan();
  served.defaults = model.defaults();
  return served;
}

}  // namespace longstride::frontend

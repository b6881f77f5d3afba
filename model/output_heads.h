// What is computed of a text's pooled states: embeddings and class scores. Plain float32 on the host:
// the layers are small, and one text's numbers depend on nothing else.
#pragma once

#include <span>
#include <vector>

#include "model/model_spec.h"

namespace longstride::model {

// `pooled`: [dim], the final states as `spec.embedding_head.pooling` makes one of them. Not
// normalised.
std::vector<float> Embed(const ModelSpec& spec, std::span<const float> pooled);

// A number for each of the classifier's labels, as its ClassScores say. `pooled`: [dim], by the
// pooling of the classifier. REQUIRES: spec.classifier.
std::vector<float> Classify(const ModelSpec& spec, std::span<const float> pooled);

// Channels of an embedding.
int32_t EmbeddingDim(const ModelSpec& spec);

}  // namespace longstride::model

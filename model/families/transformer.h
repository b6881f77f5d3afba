// What the families share in filling a ModelSpec: a spec of like layers, and binding the tensors of
// an ordinary transformer layer by a table of names.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "config/base/status.h"
#include "model/families/decoder_shape.h"
#include "model/families/rope_tables.h"
#include "model/families/weight_binder.h"
#include "model/model_spec.h"
#include "model/weights/weights_file.h"

namespace longstride::model {

// Sets the window of every sliding layer. INVALID_ARGUMENT if there is a sliding layer, but no
// window.
absl::Status SetWindows(const std::vector<LayerKind>& kinds, int32_t window, ModelSpec* spec);

// A spec of `shape` whose layers are alike: RoPE table 0, scale 1/sqrt(head_dim), no window.
ModelSpec MakeSpec(std::string_view family, const DecoderShape& shape);

enum class BiasRule : uint8_t { kNone, kRequired, kIfPresent };

// Names without ".weight" / ".bias"; those of a layer follow "<layer prefix><index>.". Empty: the
// architecture has no such tensor.
struct TensorNames {
  std::string embedding, output_norm, lm_head;
  std::string layer_prefix;
  std::string attn_norm, wq, wk, wv, wo, q_norm, k_norm, post_attn_norm;
  std::string fused_qkv;  // instead of wq, wk, wv: their rows one after the other
  std::string mlp_norm, gate, up, down, post_mlp_norm;
  std::string fused_gate_up;  // instead of gate and up
  std::string sinks;          // the whole name
  std::string attn_gates;     // AttentionSpec::gates of every head
  BiasRule qkv_bias = BiasRule::kNone;
  BiasRule wo_bias = BiasRule::kNone;
  BiasRule mlp_bias = BiasRule::kNone;
  BiasRule norm_bias = BiasRule::kNone;  // of the post norms
};

// The names that most architectures share; families change what differs. `prefix` of a Hugging Face
// checkpoint is "model." or where else its embed_tokens lies (FindHfPrefix).
TensorNames HfNames(std::string_view prefix);
TensorNames GgufNames();

// Adds a rotary table to the spec.
absl::Status AddRope(const RopeConfig& rope, const DecoderShape& shape, bool interleaved,
                     ModelSpec* spec);

// "model.", the prefix under which a multimodal checkpoint keeps its text model, or "" where the
// text model is all that was saved.
std::string FindHfPrefix(const WeightsFile& file);

// Embedding, output norm (where it has a name) and head, which an encoder does without. A head that
// is not in the file means that it is tied.
absl::Status BindGlobals(const TensorNames& names, bool tied, WeightBinder* binder,
                         ModelSpec* spec);
// Norms, attention and (where the layer is not a mixture of experts) the MLP of one layer.
absl::Status BindAttention(const TensorNames& names, int32_t layer, WeightBinder* binder,
                           ModelSpec* spec);
absl::Status BindMlp(const TensorNames& names, int32_t layer, WeightBinder* binder,
                     ModelSpec* spec);
// All of the above for every layer.
absl::Status BindTransformer(const TensorNames& names, bool tied, WeightBinder* binder,
                             ModelSpec* spec);

// A float32 vector of n elements named "<base>.bias", by the rule; an empty view where there is
// none.
absl::StatusOr<kernels::TensorView> BindBias(const std::string& base, int64_t n, BiasRule rule,
                                             WeightBinder* binder);

// "blk.3."
std::string LayerPrefix(const TensorNames& names, int32_t layer);

}  // namespace longstride::model

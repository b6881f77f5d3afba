// gpt-oss: layers alternate between a window and full attention (layer 0 slides), every head has a
// learned sink, every MLP is a mixture of experts with biases and a clamped activation, YaRN on all
// layers. Experts are MXFP4 (Hugging Face keeps blocks and scales apart and gate and up rows
// interleaved) or plain. Source: arXiv 2508.10925 and the checkpoints' configuration.
#include <cmath>
#include <cstring>

#include "model/families/families.h"
#include "model/families/transformer.h"

namespace longstride::model {
namespace {

using kernels::DType;
using kernels::TensorView;

constexpr int32_t kPeriod = 2;
constexpr int64_t kMaxExperts = 4096;
constexpr int64_t kBlock = 32;       // elements of an MXFP4 block
constexpr int64_t kBlockCodes = 16;  // bytes of its codes

absl::Status SetLayers(const std::vector<LayerKind>& kinds, int32_t window, int64_t experts,
                       int64_t top_k, ModelSpec* spec) {
  if (top_k > experts) {
    return absl::InvalidArgumentError(
        StrCat("the checkpoint routes each token to ", top_k, " experts, but has only ", experts));
  }
  for (LayerSpec& layer : spec->layers) {
    layer.mlp.activation = kernels::Activation::kSwigluOai;
    layer.mlp.num_experts = static_cast<int32_t>(experts);
    layer.mlp.top_k = static_cast<int32_t>(top_k);
    layer.mlp.scoring = kernels::ExpertScoring::kSoftmaxOfTopK;
  }
  return SetWindows(kinds, window, spec);
}

// --- Hugging Face ---

// One expert's matrix from rows first, first + stride, ... of `blocks` and `scales`, in the block
// layout of the kernels: the scale byte, then 16 bytes whose low nibbles are the first 16 elements.
// The file pairs neighbours in a byte instead.
void RepackMxfp4(const uint8_t* blocks, const uint8_t* scales, int64_t rows, int64_t row_blocks,
                 int64_t stride, uint8_t* out) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t b = 0; b < row_blocks; ++b) {
      const int64_t block = r * stride * row_blocks + b;
      const uint8_t* codes = blocks + block * kBlockCodes;
      *out++ = scales[block];
      for (int64_t i = 0; i < kBlockCodes; ++i) {
        const auto element = [&](int64_t e) {
          return (codes[e / 2] >> (e % 2 != 0 ? 4 : 0)) & 0x0f;
        };
        *out++ = static_cast<uint8_t>(element(i) | (element(i + kBlockCodes) << 4));
      }
    }
  }
}

struct ExpertDims {
  int64_t experts, dim, ffn;
};

absl::Status BindMxfp4Experts(const std::string& prefix, const ExpertDims& dims,
                              const WeightsFile& file, WeightBinder* binder,
                              LayerWeights* weights) {
  const auto pack = [&](const std::string& name, int64_t rows, int64_t cols, int64_t parts,
                        std::vector<TensorView>* const* out) -> absl::Status {
    const int64_t row_blocks = cols / kBlock;
    ASSIGN_OR_RETURN(const TensorView blocks,
                     binder->Raw(prefix + name + "_blocks", DType::kU8,
                                 {dims.experts, rows * parts, row_blocks, kBlockCodes}));
    ASSIGN_OR_RETURN(const TensorView scales,
                     binder->Raw(prefix + name + "_scales", DType::kU8,
                                 {dims.experts, rows * parts, row_blocks}));
    const int64_t bytes = rows * kernels::RowBytes(DType::kMXFP4, cols);
    uint8_t* memory = binder->NewBytes(static_cast<size_t>(dims.experts * parts * bytes));
    for (int64_t e = 0; e < dims.experts; ++e) {
      for (int64_t part = 0; part < parts; ++part, memory += bytes) {
        const int64_t first = (e * rows * parts + part) * row_blocks;
        RepackMxfp4(blocks.ptr<uint8_t>() + first * kBlockCodes, scales.ptr<uint8_t>() + first,
                    rows, row_blocks, parts, memory);
        out[part]->push_back(TensorView::Matrix(memory, DType::kMXFP4, rows, cols));
      }
    }
    file.Release(blocks);
    file.Release(scales);
    return absl::OkStatus();
  };
  std::vector<TensorView>* gate_up[] = {&weights->expert_gate, &weights->expert_up};
  std::vector<TensorView>* down[] = {&weights->expert_down};
  RETURN_IF_ERROR(pack("mlp.experts.gate_up_proj", dims.ffn, dims.dim, 2, gate_up));
  return pack("mlp.experts.down_proj", dims.dim, dims.ffn, 1, down);
}

// Rows first, first + 2, ... of a matrix, copied.
TensorView EveryOtherRow(const TensorView& matrix, int64_t first, WeightBinder* binder) {
  const auto row = static_cast<size_t>(kernels::RowBytes(matrix.dtype, matrix.shape[1]));
  const int64_t rows = matrix.shape[0] / 2;
  uint8_t* out = binder->NewBytes(static_cast<size_t>(rows) * row);
  for (int64_t r = 0; r < rows; ++r) {
    std::memcpy(out + static_cast<size_t>(r) * row,
                matrix.ptr<uint8_t>() + static_cast<size_t>(2 * r + first) * row, row);
  }
  return TensorView::Matrix(out, matrix.dtype, rows, matrix.shape[1]);
}

absl::Status BindPlainExperts(const std::string& prefix, const ExpertDims& dims,
                              WeightBinder* binder, LayerWeights* weights) {
  ASSIGN_OR_RETURN(const std::vector<TensorView> gate_up,
                   binder->TransposedMatrices(prefix + "mlp.experts.gate_up_proj", dims.experts,
                                              2 * dims.ffn, dims.dim));
  for (const TensorView& matrix : gate_up) {
    weights->expert_gate.push_back(EveryOtherRow(matrix, 0, binder));
    weights->expert_up.push_back(EveryOtherRow(matrix, 1, binder));
  }
  ASSIGN_OR_RETURN(weights->expert_down,
                   binder->TransposedMatrices(prefix + "mlp.experts.down_proj", dims.experts,
                                              dims.dim, dims.ffn));
  return absl::OkStatus();
}

absl::Status BindHfExperts(int32_t layer, const TensorNames& names, const WeightsFile& file,
                           WeightBinder* binder, ModelSpec* spec) {
  LayerSpec& out = spec->layers[static_cast<size_t>(layer)];
  LayerWeights& weights = out.weights;
  const std::string prefix = LayerPrefix(names, layer);
  const ExpertDims dims = {out.mlp.num_experts, spec->dim, out.mlp.ffn_dim};
  ASSIGN_OR_RETURN(weights.router,
                   binder->Matrix(prefix + "mlp.router.weight", dims.experts, dims.dim));
  ASSIGN_OR_RETURN(weights.router_bias, binder->Vector(prefix + "mlp.router.bias", dims.experts));
  if (binder->Has(prefix + "mlp.experts.gate_up_proj_blocks")) {
    if (dims.dim % kBlock != 0 || dims.ffn % kBlock != 0) {
      return absl::InvalidArgumentError("MXFP4 experts need dimensions that 32 divides");
    }
    RETURN_IF_ERROR(BindMxfp4Experts(prefix, dims, file, binder, &weights));
  } else {
    RETURN_IF_ERROR(BindPlainExperts(prefix, dims, binder, &weights));
  }
  ASSIGN_OR_RETURN(
      weights.expert_down_bias,
      binder->SmallMatrix(prefix + "mlp.experts.down_proj_bias", dims.experts, dims.dim));
  ASSIGN_OR_RETURN(
      const TensorView bias,
      binder->SmallMatrix(prefix + "mlp.experts.gate_up_proj_bias", dims.experts, 2 * dims.ffn));
  float* split = binder->NewFloats(static_cast<size_t>(dims.experts * 2 * dims.ffn));
  for (int64_t e = 0; e < dims.experts; ++e) {
    for (int64_t i = 0; i < 2 * dims.ffn; ++i) {
      split[e * 2 * dims.ffn + (i % 2) * dims.ffn + i / 2] = bias.row<float>(e)[i];
    }
  }
  weights.expert_gate_up_bias = TensorView::Matrix(split, DType::kF32, dims.experts, 2 * dims.ffn);
  return absl::OkStatus();
}

absl::Status CheckHfQuantization(const ConfigReader& config) {
  if (!config.IsObject("quantization_config")) return RefuseQuantization(config);
  ASSIGN_OR_RETURN(const ConfigReader quantization, config.Object("quantization_config"));
  ASSIGN_OR_RETURN(const std::string method, quantization.StringOr("quant_method", ""));
  return method == "mxfp4" ? absl::OkStatus() : RefuseQuantization(config);
}

// The activation's constants: the slope is built in, the limit is read.
absl::StatusOr<float> ReadLimit(const ConfigReader& config) {
  ASSIGN_OR_RETURN(const double alpha, config.NumberOr("swiglu_alpha", 1.702));
  if (std::fabs(alpha - 1.702) > 1e-6) {
    return absl::UnimplementedError(
        StrCat(config.Place("swiglu_alpha"), " is ", alpha, "; only 1.702 is supported"));
  }
  ASSIGN_OR_RETURN(const double limit, config.NumberOr("swiglu_limit", 7.0));
  return static_cast<float>(limit);
}

absl::StatusOr<RopeConfig> ReadHfYarn(const ConfigReader& config) {
  constexpr double kTheta = 150000.0;
  if (config.Has("rope_parameters") || config.Has("rope_scaling")) {
    return ReadHfRope(config, "full_attention", kTheta);
  }
  RopeConfig rope;  // the architecture's published default
  ASSIGN_OR_RETURN(rope.theta, config.NumberOr("rope_theta", kTheta));
  rope.scaling = RopeScaling::kYarn;
  rope.factor = 32.0;
  rope.original_max_positions = 4096;
  rope.truncate = false;
  return rope;
}

absl::StatusOr<ModelSpec> LoadHf(const WeightsFile& file) {
  ASSIGN_OR_RETURN(const ConfigReader config,
                   ConfigReader::Parse(file.metadata_json(), "config.json"));
  RETURN_IF_ERROR(CheckHfQuantization(config));
  const HfKeys keys = {
      .defaults = {.num_kv_heads = 8, .head_dim = 64, .max_positions = 131072, .norm_eps = 1e-5f}};
  ASSIGN_OR_RETURN(const DecoderShape shape, ReadHfShape(config, keys));
  ModelSpec spec = MakeSpec("gpt_oss", shape);
  ASSIGN_OR_RETURN(const std::vector<LayerKind> kinds,
                   ReadLayerTypes(config, shape.num_layers, [](int32_t i) {
                     return (i + 1) % kPeriod != 0 ? LayerKind::kSliding : LayerKind::kFull;
                   }));
  ASSIGN_OR_RETURN(const int32_t window, ReadWindow(config, "sliding_window", 128));
  ASSIGN_OR_RETURN(const int64_t experts, config.Int("num_local_experts", 1, kMaxExperts));
  const std::string_view top_k_key =
      config.Has("num_experts_per_tok") ? "num_experts_per_tok" : "experts_per_token";
  ASSIGN_OR_RETURN(const int64_t top_k, config.IntOr(top_k_key, 4, 1, kMaxExperts));
  RETURN_IF_ERROR(SetLayers(kinds, window, experts, top_k, &spec));
  ASSIGN_OR_RETURN(const float limit, ReadLimit(config));
  for (LayerSpec& layer : spec.layers) layer.mlp.activation_limit = limit;
  ASSIGN_OR_RETURN(const RopeConfig rope, ReadHfYarn(config));
  RETURN_IF_ERROR(AddRope(rope, shape, /*interleaved=*/false, &spec));
  TensorNames names = HfNames("model.");
  names.sinks = "self_attn.sinks";
  ASSIGN_OR_RETURN(const bool bias, config.BoolOr("attention_bias", true));
  names.qkv_bias = names.wo_bias = bias ? BiasRule::kRequired : BiasRule::kNone;
  WeightBinder binder(file, &spec);
  RETURN_IF_ERROR(BindGlobals(names, shape.tied_embedding, &binder, &spec));
  for (int32_t layer = 0; layer < shape.num_layers; ++layer) {
    RETURN_IF_ERROR(BindAttention(names, layer, &binder, &spec));
    RETURN_IF_ERROR(BindHfExperts(layer, names, file, &binder, &spec));
  }
  RETURN_IF_ERROR(binder.CheckAllUsed({}, {}));
  return spec;
}

// --- GGUF ---

absl::Status BindGgufExperts(int32_t layer, const TensorNames& names, WeightBinder* binder,
                             ModelSpec* spec) {
  LayerSpec& out = spec->layers[static_cast<size_t>(layer)];
  LayerWeights& weights = out.weights;
  const std::string prefix = LayerPrefix(names, layer);
  const int64_t experts = out.mlp.num_experts;
  const int64_t ffn = out.mlp.ffn_dim;
  ASSIGN_OR_RETURN(weights.router,
                   binder->Matrix(prefix + "ffn_gate_inp.weight", experts, spec->dim));
  ASSIGN_OR_RETURN(weights.router_bias, binder->Vector(prefix + "ffn_gate_inp.bias", experts));
  ASSIGN_OR_RETURN(weights.expert_gate,
                   binder->Matrices(prefix + "ffn_gate_exps.weight", experts, ffn, spec->dim));
  ASSIGN_OR_RETURN(weights.expert_up,
                   binder->Matrices(prefix + "ffn_up_exps.weight", experts, ffn, spec->dim));
  ASSIGN_OR_RETURN(weights.expert_down,
                   binder->Matrices(prefix + "ffn_down_exps.weight", experts, spec->dim, ffn));
  ASSIGN_OR_RETURN(const TensorView gate,
                   binder->SmallMatrix(prefix + "ffn_gate_exps.bias", experts, ffn));
  ASSIGN_OR_RETURN(const TensorView up,
                   binder->SmallMatrix(prefix + "ffn_up_exps.bias", experts, ffn));
  ASSIGN_OR_RETURN(weights.expert_down_bias,
                   binder->SmallMatrix(prefix + "ffn_down_exps.bias", experts, spec->dim));
  float* joined = binder->NewFloats(static_cast<size_t>(experts * 2 * ffn));
  for (int64_t e = 0; e < experts; ++e) {
    std::memcpy(joined + e * 2 * ffn, gate.row<float>(e), static_cast<size_t>(ffn) * 4);
    std::memcpy(joined + e * 2 * ffn + ffn, up.row<float>(e), static_cast<size_t>(ffn) * 4);
  }
  weights.expert_gate_up_bias = TensorView::Matrix(joined, DType::kF32, experts, 2 * ffn);
  return absl::OkStatus();
}

absl::StatusOr<ModelSpec> LoadGguf(const WeightsFile& file) {
  ASSIGN_OR_RETURN(const ConfigReader metadata,
                   ConfigReader::Parse(file.metadata_json(), "GGUF metadata"));
  ASSIGN_OR_RETURN(DecoderShape shape, ReadGgufShape(file, metadata, "gpt-oss"));
  ASSIGN_OR_RETURN(const int64_t ffn,
                   metadata.IntOr("gpt-oss.expert_feed_forward_length", shape.ffn_dim, 1, 1 << 20));
  shape.ffn_dim = static_cast<int32_t>(ffn);
  ModelSpec spec = MakeSpec("gpt_oss", shape);
  ASSIGN_OR_RETURN(const std::vector<LayerKind> kinds,
                   ReadGgufLayerKinds(metadata, "gpt-oss", shape.num_layers, kPeriod));
  ASSIGN_OR_RETURN(const int32_t window,
                   ReadWindow(metadata, "gpt-oss.attention.sliding_window", 0));
  ASSIGN_OR_RETURN(const int64_t experts, metadata.Int("gpt-oss.expert_count", 1, kMaxExperts));
  ASSIGN_OR_RETURN(const int64_t top_k, metadata.Int("gpt-oss.expert_used_count", 1, kMaxExperts));
  RETURN_IF_ERROR(SetLayers(kinds, window, experts, top_k, &spec));
  ASSIGN_OR_RETURN(RopeConfig rope, ReadGgufRope(file, metadata, "gpt-oss"));
  rope.truncate = false;  // the format has no key for it; the architecture does not round
  RETURN_IF_ERROR(AddRope(rope, shape, /*interleaved=*/false, &spec));
  TensorNames names = GgufNames();
  names.mlp_norm = "post_attention_norm";  // so named, but it stands before the experts
  names.sinks = "attn_sinks.weight";
  names.qkv_bias = names.wo_bias = BiasRule::kRequired;
  WeightBinder binder(file, &spec);
  RETURN_IF_ERROR(BindGlobals(names, shape.tied_embedding, &binder, &spec));
  for (int32_t layer = 0; layer < shape.num_layers; ++layer) {
    RETURN_IF_ERROR(BindAttention(names, layer, &binder, &spec));
    RETURN_IF_ERROR(BindGgufExperts(layer, names, &binder, &spec));
  }
  RETURN_IF_ERROR(binder.CheckAllUsed({}, {}));
  return spec;
}

}  // namespace

absl::StatusOr<ModelSpec> LoadGptOss(const WeightsFile& file) {
  return file.format() == CheckpointFormat::kGguf ? LoadGguf(file) : LoadHf(file);
}

}  // namespace longstride::model

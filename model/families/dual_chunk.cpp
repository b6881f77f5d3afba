#include "model/families/dual_chunk.h"

#include <algorithm>
#include <cmath>
#include <string_view>

#include "config/base/check.h"

namespace longstride::model {
namespace {

constexpr std::string_view kKey = "dual_chunk_attention_config";
// Of the published implementation.
constexpr int64_t kDefaultChunk = 8192;
constexpr int64_t kDefaultLocal = 1024;

constexpr int kClassesOfADoubling = 16;
constexpr size_t kMaxClasses = 255;

constexpr std::string_view kKnownKeys[] = {
    "chunk_size",
    "local_size",
    "original_max_position_embeddings",
    "sparse_attention_config",
    "sparse_attention_enabled",
    "sparse_attention_last_q",
    "sparse_attention_threshold",
};

// The table once more for each class of prompts longer than `original`.
void AddLengthClasses(double original, int32_t max_positions, RopeSpec* rope) {
  const RopeTable plain = rope->variants[0];
  rope->by_prompt = true;
  for (int k = 0; rope->variants.size() <= kMaxClasses; ++k) {
    const double longest = original * std::exp2(static_cast<double>(k) / kClassesOfADoubling);
    if (longest >= max_positions) break;
    rope->variant_lengths.push_back(static_cast<int32_t>(longest));
    const double doublings = (k + 0.5) / kClassesOfADoubling;
    RopeTable& table = rope->variants.emplace_back(plain);
    table.scale *= static_cast<float>(0.1 * doublings * std::log(2.0) + 1.0);
  }
}

}  // namespace

absl::Status ReadDualChunk(const ConfigReader& config, const RopeConfig& rope, ModelSpec* spec) {
  if (!config.Has(kKey)) return absl::OkStatus();
  ASSIGN_OR_RETURN(const ConfigReader dual, config.Object(kKey));
  for (const std::string& key : dual.Keys()) {
    if (std::find(std::begin(kKnownKeys), std::end(kKnownKeys), key) == std::end(kKnownKeys)) {
      return absl::UnimplementedError(
          StrCat(dual.Place(key), " is an option of dual chunk attention that is not supported"));
    }
  }
  if (rope.scaling != RopeScaling::kNone) {
    return absl::UnimplementedError(
        StrCat(config.Place(kKey),
               " stands beside a rotary scaling, and what both together mean is not "
               "defined; remove one of the two"));
  }
  constexpr int64_t kMost = 1 << 30;
  ASSIGN_OR_RETURN(const int64_t chunk, dual.IntOr("chunk_size", kDefaultChunk, 1, kMost));
  ASSIGN_OR_RETURN(const int64_t local, dual.IntOr("local_size", kDefaultLocal, 1, kMost));
  ASSIGN_OR_RETURN(const int64_t original,
                   dual.IntOr("original_max_position_embeddings", 0, 0, kMost));
  ASSIGN_OR_RETURN(const bool sparse,
                   dual.BoolOr("sparse_attention_enabled", dual.Has("sparse_attention_config")));
  if (local >= chunk) {
    return absl::InvalidArgumentError(StrCat(dual.Place("local_size"), " is ", local,
                                             "; it must be below chunk_size, which is ", chunk));
  }
  if ((chunk - local) % DualChunk::kAlignment != 0) {
    return absl::UnimplementedError(StrCat(
        dual.Place("chunk_size"), " is ", chunk, " and local_size ", local,
        "; their difference must be a multiple of ", DualChunk::kAlignment, " to be served"));
  }
  spec->dual_chunk = DualChunk{.chunk_size = static_cast<int32_t>(chunk),
                               .local_size = static_cast<int32_t>(local)};
  LS_CHECK_EQ(spec->ropes.size(), size_t{1});
  if (original > 0 && original < spec->max_positions) {
    AddLengthClasses(static_cast<double>(original), spec->max_positions, &spec->ropes[0]);
    spec->notes.push_back(
        StrCat("Prompts longer than ", original,
               " tokens scale attention by their length in steps of a sixteenth of a doubling, not "
               "of a token, so that prompts can share pages."));
  }
  if (sparse) {
    spec->notes.push_back(
        "The checkpoint names vertical-slash sparsity for long prompts beside its dual chunk "
        "attention; all keys are read instead.");
  }
  return absl::OkStatus();
}

}  // namespace longstride::model

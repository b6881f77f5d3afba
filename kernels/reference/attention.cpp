#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/quant.h"
#include "kernels/reference/reference_backend.h"

namespace longstride::kernels {
namespace {

// One key/value position of the cache as the kernels address it.
struct Slot {
  int64_t position;
  int64_t offset;  // of the head's page
  int32_t index;   // row inside the page
};

void ReadRow(const PagedKv& cache, const void* base, const Slot& slot, float* out) {
  const int64_t dim = cache.head_dim;
  const char* page = static_cast<const char*>(base) + slot.offset;
  switch (cache.dtype) {
    case KvDType::kF32:
      return DequantizeRow(DType::kF32, page + 4 * slot.index * dim, dim, out);
    case KvDType::kF16:
      return DequantizeRow(DType::kF16, page + 2 * slot.index * dim, dim, out);
    case KvDType::kBF16:
      return DequantizeRow(DType::kBF16, page + 2 * slot.index * dim, dim, out);
    case KvDType::kFp8: {
      const auto* codes = reinterpret_cast<const uint8_t*>(page) + slot.index * dim;
      const float scale = base == cache.k ? 1.0f : cache.v_scale;
      for (int64_t c = 0; c < dim; ++c) out[c] = E4m3ToFloat(codes[c]) * scale;
      return;
    }
    case KvDType::kQ8: {
      const auto* codes = reinterpret_cast<const int8_t*>(page) + slot.index * dim;
      const float scale = reinterpret_cast<const float*>(page + kPageTokens * dim)[slot.index];
      for (int64_t c = 0; c < dim; ++c) out[c] = static_cast<float>(codes[c]) * scale;
      return;
    }
  }
}

// The keys that row `i` (absolute position) of list head `list_head` sees, ascending.
absl::Status VisibleSlots(const AttentionParams& p, int32_t tile_index, int32_t list_head,
                          int64_t kv_head, int64_t i, std::vector<Slot>* slots) {
  const KvSelection& s = p.selection;
  const QueryTile& tile = s.tiles[tile_index];
  const int64_t list = int64_t{list_head} * s.num_tiles + tile_index;
  const int64_t kv_len = p.kv_lens[tile.sequence];
  const int32_t* pages = p.page_table.pages + tile.sequence * p.page_table.stride;
  slots->clear();
  int64_t previous = -1;
  for (int32_t n = 0; n < s.list_count[list]; ++n) {
    const int64_t entry = s.entries[s.list_begin[list] + n];
    if (entry == kNoEntry) continue;
    if (entry <= previous) {
      return absl::InternalError(
          StrCat("Attention: list entries must ascend, got ", entry, " after ", previous));
    }
    previous = entry;
    const int64_t end = std::min<int64_t>((entry + 1) * s.entry_tokens, kv_len);
    for (int64_t j = entry * s.entry_tokens; j < end; ++j) {
      if (!EdgeAllows(s.edges[list_head], i, j)) continue;
      const int32_t page = pages[j / p.cache.page_entries];
      if (page < 0 || page >= p.cache.num_pages) {
        return absl::InternalError(StrCat("Attention: position ", j, " of sequence ", tile.sequence,
                                          " is visible but has page ", page));
      }
      slots->push_back({j, page * p.cache.page_stride + kv_head * p.cache.head_stride,
                        static_cast<int32_t>(j % p.cache.page_entries)});
    }
  }
  return absl::OkStatus();
}

// Softmax over the visible keys in two passes, sums in double.
void AttendRow(const AttentionParams& p, const std::vector<Slot>& slots, int64_t r, int64_t h) {
  const int64_t dim = p.cache.head_dim;
  const float* q = p.q.ptr<float>() + r * p.q.strides[0] + h * p.q.strides[1];
  float* out = p.out.ptr<float>() + r * p.out.strides[0] + h * p.out.strides[1];
  constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();
  std::vector<float> row(dim);
  std::vector<double> scores(slots.size()), sum(dim, 0.0);
  double max = kMinusInfinity;
  for (size_t n = 0; n < slots.size(); ++n) {
    ReadRow(p.cache, p.cache.k, slots[n], row.data());
    double dot = 0.0;
    for (int64_t c = 0; c < dim; ++c) dot += double{q[c]} * row[c];
    scores[n] = p.scale * dot;
    if (p.softcap > 0.0f) scores[n] = p.softcap * std::tanh(scores[n] / p.softcap);
    max = std::max(max, scores[n]);
  }
  double total = 0.0;
  for (size_t n = 0; n < slots.size(); ++n) {
    const double weight = std::exp(scores[n] - max);
    total += weight;
    ReadRow(p.cache, p.cache.v, slots[n], row.data());
    for (int64_t c = 0; c < dim; ++c) sum[c] += weight * row[c];
  }
  if (p.lse != nullptr) {
    p.lse[r * p.q.shape[1] + h] =
        static_cast<float>(slots.empty() ? kMinusInfinity : max + std::log(total));
  }
  const double sink = p.sinks != nullptr ? std::exp(p.sinks[h] - max) : 0.0;
  for (int64_t c = 0; c < dim; ++c) {
    out[c] = slots.empty() ? 0.0f : static_cast<float>(sum[c] / (total + sink));
  }
}

int64_t At(const TensorView& heads, int64_t row, int64_t head) {
  return row * heads.strides[0] + head * heads.strides[1];
}

// One channel of the parts' sum.
template <typename Params>
float WeighParts(const Params& p, const float* weights, int64_t row, int64_t head, int64_t c) {
  float sum = 0.0f;
  for (int32_t i = 0; i < p.num_parts; ++i) {
    sum += weights[i] * p.parts[i].template ptr<float>()[At(p.parts[i], row, head) + c];
  }
  return sum;
}

}  // namespace

absl::Status ReferenceBackend::DoAttention(const AttentionParams& p) {
  const KvSelection& s = p.selection;
  const auto heads = static_cast<int32_t>(p.q.shape[1]);
  const int32_t group = heads / p.cache.num_heads;
  std::vector<Slot> slots;
  for (int32_t t = 0; t < s.num_tiles; ++t) {
    for (int32_t i = 0; i < s.tiles[t].num_rows; ++i) {
      for (int32_t h = 0; h < heads; ++h) {
        const int32_t list_head = s.list_heads == ListHeads::kShared      ? 0
                                  : s.list_heads == ListHeads::kPerKvHead ? h / group
                                                                          : h;
        RETURN_IF_ERROR(VisibleSlots(p, t, list_head, h / group,
                                     s.tiles[t].first_position + int64_t{i}, &slots));
        AttendRow(p, slots, s.tiles[t].row_begin + i, h);
        if (p.counters != nullptr) {
          p.counters->keys_visible += static_cast<int64_t>(slots.size());
          p.counters->keys_read += static_cast<int64_t>(slots.size());
        }
      }
    }
  }
  return absl::OkStatus();
}

absl::Status ReferenceBackend::DoMergeAttention(const MergeAttentionParams& p) {
  const int64_t heads = p.out.shape[1];
  for (int64_t r = 0; r < p.out.shape[0]; ++r) {
    for (int64_t h = 0; h < heads; ++h) MergeAttentionRow(p, r, h);
  }
  return absl::OkStatus();
}

absl::Status ReferenceBackend::DoGateAttention(const GateAttentionParams& p) {
  for (int64_t r = 0; r < p.out.shape[0]; ++r) {
    for (int64_t h = 0; h < p.out.shape[1]; ++h) GateAttentionRow(p, r, h);
  }
  return absl::OkStatus();
}

void GateAttentionRow(const GateAttentionParams& p, int64_t row, int64_t head) {
  const float* gates = p.gates.ptr<float>() + row * p.gates.strides[0] + head * p.num_parts;
  float weights[kMaxAttentionParts] = {};
  for (int32_t i = 0; i < p.num_parts; ++i) weights[i] = 1.0f / (1.0f + std::exp(-gates[i]));
  float* out = p.out.ptr<float>() + At(p.out, row, head);
  for (int64_t c = 0; c < p.out.shape[2]; ++c) {
    out[c] = WeighParts(p, weights, row, head, c);
  }
}

void MergeAttentionRow(const MergeAttentionParams& p, int64_t row, int64_t head) {
  constexpr float kNothing = -std::numeric_limits<float>::infinity();
  const int64_t at = row * p.out.shape[1] + head;
  float max = kNothing;
  bool any = false;
  for (int32_t i = 0; i < p.num_parts; ++i) {
    max = std::max(max, p.lse[i][at]);
    any = any || p.lse[i][at] != kNothing;  // NaN is not nothing
  }
  float weights[kMaxAttentionParts] = {};
  float total = 0.0f;
  for (int32_t i = 0; any && i < p.num_parts; ++i) {
    if (p.lse[i][at] != kNothing) weights[i] = std::exp(p.lse[i][at] - max);
    total += weights[i];
  }
  float* out = p.out.ptr<float>() + At(p.out, row, head);
  for (int64_t c = 0; c < p.out.shape[2]; ++c) {
    const float sum = WeighParts(p, weights, row, head, c);
    out[c] = any ? sum / total : 0.0f;
  }
}

}  // namespace longstride::kernels

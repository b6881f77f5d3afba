#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "kernels/reference/reference_backend.h"
#include "kernels/reference/stored_key.h"

namespace longstride::kernels {
namespace {

// Scores of the keys up to the row's own.
absl::StatusOr<std::vector<float>> IndexScores(const SelectTokensParams& p, const QueryTile& tile) {
  const int64_t heads = p.q.shape[1], dim = p.q.shape[2];
  const float* q = p.q.ptr<float>() + tile.row_begin * p.q.strides[0];
  const float* weights = p.weights.ptr<float>() + tile.row_begin * p.weights.strides[0];
  std::vector<float> scores(static_cast<size_t>(CandidateTokens(tile)), 0.0f);
  for (size_t j = 0; j < scores.size(); ++j) {
    const auto position = static_cast<int64_t>(j);
    const int64_t logical = position / kPageTokens;
    const int32_t id = p.page_table.pages[tile.sequence * p.page_table.stride + logical];
    if (id < 0 || id >= p.cache.num_pages) {
      return absl::InternalError(StrCat("SelectTokens: logical page ", logical,
                                        " is a candidate but its sequence does not hold it"));
    }
    const char* page = static_cast<const char*>(p.cache.k) + id * p.cache.page_stride;
    for (int64_t h = 0; h < heads; ++h) {
      float product = 0.0f;
      for (int64_t d = 0; d < dim; ++d) {
        product +=
            q[h * dim + d] * KeyValue(p.cache, page, static_cast<int32_t>(position % kPageTokens),
                                      static_cast<int32_t>(d));
      }
      // Written so that what is not a number stays that.
      scores[j] += weights[h] * (product < 0.0f ? 0.0f : product);
    }
  }
  return scores;
}

}  // namespace

absl::Status ReferenceBackend::DoSelectTokens(const SelectTokensParams& p) {
  for (int32_t t = 0; t < p.num_tiles; ++t) {
    if (p.counts[t] == 0) continue;
    std::vector<int32_t> order(static_cast<size_t>(CandidateTokens(p.tiles[t])));
    std::iota(order.begin(), order.end(), 0);
    if (p.counts[t] < static_cast<int64_t>(order.size())) {
      ASSIGN_OR_RETURN(const std::vector<float> scores, IndexScores(p, p.tiles[t]));
      std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
        const float x = scores[static_cast<size_t>(a)], y = scores[static_cast<size_t>(b)];
        return x > y || (std::isnan(y) && !std::isnan(x));
      });
    }
    std::sort(order.begin(), order.begin() + p.counts[t]);
    std::copy_n(order.begin(), p.counts[t], p.entries + p.list_begin[t]);
  }
  return absl::OkStatus();
}

}  // namespace longstride::kernels

// Lists that follow from shares of attention (PageScore::kAntidiagonal, kVerticalSlash, kPooled). A
// task is one tile or one probed segment of one list head: much work, whose reductions have one
// order.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/take_pages.h"

namespace longstride::kernels::cpu {
namespace {

// A tile's queries of one head in groups of p.stride, each group's in descending order of position:
// the product with a group of keys as they lie in the cache is the sum along the antidiagonal.
void FoldQueries(const SelectPagesParams& p, const QueryTile& tile, int64_t head, float* out) {
  const int64_t dim = p.cache.head_dim;
  const int64_t groups = (tile.num_rows + p.stride - 1) / p.stride;
  for (int64_t n = 0; n < groups; ++n) {
    for (int64_t t = 0; t < p.stride; ++t, out += dim) {
      const int64_t row = n * p.stride + p.stride - 1 - t;
      if (row >= tile.num_rows) {
        std::fill_n(out, dim, 0.0f);
      } else {
        std::copy_n(
            p.q.ptr<float>() + (tile.row_begin + row) * p.q.strides[0] + head * p.q.strides[1], dim,
            out);
      }
    }
  }
}

// The mean of each page's keys, and whether they are alike (PageScore::kPooled).
struct PageMeans {
  std::vector<PooledSequence> sequences;
  std::vector<int32_t> slot_of;     // [num_tiles] into `sequences`, or -1
  std::vector<int64_t> first_page;  // [sequences] of the arrays below
  std::vector<float> means;         // [pages, KV heads, head_dim]
  std::vector<uint8_t> alike;       // [pages, KV heads]
};

// Sums of vectors and of vectors of length 1, for the mean cosine of all their pairs.
class Pool {
 public:
  explicit Pool(int64_t dim) : sum_(static_cast<size_t>(dim)), unit_(static_cast<size_t>(dim)) {}
  void Add(const float* x) {
    double square = 0;
    for (size_t d = 0; d < sum_.size(); ++d) square += double{x[d]} * x[d];
    const double inverse = square == 0 ? 0 : 1 / std::sqrt(square);
    for (size_t d = 0; d < sum_.size(); ++d) {
      sum_[d] += x[d];
      unit_[d] += x[d] * inverse;
    }
    ++count_;
  }
  void Mean(float* out) const {
    for (size_t d = 0; d < sum_.size(); ++d) out[d] = static_cast<float>(sum_[d] / count_);
  }
  double MeanCosine() const {
    double square = 0;
    for (const double x : unit_) square += x * x;
    return square / (count_ * count_);
  }

 private:
  std::vector<double> sum_, unit_;
  double count_ = 0;
};

// Makes the lists of one list head at a time, in one thread's memory.
class SharesOfHead {
 public:
  SharesOfHead(const CpuKernels& kernels, const SelectPagesParams& p, const PageMeans& means,
               int64_t list_head, Scratch* scratch)
      : kernels_(kernels), p_(p), means_(means), list_head_(list_head), scratch_(scratch) {
    const int64_t heads = p.q.shape[1];
    num_heads_ = p.list_heads == ListHeads::kPerQHead ? 1 : heads / p.cache.num_heads;
    first_head_ = list_head * num_heads_;
    kv_head_ = first_head_ / (heads / p.cache.num_heads);
  }

  // A logical page that is a candidate and is not there; -1: none.
  int64_t missing() const { return missing_; }

  void Antidiagonal(int32_t t) {
    const QueryTile& tile = p_.tiles[t];
    if (p_.counts[t] == 0) return;
    if (tile.num_rows == 1) return TakeAll(tile, ListOf(t));
    const int64_t width = p_.stride * p_.cache.head_dim, per_page = kPageTokens / p_.stride;
    const int64_t folded = (tile.num_rows + p_.stride - 1) / p_.stride;
    const int64_t pages = CandidatePages(tile);
    Reserve(num_heads_ * folded, width, pages * per_page);
    for (int64_t h = 0; h < num_heads_; ++h) {
      FoldQueries(p_, tile, first_head_ + h, q_ + h * folded * width);
    }
    if (!Score(tile.sequence, int64_t{tile.first_position} + tile.num_rows, p_.stride)) return;
    std::vector<double> shares(static_cast<size_t>(pages), 0.0);
    for (int64_t r = 0; r < rows_; ++r) {
      const int64_t visible = tile.first_position / p_.stride + r % folded + 1;
      const double sum = Exponentials(r, visible);
      if (!(sum > 0)) continue;
      const float* weights = scores_ + r * columns_;
      for (int64_t m = 0; m < visible; ++m) {
        shares[static_cast<size_t>(m / per_page)] += weights[m] / sum;
      }
    }
    const double total = std::accumulate(shares.begin(), shares.end(), 0.0);
    for (double& share : shares) share /= total;
    TakeByShares(p_, tile, shares, ListOf(t));
  }

  void Pooled(int32_t t) {
    const QueryTile& tile = p_.tiles[t];
    if (p_.counts[t] == 0) return;
    if (tile.num_rows == 1) return TakeAll(tile, ListOf(t));
    bool rows_alike = true;
    std::vector<uint8_t> alike;
    const std::vector<double> shares =
        PooledShares(means_.slot_of[static_cast<size_t>(t)], tile.row_begin, tile.num_rows,
                     CandidatePages(tile), &rows_alike, &alike);
    if (!rows_alike) return TakeAll(tile, ListOf(t));
    TakePooled(p_, tile, shares, alike, ListOf(t));
  }

  void VerticalSlashes(const ProbedTiles& probed) {
    const QueryTile& first = p_.tiles[probed.begin];
    if (p_.counts[probed.begin] == 0) return;
    if (first.num_rows == 1) return TakeAll(first, ListOf(probed.begin));
    const int64_t dim = p_.cache.head_dim, rows = probed.end_row - probed.first_row;
    const int64_t count = probed.last_position + 1;
    std::vector<double> columns(static_cast<size_t>(count), 0.0), diagonals = columns;
    // Head by head, to bound the memory.
    for (int64_t h = first_head_; h < first_head_ + num_heads_; ++h) {
      Reserve(rows, dim, (count + kPageTokens - 1) / kPageTokens * kPageTokens);
      for (int64_t r = 0; r < rows; ++r) {
        std::copy_n(
            p_.q.ptr<float>() + (probed.first_row + r) * p_.q.strides[0] + h * p_.q.strides[1], dim,
            q_ + r * dim);
      }
      if (!Score(first.sequence, count, 1)) return;
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t visible = count - rows + r + 1;
        const double sum = Exponentials(r, visible);
        if (!(sum > 0)) continue;
        const float* weights = scores_ + r * columns_;
        for (int64_t j = 0; j < visible; ++j) {
          const double share = weights[j] / sum;
          columns[static_cast<size_t>(j)] += share;
          diagonals[static_cast<size_t>(visible - 1 - j)] += share;
        }
      }
    }
    if (p_.divergence > 0 && QueryAware(probed, columns, diagonals)) return;
    const VerticalSlash chosen = ChooseVerticalSlash(p_, columns, diagonals);
    for (int32_t t = probed.begin; t < probed.end; ++t) {
      TakeVerticalSlash(p_, p_.tiles[t], chosen, ListOf(t));
    }
  }

 private:
  // Writes the segment's lists if they are query-aware.
  bool QueryAware(const ProbedTiles& probed, const std::vector<double>& columns,
                  const std::vector<double>& diagonals) {
    bool rows_alike;
    std::vector<uint8_t> alike;
    const int32_t slot = means_.slot_of[static_cast<size_t>(probed.begin)];
    const std::vector<double> shares =
        PooledShares(slot, probed.first_row, probed.end_row - probed.first_row,
                     probed.last_position / kPageTokens + 1, &rows_alike, &alike);
    if (!IsQueryAware(p_, columns, shares)) return false;
    const VerticalSlash least = ChooseLeastVerticalSlash(p_, columns, diagonals);
    for (int32_t t = probed.begin; t < probed.end; ++t) {
      const QueryTile& tile = p_.tiles[t];
      TakeQueryAware(p_, tile, least,
                     PooledShares(slot, tile.row_begin, tile.num_rows, CandidatePages(tile),
                                  &rows_alike, &alike),
                     ListOf(t));
    }
    return true;
  }

  // Shares of the first `pages` by the mean of rows of q, over those that are alike.
  std::vector<double> PooledShares(int32_t slot, int32_t row_begin, int32_t num_rows, int64_t pages,
                                   bool* rows_alike, std::vector<uint8_t>* alike) {
    const int64_t dim = p_.cache.head_dim, kv_heads = p_.cache.num_heads;
    const int64_t first = means_.first_page[static_cast<size_t>(slot)];
    alike->clear();
    for (int64_t page = 0; page < pages; ++page) {
      alike->push_back(means_.alike[static_cast<size_t>((first + page) * kv_heads + kv_head_)]);
    }
    std::vector<double> shares(static_cast<size_t>(pages), 0.0), scores(shares.size());
    std::vector<float> mean(static_cast<size_t>(dim));
    *rows_alike = true;
    for (int64_t h = first_head_; h < first_head_ + num_heads_; ++h) {
      Pool pool(dim);
      for (int32_t r = 0; r < num_rows; ++r) {
        pool.Add(p_.q.ptr<float>() + (row_begin + r) * p_.q.strides[0] + h * p_.q.strides[1]);
      }
      pool.Mean(mean.data());
      if (!(pool.MeanCosine() > p_.similarity)) *rows_alike = false;
      double max = -std::numeric_limits<double>::infinity(), sum = 0;
      for (size_t page = 0; page < shares.size(); ++page) {
        const float* key = means_.means.data() +
                           ((first + static_cast<int64_t>(page)) * kv_heads + kv_head_) * dim;
        double score = 0;
        for (size_t d = 0; d < mean.size(); ++d) score += double{mean[d]} * key[d];
        scores[page] = p_.scale * score;
        if ((*alike)[page] != 0) max = std::max(max, scores[page]);
      }
      for (size_t page = 0; page < shares.size(); ++page) {
        scores[page] = (*alike)[page] != 0 ? std::exp(scores[page] - max) : 0.0;
        sum += scores[page];
      }
      if (!(sum > 0)) continue;
      for (size_t page = 0; page < shares.size(); ++page) {
        shares[page] += scores[page] / sum / static_cast<double>(num_heads_);
      }
    }
    return shares;
  }

  int32_t* ListOf(int32_t t) const {
    return p_.entries + p_.list_begin[list_head_ * p_.num_tiles + t];
  }

  void Reserve(int64_t rows, int64_t width, int64_t columns) {
    rows_ = rows;
    columns_ = columns;
    const auto carve = [&](Carver carver) {
      q_ = carver.Take<float>(rows * width);
      scores_ = carver.Take<float>(rows * columns);
      keys_ = carver.Take<float>(kPageTokens * p_.cache.head_dim);
      return carver.used();
    };
    carve(Carver(scratch_->Get(carve(Carver(nullptr)))));
  }

  // scores_[r, m] of the rows in q_ and the groups of `fold` keys up to position `end`.
  bool Score(int32_t sequence, int64_t end, int32_t fold) {
    const PagedKv& cache = p_.cache;
    for (int64_t page = 0; page * kPageTokens < end; ++page) {
      const int32_t id = p_.page_table.pages[sequence * p_.page_table.stride + page];
      if (id < 0 || id >= cache.num_pages) {
        missing_ = page;
        return false;
      }
      kernels_.fold_scores({.dtype = cache.dtype,
                            .keys = static_cast<const char*>(cache.k) + id * cache.page_stride +
                                    kv_head_ * cache.head_stride,
                            .count = std::min<int64_t>(kPageTokens, end - page * kPageTokens),
                            .dim = cache.head_dim,
                            .fold = fold,
                            .q = q_,
                            .rows = rows_,
                            .scale = p_.scale / static_cast<float>(fold),
                            .scores = scores_ + page * (kPageTokens / fold),
                            .scores_stride = columns_,
                            .scratch = keys_});
    }
    return true;
  }

  // Makes weights of a row's first scores; returns their sum.
  double Exponentials(int64_t r, int64_t visible) {
    float* row = scores_ + r * columns_;
    const float max = *std::max_element(row, row + visible);
    for (int64_t m = 0; m < visible; ++m) row[m] -= max;
    kernels_.exp(row, visible, row);
    return std::accumulate(row, row + visible, 0.0);
  }

  const CpuKernels& kernels_;
  const SelectPagesParams& p_;
  const PageMeans& means_;
  int64_t list_head_, first_head_, num_heads_, kv_head_;
  Scratch* scratch_;
  int64_t missing_ = -1;
  int64_t rows_ = 0, columns_ = 0;
  float* q_ = nullptr;       // [rows_, group of queries]
  float* scores_ = nullptr;  // [rows_, columns_]
  float* keys_ = nullptr;
};

// A logical page that is not there goes to *missing.
PageMeans MeansOf(const SelectPagesParams& p, const CpuKernels& kernels, ThreadPool* pool,
                  std::vector<Scratch>* scratch, std::atomic<int64_t>* missing) {
  const int64_t dim = p.cache.head_dim, kv_heads = p.cache.num_heads;
  PageMeans out;
  out.sequences = FindPooledSequences(p, &out.slot_of);
  std::vector<int32_t> slots;  // of each page
  for (size_t s = 0; s < out.sequences.size(); ++s) {
    out.first_page.push_back(static_cast<int64_t>(slots.size()));
    slots.resize(
        slots.size() + static_cast<size_t>((out.sequences[s].end + kPageTokens - 1) / kPageTokens),
        static_cast<int32_t>(s));
  }
  const auto rows = static_cast<int64_t>(slots.size()) * kv_heads;
  out.means.resize(static_cast<size_t>(rows * dim));
  out.alike.resize(static_cast<size_t>(rows));
  pool->ParallelFor(static_cast<int64_t>(slots.size()), [&](int64_t at, int thread) {
    const auto slot = static_cast<size_t>(slots[static_cast<size_t>(at)]);
    const int64_t page = at - out.first_page[slot];
    const int32_t id =
        p.page_table.pages[out.sequences[slot].sequence * p.page_table.stride + page];
    if (id < 0 || id >= p.cache.num_pages) return missing->store(page);
    const int64_t count =
        std::min<int64_t>(kPageTokens, out.sequences[slot].end - page * kPageTokens);
    auto* keys = static_cast<float*>((*scratch)[static_cast<size_t>(thread)].Get(
        kPageTokens * dim * static_cast<int64_t>(sizeof(float))));
    for (int64_t h = 0; h < kv_heads; ++h) {
      kernels.expand_keys({.dtype = p.cache.dtype,
                           .keys = static_cast<const char*>(p.cache.k) + id * p.cache.page_stride +
                                   h * p.cache.head_stride,
                           .count = count,
                           .dim = dim,
                           .scratch = keys});
      Pool mean(dim);
      for (int64_t j = 0; j < count; ++j) mean.Add(keys + j * dim);
      const int64_t row = at * kv_heads + h;
      mean.Mean(out.means.data() + row * dim);
      const bool limits = p.score == PageScore::kPooled;
      out.alike[static_cast<size_t>(row)] = !limits || mean.MeanCosine() > p.similarity ? 1 : 0;
    }
  });
  return out;
}

}  // namespace

absl::Status CpuBackend::SelectByShares(const SelectPagesParams& p) {
  const int64_t list_heads =
      p.list_heads == ListHeads::kPerQHead ? p.q.shape[1] : p.cache.num_heads;
  std::vector<ProbedTiles> probed;
  if (p.score == PageScore::kVerticalSlash) probed = FindProbedTiles(p);
  const auto pieces = p.score == PageScore::kVerticalSlash ? static_cast<int64_t>(probed.size())
                                                           : int64_t{p.num_tiles};
  std::atomic<int64_t> missing{-1};
  PageMeans means;
  if (p.score == PageScore::kPooled || p.divergence > 0) {
    means = MeansOf(p, kernels_, &pool_, &thread_scratch_, &missing);
  }
  // The longest first.
  pool_.ParallelFor(list_heads * pieces, [&](int64_t task, int thread) {
    SharesOfHead head(kernels_, p, means, task % list_heads,
                      &thread_scratch_[static_cast<size_t>(thread)]);
    const int64_t piece = pieces - 1 - task / list_heads;
    if (p.score == PageScore::kVerticalSlash) {
      head.VerticalSlashes(probed[static_cast<size_t>(piece)]);
    } else if (p.score == PageScore::kPooled) {
      head.Pooled(static_cast<int32_t>(piece));
    } else {
      head.Antidiagonal(static_cast<int32_t>(piece));
    }
    if (head.missing() >= 0) missing.store(head.missing());
  });
  if (missing.load() >= 0) {
    return absl::InternalError(StrCat("SelectPages: logical page ", missing.load(),
                                      " is a candidate but its sequence does not hold it"));
  }
  return absl::OkStatus();
}

}  // namespace longstride::kernels::cpu

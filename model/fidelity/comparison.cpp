#include "model/fidelity/comparison.h"

#include <algorithm>
#include <random>

namespace longstride::model::fidelity {
namespace {

// One position out of each of `rows` equal parts of [0, length).
std::vector<int32_t> SampleRows(int32_t length, int32_t rows, std::mt19937_64* random) {
  std::vector<int32_t> positions;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t begin = r * length / rows;
    const int64_t size = (r + 1) * length / rows - begin;
    if (size == 0) continue;
    positions.push_back(static_cast<int32_t>(
        begin + static_cast<int64_t>((*random)() % static_cast<uint64_t>(size))));
  }
  return positions;
}

// One of the baseline's steps in another lane, cut as the comparison says.
absl::Status CompareStep(std::span<const int32_t> window, int32_t begin, int32_t count,
                         const Lane& baseline, const std::vector<RowSummary>& rows, size_t* cut,
                         RowComparer* comparer, Comparison* comparison) {
  const auto scored = static_cast<int32_t>(rows.size());
  for (int32_t done = 0; done < count;) {
    int32_t piece = count - done;
    if (!comparison->cuts.empty()) {
      piece = std::min(piece, comparison->cuts[(*cut)++ % comparison->cuts.size()]);
    }
    Lane& lane = *comparison->lane;
    RETURN_IF_ERROR(
        lane.Append(window.subspan(static_cast<size_t>(begin + done), static_cast<size_t>(piece)),
                    piece, comparison->numerics));
    for (int32_t r = done; r < std::min(done + piece, scored); ++r) {
      const int32_t position = begin + r;
      comparison->windows.back().push_back(
          comparer->Compare(baseline.Logits(r), rows[static_cast<size_t>(r)], lane.Logits(r - done),
                            window[static_cast<size_t>(position + 1)], position));
    }
    done += piece;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CompareLanes(Lane* baseline, std::span<Comparison> comparisons,
                          std::span<const TextWindow> windows, int32_t vocab_size,
                          CapturedMass* mass, const ComparisonOptions& options) {
  RowComparer comparer(vocab_size);
  int32_t step = options.step_rows, most = baseline->decoder().max_logits_rows();
  for (const Comparison& comparison : comparisons) {
    step = std::max(step, comparison.lane->plan().chunk_alignment);
    most = std::min(most, comparison.lane->decoder().max_logits_rows());
  }
  for (const Comparison& comparison : comparisons) {
    const int32_t run = comparison.lane->plan().chunk_alignment;
    if (run <= most) continue;
    return absl::InvalidArgumentError(
        StrCat("plan '", comparison.lane->plan().name, "' computes prompts in runs of ", run,
               " positions, but one step here gives the logits of ", most,
               "; give its patterns a segment of that or less."));
  }
  step = std::min(step, most);
  std::mt19937_64 random(options.seed);
  std::vector<RowSummary> rows;
  std::vector<size_t> cut(comparisons.size());
  int64_t tokens = 0;
  for (const TextWindow& window : windows) {
    const auto length = static_cast<int32_t>(window.tokens.size());
    baseline->Reset();
    for (Comparison& comparison : comparisons) {
      comparison.lane->Reset();
      comparison.windows.emplace_back();
    }
    if (mass != nullptr) {
      mass->BeginWindow(SampleRows(length, options.rows_per_window, &random));
    }
    for (int32_t begin = 0; begin < length; begin += step) {
      const int32_t count = std::min(step, length - begin);
      RETURN_IF_ERROR(baseline->Append(
          std::span(window.tokens).subspan(static_cast<size_t>(begin), static_cast<size_t>(count)),
          count));
      rows.clear();
      for (int32_t r = 0; r < std::min(count, length - 1 - begin); ++r) {
        rows.push_back(comparer.Summarize(baseline->Logits(r)));
      }
      for (size_t c = 0; c < comparisons.size(); ++c) {
        RETURN_IF_ERROR(CompareStep(window.tokens, begin, count, *baseline, rows, &cut[c],
                                    &comparer, &comparisons[c]));
      }
      tokens += count;
      if (options.progress) options.progress(tokens);
    }
  }
  return absl::OkStatus();
}
}  // namespace longstride::model::fidelity

// Token choices of a step in the form that a device takes (kernels/op_params.h), and back: the
// tokens are those that Sampler would choose from the same logits, to the bit of their
// log-probabilities.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kernels/op_params.h"
#include "model/sampler.h"

namespace longstride::model {

// Reused from step to step.
class DeviceChoices {
 public:
  void Clear();
  // Takes a choice from row `logits_row`. False: the device has no such filter (typical_p, allowed
  // tokens, masks, more than kMaxSampleTop log-probabilities, one bias given twice); nothing is added.
  bool Add(int32_t logits_row, int32_t vocab, const SamplingContext& context);

  int32_t size() const { return static_cast<int32_t>(rows_.size()); }
  std::span<const kernels::SampleRow> rows() const { return rows_; }
  std::span<const kernels::LogitEdit> edits() const { return edits_; }

  // What the device's result of `row` says.
  static SampledToken Result(const kernels::SampleRow& row, const kernels::SampleResult& result);

 private:
  // The row's edit of a token, made where there is none. Tokens out of range have none: null.
  kernels::LogitEdit* EditOf(int32_t token);

  std::vector<kernels::SampleRow> rows_;
  std::vector<kernels::LogitEdit> edits_;
  std::vector<int32_t> edit_of_;  // [vocab] index + 1 of the row's edit, 0: none
};

}  // namespace longstride::model

// The backend's ops on summaries, and SelectPages: arrays to the device, scratch, launches.
#pragma once

#include "config/base/status.h"
#include "kernels/cuda/device/context.h"
#include "kernels/cuda/device/step_arrays.h"
#include "kernels/op_params.h"

namespace longstride::kernels::cuda {

absl::Status RunSummarizePages(const PageSummaryParams& p, StepArrays& arrays,
                               DeviceContext& context);
// KvWrite with summaries, where every row is the newest key of a page of its own, as generated
// tokens are: the page's other keys are read while earlier kernels run.
bool AddsOneKeyToEach(const KvWriteParams& p, const PageSummaryParams& summaries);
absl::Status RunAddKeys(const KvWriteParams& p, StepArrays& arrays, DeviceContext& context);
absl::Status RunSelectPages(const SelectPagesParams& p, StepArrays& arrays,
                            DeviceContext& context);
// What RunSelectPages does for scores without summaries; `device` is p with its arrays in device memory.
absl::Status SelectByShares(const SelectPagesParams& p, const SelectPagesParams& device,
                            StepArrays& arrays, DeviceContext& context);

// INTERNAL where a row that chooses sees a position without a page.
absl::Status RunSelectTokens(const SelectTokensParams& p, StepArrays& arrays,
                             DeviceContext& context);

}  // namespace longstride::kernels::cuda

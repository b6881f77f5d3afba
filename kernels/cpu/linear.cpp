#include <algorithm>
#include <cstring>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/packed_weight.h"

namespace longstride::kernels::cpu {
namespace {

using Segment = CpuLinearWeight::Segment;

// Rows of activations that one task multiplies: their codes stay in the second-level cache while
// the task's panels pass by.
constexpr int64_t kRowsOfTask = 128;

// One task: rows [m, m + rows) times panels [panel, panel + panels).
struct Task {
  int64_t m, rows, panel, panels;
};

// How a call is cut into tasks; which task computes a result never changes its bits.
struct Tasks {
  Tasks(int64_t rows, int64_t panels, int num_threads) : rows_(rows), panels_(panels) {
    slices_ = (rows + kRowsOfTask - 1) / kRowsOfTask;
    // Some tasks for each thread, so that one that starts late does not hold up the others.
    const int64_t wanted = std::max<int64_t>(1, 12 * num_threads / slices_);
    panels_of_task_ = std::clamp<int64_t>(panels / wanted, 1, 64);
    tasks_of_slice_ = (panels + panels_of_task_ - 1) / panels_of_task_;
  }
  int64_t count() const { return slices_ * tasks_of_slice_; }
  Task Get(int64_t i) const {
    const int64_t m = i / tasks_of_slice_ * kRowsOfTask;
    const int64_t panel = i % tasks_of_slice_ * panels_of_task_;
    return {m, std::min(kRowsOfTask, rows_ - m), panel, std::min(panels_of_task_, panels_ - panel)};
  }

 private:
  int64_t rows_, panels_, slices_, panels_of_task_, tasks_of_slice_;
};

// Adds one panel's results to the output.
void WriteResult(const LinearParams& p, const Segment& s, int64_t panel, const Task& task,
                 const float* result) {
  const int64_t first = panel * kPanelRows;
  const int64_t rows = std::min<int64_t>(kPanelRows, s.rows - first);
  const int64_t column = s.row_begin + first;
  const float* bias = p.bias.data == nullptr ? nullptr : p.bias.ptr<float>() + column;
  for (int64_t m = 0; m < task.rows; ++m, result += kPanelRows) {
    float* out = p.out.row<float>(task.m + m) + column;
    if (bias == nullptr && !p.accumulate) {
      std::memcpy(out, result, rows * sizeof(float));
      continue;
    }
    for (int64_t r = 0; r < rows; ++r) {
      float value = result[r];
      if (bias != nullptr) value += bias[r];
      out[r] = p.accumulate ? out[r] + value : value;
    }
  }
}

}  // namespace

CpuLinearWeight::CpuLinearWeight(int64_t rows, int64_t cols, std::vector<Segment> segments,
                                 Buffer buffer)
    : LinearWeight(rows, cols), segments_(std::move(segments)), buffer_(std::move(buffer)) {
  owned_bytes_ = buffer_.bytes();
  for (const Segment& s : segments_) {
    num_panels_ += s.panels;
    has_quantized_ |= MultipliesCodes(s.dtype);
  }
}

absl::StatusOr<std::unique_ptr<LinearWeight>> CpuBackend::DoPrepareLinear(
    std::span<const TensorView> parts, bool* keeps_views) {
  const int64_t cols = parts[0].shape[1];
  std::vector<Segment> segments;
  int64_t rows = 0, panels = 0, bytes = 0;
  for (const TensorView& part : parts) {
    Segment s{.dtype = part.dtype,
              .row_begin = rows,
              .rows = part.shape[0],
              .panel_begin = panels,
              .panels = (part.shape[0] + kPanelRows - 1) / kPanelRows,
              .panel_bytes = PanelBytes(part.dtype, cols),
              .offset = bytes};
    rows += s.rows;
    panels += s.panels;
    bytes += (s.panels * s.panel_bytes + 63) / 64 * 64;
    segments.push_back(s);
  }
  ASSIGN_OR_RETURN(Buffer buffer, Buffer::AllocateHost(bytes));
  for (size_t i = 0; i < segments.size(); ++i) {
    const Segment& s = segments[i];
    constexpr int64_t kPanelsOfTask = 8;
    pool_.ParallelFor((s.panels + kPanelsOfTask - 1) / kPanelsOfTask, [&](int64_t task, int) {
      const int64_t end = std::min(s.panels, (task + 1) * kPanelsOfTask);
      for (int64_t panel = task * kPanelsOfTask; panel < end; ++panel) {
        PackPanel(parts[i], panel * kPanelRows,
                  buffer.as<uint8_t>() + s.offset + panel * s.panel_bytes);
      }
    });
  }
  if (keeps_views != nullptr) *keeps_views = false;
  return std::make_unique<CpuLinearWeight>(rows, cols, std::move(segments), std::move(buffer));
}

QuantizedRows CpuBackend::Quantize(const TensorView& x) {
  const int64_t rows = x.shape[0];
  const int64_t cols = x.shape[1];
  const int64_t blocks = cols / kBlockCols;
  Carver measure(nullptr);
  const auto carve = [&](Carver& c, int8_t*& codes, float*& scales, int32_t*& sums,
                         float*& scaled) {
    codes = c.Take<int8_t>(rows * cols);
    scales = c.Take<float>(rows * blocks);
    sums = c.Take<int32_t>(rows * blocks * 2);
    scaled = c.Take<float>(rows * blocks);
  };
  int8_t* codes;
  float *scales, *scaled;
  int32_t* sums;
  carve(measure, codes, scales, sums, scaled);
  Carver carver(quantized_.Get(measure.used()));
  carve(carver, codes, scales, sums, scaled);
  ForRows(rows, cols, [&](int64_t r) {
    kernels_.quantize_row(x.row<float>(r), cols, codes + r * cols, scales + r * blocks,
                          sums + r * blocks * 2, scaled + r * blocks);
  });
  return {codes, scales, sums, scaled, cols};
}

absl::Status CpuBackend::DoLinear(const LinearParams& p) {
  const auto* weight = dynamic_cast<const CpuLinearWeight*>(p.weight);
  if (weight == nullptr) return absl::InternalError("Linear: a weight of another backend");
  const int64_t rows = p.x.shape[0];
  if (rows == 0 || weight->num_panels() == 0) return absl::OkStatus();
  const QuantizedRows q = weight->has_quantized() ? Quantize(p.x) : QuantizedRows();
  const Tasks tasks(rows, weight->num_panels(), pool_.num_threads());
  const int64_t result_bytes = std::min(rows, kRowsOfTask) * kPanelRows * 4;
  const int64_t cols = weight->cols();
  pool_.ParallelFor(tasks.count(), [&](int64_t i, int thread) {
    const Task task = tasks.Get(i);
    auto* scratch =
        static_cast<char*>(thread_scratch_[thread].Get(kPanelScratchBytes + result_bytes));
    auto* result = reinterpret_cast<float*>(scratch + kPanelScratchBytes);
    size_t segment = 0;
    for (int64_t n = task.panel; n < task.panel + task.panels; ++n) {
      while (n >= weight->segments()[segment].panel_begin + weight->segments()[segment].panels) {
        ++segment;
      }
      const Segment& s = weight->segments()[segment];
      const int64_t panel = n - s.panel_begin;
      const uint8_t* data = weight->data() + s.offset + panel * s.panel_bytes;
      if (MultipliesCodes(s.dtype)) {
        const int64_t blocks = cols / kBlockCols;
        kernels_.quant_panel(
            {.dtype = s.dtype,
             .panel = data,
             .x = {q.codes + task.m * cols, q.scales + task.m * blocks,
                   q.sums16 + task.m * blocks * 2, q.scaled_sums + task.m * blocks, cols},
             .num_rows = task.rows,
             .result = result,
             .scratch = scratch});
      } else {
        kernels_.float_panel({.dtype = s.dtype,
                              .panel = data,
                              .x = p.x.row<float>(task.m),
                              .x_stride = p.x.strides[0],
                              .cols = cols,
                              .num_rows = task.rows,
                              .result = result,
                              .scratch = scratch});
      }
      WriteResult(p, s, panel, task, result);
    }
  });
  return absl::OkStatus();
}

}  // namespace longstride::kernels::cpu

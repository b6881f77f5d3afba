#include <cmath>
#include <cstring>

#include "kernels/cpu/cpu_backend.h"

namespace longstride::kernels::cpu {

const RopeTables::Table& RopeTables::Get(const RopeParams& p, ThreadPool& pool) {
  const auto rows = static_cast<size_t>(p.x.shape[0]);
  const auto frequencies = static_cast<size_t>(p.num_frequencies);
  Table* oldest = &tables_[0];
  ++clock_;
  for (Table& t : tables_) {
    if (t.positions.size() == rows && t.inv_freq.size() == frequencies && t.scale == p.scale &&
        std::memcmp(t.positions.data(), p.positions, rows * sizeof(int32_t)) == 0 &&
        std::memcmp(t.inv_freq.data(), p.inv_freq, frequencies * sizeof(float)) == 0) {
      t.last_used = clock_;
      return t;
    }
    if (t.last_used < oldest->last_used) oldest = &t;
  }
  Table& t = *oldest;
  t.positions.assign(p.positions, p.positions + rows);
  t.inv_freq.assign(p.inv_freq, p.inv_freq + frequencies);
  t.scale = p.scale;
  t.last_used = clock_;
  t.cos.resize(rows * frequencies);
  t.sin.resize(rows * frequencies);
  constexpr size_t kRowsOfTask = 8;
  pool.ParallelFor((rows + kRowsOfTask - 1) / kRowsOfTask, [&](int64_t task, int) {
    const size_t end = std::min(rows, (task + 1) * kRowsOfTask);
    for (size_t r = task * kRowsOfTask; r < end; ++r) {
      for (size_t f = 0; f < frequencies; ++f) {
        const float angle = static_cast<float>(t.positions[r]) * t.inv_freq[f];
        t.cos[r * frequencies + f] = std::cos(angle) * p.scale;
        t.sin[r * frequencies + f] = std::sin(angle) * p.scale;
      }
    }
  });
  return t;
}

absl::Status CpuBackend::DoRope(const RopeParams& p) {
  if (p.x.shape[0] == 0) return absl::OkStatus();
  const RopeTables::Table& table = rope_tables_.Get(p, pool_);
  const int64_t n = p.num_frequencies;
  ForRows(p.x.shape[0], p.x.shape[1] * p.x.shape[2], [&](int64_t r) {
    const float* cos = table.cos.data() + r * n;
    const float* sin = table.sin.data() + r * n;
    for (int64_t h = 0; h < p.x.shape[1]; ++h) {
      float* x = p.x.ptr<float>() + r * p.x.strides[0] + h * p.x.strides[1];
      kernels_.rotate(x, p.interleaved ? x + 1 : x + n, p.interleaved ? 2 : 1, cos, sin, n);
    }
  });
  return absl::OkStatus();
}

absl::Status CpuBackend::DoPositionScale(const PositionScaleParams& p) {
  ForRows(p.x.shape[0], p.x.shape[1] * p.x.shape[2], [&](int64_t r) {
    const float steps = std::floor((static_cast<float>(p.positions[r]) + 1.0f) / p.floor_scale);
    const float factor = 1.0f + p.attn_scale * std::log(1.0f + steps);
    for (int64_t h = 0; h < p.x.shape[1]; ++h) {
      float* x = p.x.ptr<float>() + r * p.x.strides[0] + h * p.x.strides[1];
      for (int64_t c = 0; c < p.x.shape[2]; ++c) x[c] *= factor;
    }
  });
  return absl::OkStatus();
}

}  // namespace longstride::kernels::cpu

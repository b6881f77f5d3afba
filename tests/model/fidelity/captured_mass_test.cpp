#include "model/fidelity/captured_mass.h"

#include <cmath>

#include "model/fidelity/comparison.h"
#include "tests/model/fidelity/tiny_lanes.h"

namespace longstride::model::fidelity {
namespace {

// Softmax mass straight from float64 sums over the queries and keys that an observer sees of a step
// that computes a whole short window.
class Oracle : public AttentionObserver {
 public:
  Oracle(int32_t window, int32_t sinks) : window_(window), sinks_(sinks) {}

  void OnAttention(const AttentionCall& call) override {
    const kernels::AttentionParams& p = *call.params;
    const int32_t per_kv = call.segment->query.count / call.segment->kv.count;
    const auto* keys = static_cast<const float*>(p.cache.k);
    ASSERT_EQ(p.cache.dtype, kernels::KvDType::kF32);
    for (int32_t h = 0; h < call.segment->query.count; ++h) {
      std::vector<double>& rows = shares.emplace_back();
      for (int64_t i = 0; i < p.q.shape[0]; ++i) {
        double all = 0, kept = 0;
        for (int64_t j = 0; j <= i; ++j) {
          double dot = 0;
          const int32_t page = p.page_table.pages[j / 64];
          const float* key = keys + page * p.cache.page_stride / 4 +
                             (h / per_kv) * p.cache.head_stride / 4 + (j % 64) * p.cache.head_dim;
          const float* q = p.q.ptr<float>() + i * p.q.strides[0] + h * p.q.strides[1];
          for (int32_t d = 0; d < p.cache.head_dim; ++d) {
            dot += static_cast<double>(q[d]) * static_cast<double>(key[d]);
          }
          const double weight = std::exp(dot * static_cast<double>(p.scale));
          all += weight;
          if (j > i - window_ || j < sinks_) kept += weight;
        }
        rows.push_back(kept / all);
      }
    }
  }

  std::vector<std::vector<double>> shares;  // [layer * heads + head][row]

 private:
  int32_t window_, sinks_;
};

using CapturedMassTest = TinyLanes;

TEST_F(CapturedMassTest, MatchesPlainSums) {
  const auto tokens = Tokens(60);
  const SparsityPlan native = Native();
  const SparsityPlan window = Window(5);
  const auto f32 = SparsityPlan::Resolve(SparsityPolicy{}, model_->spec(), kernels::KvDType::kF32);
  auto lane =
      Lane::Create(model_.get(), *f32,
                   {.kv_dtype = kernels::KvDType::kF32, .max_tokens = 64, .step_tokens = 64});
  ASSERT_TRUE(lane.ok()) << lane.status();
  Oracle oracle(5, 2);
  (*lane)->decoder().SetObserver(&oracle);
  ASSERT_TRUE((*lane)->Append(tokens, 60).ok());
  ASSERT_EQ(oracle.shares.size(), 8u);  // 2 layers of 4 heads

  CapturedMass mass(&native, {&window, &native});
  LayerCounters counters(2, &mass);
  (*lane)->decoder().SetObserver(&counters);
  (*lane)->Reset();
  const std::vector<int32_t> rows = {0, 3, 17, 59};
  mass.BeginWindow(rows);
  ASSERT_TRUE((*lane)->Append(tokens, 60).ok());
  EXPECT_TRUE(mass.available());
  EXPECT_EQ(mass.rows_per_head(), 4);
  for (int32_t layer = 0; layer < 2; ++layer) {
    ASSERT_EQ(mass.num_heads(layer), 4);
    double layer_sum = 0;
    for (int32_t head = 0; head < 4; ++head) {
      double sum = 0, least = 1;
      for (const int32_t row : rows) {
        const double share =
            oracle.shares[static_cast<size_t>(4 * layer + head)][static_cast<size_t>(row)];
        sum += share;
        least = std::min(least, share);
      }
      const CapturedMass::Cell& cell = mass.cell(0, layer, head);
      EXPECT_NEAR(cell.window_sums[0], sum, 1e-4);
      EXPECT_NEAR(cell.least, least, 1e-4);
      EXPECT_NEAR(mass.cell(1, layer, head).window_sums[0], 4, 1e-9);
      layer_sum += sum;
    }
    EXPECT_NEAR(mass.LayerMean(0, layer), layer_sum / 16, 1e-4);
    EXPECT_LT(mass.LayerMean(0, layer), 1);
    // 4 heads, 60 rows.
    EXPECT_EQ(counters.layers()[static_cast<size_t>(layer)].keys_total, 4 * 60 * 61 / 2);
    EXPECT_EQ(counters.layers()[static_cast<size_t>(layer)].keys_visible, 4 * 60 * 61 / 2);
  }
}

}  // namespace
}  // namespace longstride::model::fidelity

// How far apart two next-token distributions are, row by row; nothing but sums is kept, so that a
// vocabulary of 262,144 costs two rows of logits.
#pragma once

#include <cstdint>
#include <vector>

namespace longstride::model::fidelity {

// A row of logits, summed up.
struct RowSummary {
  int32_t top = 0;         // index of the largest logit; the lowest of equals
  float max = 0;           // that logit
  double log_sum_exp = 0;  // natural log

  double LogProbability(float logit) const { return static_cast<double>(logit) - log_sum_exp; }
};

// One position of the text under two plans.
struct PositionDivergence {
  int32_t position = 0;
  float kl = 0;        // KL(baseline || other), nats, not negative
  float base_nll = 0;  // -log p(true next token)
  float other_nll = 0;
  bool same_top = false;
};

// Compares rows of logits; keeps its scratch memory. Logits must be numbers (no NaN).
class RowComparer {
 public:
  explicit RowComparer(int32_t vocab_size);

  RowSummary Summarize(const float* logits);
  // sum_i p_i (log p_i - log q_i). Float32 terms, float64 sums: exactly 0 for equal rows; otherwise
  // the error is about 1e-7 times the spread of the differences. Rounding below 0 is cut off.
  double Kl(const float* p, const RowSummary& p_row, const float* q, const RowSummary& q_row);
  PositionDivergence Compare(const float* base, const RowSummary& base_row, const float* other,
                             int32_t next_token, int32_t position);

 private:
  int32_t vocab_size_;
  std::vector<float> maxima_;
  std::vector<double> sums_;
};

}  // namespace longstride::model::fidelity

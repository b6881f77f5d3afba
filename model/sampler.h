// Logits to tokens. Deterministic: a token depends only on its sequence's logits, history, parameters
// and (seed, choice, position), never on the batch.
//
// Order: repetition, frequency and presence penalties; bias, banned and allowed tokens, mask;
// temperature; top-k; typical; top-p; min-p; each filter on the renormalised rest of the one before.
// Ties rank by token id, lowest first. Log-probabilities are those of the untouched logits.
// Probabilities are sums of whole weights (kernels/op_params.h): a device that samples gives the
// same tokens (model/device_choices.h).
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace longstride::model {

struct SamplingParams {
  float temperature = 1.0f;  // 0: greedy (ties: lowest id)
  int32_t top_k = 0;         // 0: off
  float top_p = 1.0f;        // nucleus (arXiv 1904.09751)
  float min_p = 0.0f;        // arXiv 2407.01082
  float typical_p = 1.0f;    // locally typical (arXiv 2202.00666)
  float repetition_penalty = 1.0f;  // CTRL (arXiv 1909.05858): over prompt and generated tokens
  float presence_penalty = 0.0f;    // over generated tokens, OpenAI's definition
  float frequency_penalty = 0.0f;
  std::vector<std::pair<int32_t, float>> logit_bias;  // ascending token ids
  std::vector<int32_t> allowed_token_ids;             // empty: all
  std::vector<int32_t> banned_token_ids;              // e.g. end tokens before min_tokens
  uint64_t seed = 0;
};

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0.0f;  // of the model's distribution, before temperature and filters
};

struct SampledToken {
  int32_t token = 0;
  float logprob = 0.0f;
  std::vector<TokenLogprob> top;  // descending; ties: lowest id
  // False: NaN or +inf in the logits, or no token is left to choose from; token is meaningless.
  bool logits_valid = true;
};

// What the sampler needs to know of a sequence besides its logits.
struct SamplingContext {
  const SamplingParams* params = nullptr;
  std::span<const int32_t> prompt{};
  std::span<const int32_t> generated{};
  std::span<const int32_t> banned{};  // beside params->banned_token_ids
  uint32_t choice = 0;              // index among a request's n choices
  int32_t num_logprobs = -1;        // -1: none; else how many of the best to report
  std::span<const uint32_t> token_mask{};  // one bit per token id, empty: all allowed (grammars)
};

// Temperatures below sample greedily: they divide by nothing sensible.
inline constexpr float kGreedyBelow = 1e-6f;

// 53 random bits: the same counter and key give the same number anywhere.
uint64_t SamplingUniform(uint64_t seed, uint32_t choice, uint32_t position);

// The logarithm of the sum of exponentials, from the largest logit and the sum of weights.
double LogSumOfWeights(float max, uint64_t mass);

// Reuses scratch memory between calls. One thread. Token ids outside of the logits are ignored
// wherever they are given.
class Sampler {
 public:
  // `logits`: [vocab] float32, changed in place.
  SampledToken Sample(std::span<float> logits, const SamplingContext& context);
  // Log-probability of `token` and the `num_top` best, without sampling (prompt logprobs).
  SampledToken Score(std::span<const float> logits, int32_t token, int32_t num_top);

 private:
  struct Candidate {
    float logit;
    int32_t token;
    uint64_t weight;  // exp((logit - max) / temperature)
  };

  bool Scan(std::span<const float> logits);
  void RescanBlocksOf(std::span<const float> logits);
  double LogSumExp(std::span<const float> logits);
  void TopLogprobs(std::span<const float> logits, int32_t num_top, double log_sum,
                   std::vector<TokenLogprob>* top);
  void GatherAbove(std::span<const float> logits, float threshold);
  void GatherTop(std::span<const float> logits, int32_t k);
  void KeepTop(int32_t k);
  void Touch(std::span<float> logits, int32_t token, float value);
  void ApplyPenalties(std::span<float> logits, const SamplingContext& context);
  void ApplyMasks(std::span<float> logits, const SamplingContext& context);
  int32_t Greedy(std::span<const float> logits) const;
  int32_t Draw(std::span<const float> logits, const SamplingContext& context);
  int32_t DrawFromAll(std::span<const float> logits, float inverse_temperature, uint64_t uniform);
  void Weigh(float inverse_temperature);
  void FilterTypical(float p, float inverse_temperature);
  void FilterTopP(uint64_t mass);
  void FilterMinP(float min_p);
  uint64_t CandidateMass() const;

  float max_ = 0;                  // of the logits as they are now
  std::vector<float> block_max_;   // by block of consecutive tokens
  std::vector<uint64_t> block_sum_;  // of weights
  std::vector<float> selection_;
  std::vector<Candidate> candidates_;  // ascending token ids
  std::vector<Candidate> ranked_;
  std::vector<int32_t> counts_;
  std::vector<int32_t> history_;
  std::vector<std::pair<int32_t, float>> touched_;  // token, its logit before
  bool rescan_ = false;                             // more changed than touched_ says
};

}  // namespace longstride::model

#include "model/sampler.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "kernels/op_params.h"
#include "model/sampler_kernels.h"

namespace longstride::model {
namespace {

using sampling::kBlock;

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr int32_t kSeenInPrompt = 1 << 30;

uint64_t Sum(const std::vector<uint64_t>& weights) {
  uint64_t sum = 0;
  for (const uint64_t weight : weights) sum += weight;
  return sum;
}

float Finite(float x) {
  constexpr float kMax = std::numeric_limits<float>::max();
  return std::clamp(x, -kMax, kMax);
}

// The part `share` of a sum of weights, rounded up.
uint64_t PartOf(float share, uint64_t mass) {
  return static_cast<uint64_t>(std::ceil(static_cast<double>(share) * static_cast<double>(mass)));
}

// The part of a sum of weights that 53 random bits say: less than all of it.
uint64_t Drawn(uint64_t uniform, uint64_t mass) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(uniform) * mass >> 53);
}

// Reorders `items` so that the first ones in `before`'s order, whose weights reach `mass`, come
// first; returns how many (at least one). Linear on average: no full sort.
template <typename T, typename Before>
size_t SelectMass(std::vector<T>* items, uint64_t mass, Before before) {
  size_t low = 0, high = items->size();
  uint64_t taken = 0;
  const auto at = [&](size_t i) { return items->begin() + static_cast<ptrdiff_t>(i); };
  while (high - low > 32) {
    const size_t middle = low + (high - low) / 2;
    std::nth_element(at(low), at(middle), at(high), before);
    uint64_t half = 0;
    for (size_t i = low; i < middle; ++i) half += (*items)[i].weight;
    if (taken + half >= mass) {
      high = middle;
    } else {
      taken += half;
      low = middle;
    }
  }
  std::sort(at(low), at(high), before);
  while (low < high) {
    taken += (*items)[low++].weight;
    if (taken >= mass) break;
  }
  return std::max<size_t>(low, 1);
}

}  // namespace

// Philox4x32-10 (Salmon et al., 2011).
uint64_t SamplingUniform(uint64_t seed, uint32_t choice, uint32_t position) {
  uint32_t c[4] = {position, choice, 0, 0};
  auto k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c[0], p1 = uint64_t{0xCD9E8D57} * c[2];
    const uint32_t next[4] = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0,
                              static_cast<uint32_t>(p1),
                              static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1,
                              static_cast<uint32_t>(p0)};
    std::copy(next, next + 4, c);
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return (uint64_t{c[0]} << 32 | c[1]) >> 11;
}

double LogSumOfWeights(float max, uint64_t mass) {
  return static_cast<double>(max) + std::log(std::ldexp(static_cast<double>(mass),
                                                        -kernels::kWeightBits));
}

// Block maxima and the maximum; false for NaN, +inf or nothing finite.
bool Sampler::Scan(std::span<const float> logits) {
  const auto n = static_cast<int32_t>(logits.size());
  block_max_.resize((logits.size() + kBlock - 1) / kBlock);
  const bool no_nan = sampling::BlockMaxima(logits.data(), n, block_max_.data());
  max_ = block_max_.empty() ? kMinusInfinity
                            : *std::max_element(block_max_.begin(), block_max_.end());
  return no_nan && std::isfinite(max_);
}

// Updates the maxima after `touched_` logits changed.
void Sampler::RescanBlocksOf(std::span<const float> logits) {
  if (rescan_ || touched_.size() > block_max_.size() / 2) {
    Scan(logits);
    return;
  }
  for (const auto& [token, before] : touched_) {
    const size_t block = static_cast<size_t>(token) / kBlock;
    const auto* begin = logits.data() + block * kBlock;
    const auto* end = logits.data() + std::min(logits.size(), (block + 1) * kBlock);
    block_max_[block] = *std::max_element(begin, end);
  }
  if (!touched_.empty()) max_ = *std::max_element(block_max_.begin(), block_max_.end());
}

double Sampler::LogSumExp(std::span<const float> logits) {
  block_sum_.resize(block_max_.size());
  sampling::BlockWeights(logits.data(), static_cast<int32_t>(logits.size()), max_, 1.0f,
                         block_sum_.data());
  return LogSumOfWeights(max_, Sum(block_sum_));
}

void Sampler::GatherAbove(std::span<const float> logits, float threshold) {
  candidates_.clear();
  for (size_t block = 0; block < block_max_.size(); ++block) {
    if (block_max_[block] < threshold || block_max_[block] == kMinusInfinity) continue;
    const size_t end = std::min(logits.size(), (block + 1) * kBlock);
    for (size_t i = block * kBlock; i < end; ++i) {
      if (logits[i] >= threshold && logits[i] != kMinusInfinity) {
        candidates_.push_back({logits[i], static_cast<int32_t>(i), 0});
      }
    }
  }
}

// The k best. The k-th best block maximum is a lower bound of the k-th best logit.
void Sampler::GatherTop(std::span<const float> logits, int32_t k) {
  float threshold = kMinusInfinity;
  if (static_cast<size_t>(k) <= block_max_.size()) {
    selection_ = block_max_;
    const auto kth = selection_.begin() + (k - 1);
    std::nth_element(selection_.begin(), kth, selection_.end(), std::greater<>());
    threshold = *kth;
  }
  GatherAbove(logits, threshold);
  KeepTop(k);
}

void Sampler::KeepTop(int32_t k) {
  if (candidates_.size() <= static_cast<size_t>(k)) return;
  const auto before = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
  };
  ranked_ = candidates_;
  std::nth_element(ranked_.begin(), ranked_.begin() + (k - 1), ranked_.end(), before);
  const Candidate last = ranked_[static_cast<size_t>(k - 1)];
  std::erase_if(candidates_, [&](const Candidate& c) { return before(last, c); });
}

void Sampler::TopLogprobs(std::span<const float> logits, int32_t num_top, double log_sum,
                          std::vector<TokenLogprob>* top) {
  if (num_top <= 0) return;
  GatherTop(logits, num_top);
  std::stable_sort(candidates_.begin(), candidates_.end(),
                   [](const Candidate& a, const Candidate& b) { return a.logit > b.logit; });
  for (const Candidate& c : candidates_) {
    top->push_back({c.token, static_cast<float>(c.logit - log_sum)});
  }
}

void Sampler::Touch(std::span<float> logits, int32_t token, float value) {
  float& logit = logits[static_cast<size_t>(token)];
  if (value == logit) return;
  touched_.emplace_back(token, logit);
  logit = value;
}

void Sampler::ApplyPenalties(std::span<float> logits, const SamplingContext& context) {
  const SamplingParams& p = *context.params;
  const bool repetition = p.repetition_penalty != 1.0f;
  if (!repetition && p.presence_penalty == 0.0f && p.frequency_penalty == 0.0f) return;
  counts_.resize(logits.size(), 0);
  history_.clear();
  const auto count = [&](int32_t token, bool in_prompt) {
    if (token < 0 || static_cast<size_t>(token) >= logits.size()) return;
    int32_t& c = counts_[static_cast<size_t>(token)];
    if (c == 0) history_.push_back(token);
    if (in_prompt) {
      c |= kSeenInPrompt;
    } else {
      ++c;
    }
  };
  if (repetition) {
    for (const int32_t token : context.prompt) count(token, true);
  }
  for (const int32_t token : context.generated) count(token, false);
  for (const int32_t token : history_) {
    const int32_t generated = std::exchange(counts_[static_cast<size_t>(token)], 0) &
                              (kSeenInPrompt - 1);
    float logit = logits[static_cast<size_t>(token)];
    if (logit == kMinusInfinity) continue;
    if (repetition) logit = logit > 0 ? logit / p.repetition_penalty : logit * p.repetition_penalty;
    if (generated > 0) {
      logit -= p.frequency_penalty * static_cast<float>(generated) + p.presence_penalty;
    }
    Touch(logits, token, Finite(logit));
  }
}

void Sampler::ApplyMasks(std::span<float> logits, const SamplingContext& context) {
  const SamplingParams& p = *context.params;
  const auto valid = [&](int32_t token) {
    return token >= 0 && static_cast<size_t>(token) < logits.size();
  };
  for (const auto& [token, bias] : p.logit_bias) {
    if (!valid(token)) continue;
    const float logit = logits[static_cast<size_t>(token)];
    if (logit != kMinusInfinity) Touch(logits, token, Finite(logit + bias));
  }
  for (const auto& banned : {std::span<const int32_t>(p.banned_token_ids), context.banned}) {
    for (const int32_t token : banned) {
      if (valid(token)) Touch(logits, token, kMinusInfinity);
    }
  }
  if (!p.allowed_token_ids.empty()) {
    candidates_.clear();
    for (const int32_t token : p.allowed_token_ids) {
      if (valid(token)) candidates_.push_back({logits[static_cast<size_t>(token)], token, 0});
    }
    // What is masked out is not chosen, so its logit need not be remembered.
    std::fill(logits.begin(), logits.end(), kMinusInfinity);
    for (const Candidate& c : candidates_) logits[static_cast<size_t>(c.token)] = c.logit;
    rescan_ = true;
  }
  if (!context.token_mask.empty()) {
    for (size_t i = 0; i < logits.size(); ++i) {
      const bool allowed =
          i / 32 < context.token_mask.size() && (context.token_mask[i / 32] >> (i % 32) & 1) != 0;
      if (!allowed) logits[i] = kMinusInfinity;
    }
    rescan_ = true;
  }
}

int32_t Sampler::Greedy(std::span<const float> logits) const {
  const auto block = static_cast<size_t>(
      std::find(block_max_.begin(), block_max_.end(), max_) - block_max_.begin());
  const auto begin = logits.begin() + static_cast<ptrdiff_t>(block * kBlock);
  return static_cast<int32_t>(std::find(begin, logits.end(), max_) - logits.begin());
}

void Sampler::Weigh(float inverse_temperature) {
  for (Candidate& c : candidates_) {
    c.weight = sampling::Weight(c.logit, max_, inverse_temperature);
  }
}

uint64_t Sampler::CandidateMass() const {
  uint64_t mass = 0;
  for (const Candidate& c : candidates_) mass += c.weight;
  return mass;
}

// Tokens whose information is nearest to the distribution's entropy, until they hold mass p.
void Sampler::FilterTypical(float p, float inverse_temperature) {
  const uint64_t mass = CandidateMass();
  const double log_mass = LogSumOfWeights(0.0f, mass);
  const auto information = [&](const Candidate& c) {
    return log_mass - static_cast<double>((c.logit - max_) * inverse_temperature);
  };
  double entropy = 0;
  for (const Candidate& c : candidates_) {
    if (c.weight > 0) {
      entropy += static_cast<double>(c.weight) / static_cast<double>(mass) * information(c);
    }
  }
  // `logit` of the ranked copies holds the distance, so that the order is a plain comparison.
  ranked_.clear();
  for (const Candidate& c : candidates_) {
    const double distance = c.weight > 0 ? std::abs(information(c) - entropy)
                                         : std::numeric_limits<double>::infinity();
    ranked_.push_back({static_cast<float>(distance), c.token, c.weight});
  }
  const auto before = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit < b.logit : a.token < b.token;
  };
  const size_t kept = SelectMass(&ranked_, PartOf(p, mass), before);
  ranked_.resize(kept);
  std::sort(ranked_.begin(), ranked_.end(),
            [](const Candidate& a, const Candidate& b) { return a.token < b.token; });
  size_t next = 0;
  std::erase_if(candidates_, [&](const Candidate& c) {
    if (next < ranked_.size() && ranked_[next].token == c.token) {
      ++next;
      return false;
    }
    return true;
  });
}

// The best candidates until their weights reach `mass`.
void Sampler::FilterTopP(uint64_t mass) {
  const auto before = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
  };
  ranked_ = candidates_;
  const size_t kept = SelectMass(&ranked_, mass, before);
  const auto last = std::max_element(ranked_.begin(), ranked_.begin() + static_cast<ptrdiff_t>(kept),
                                     before);
  std::erase_if(candidates_, [&](const Candidate& c) { return before(*last, c); });
}

void Sampler::FilterMinP(float min_p) {
  uint64_t best = 0;
  for (const Candidate& c : candidates_) best = std::max(best, c.weight);
  const uint64_t least = PartOf(min_p, best);
  std::erase_if(candidates_, [&](const Candidate& c) { return c.weight < least; });
}

int32_t Sampler::DrawFromAll(std::span<const float> logits, float inverse_temperature,
                             uint64_t uniform) {
  uint64_t target = Drawn(uniform, Sum(block_sum_));
  size_t block = 0;
  while (target >= block_sum_[block]) target -= block_sum_[block++];
  for (size_t i = block * kBlock;; ++i) {
    const uint64_t weight = sampling::Weight(logits[i], max_, inverse_temperature);
    if (target < weight) return static_cast<int32_t>(i);
    target -= weight;
  }
}

int32_t Sampler::Draw(std::span<const float> logits, const SamplingContext& context) {
  const SamplingParams& p = *context.params;
  const float inverse_temperature = 1.0f / p.temperature;
  const uint64_t uniform =
      SamplingUniform(p.seed, context.choice, static_cast<uint32_t>(context.generated.size()));
  const bool top_k = p.top_k > 0 && static_cast<size_t>(p.top_k) < logits.size();
  const bool typical = p.typical_p < 1.0f, top_p = p.top_p < 1.0f;
  if (top_k) {
    GatherTop(logits, p.top_k);
    Weigh(inverse_temperature);
  } else if (typical) {
    GatherAbove(logits, kMinusInfinity);
    Weigh(inverse_temperature);
  }
  if (top_k || typical) {
    if (typical) FilterTypical(p.typical_p, inverse_temperature);
    if (top_p) FilterTopP(PartOf(p.top_p, CandidateMass()));
  } else {
    block_sum_.resize(block_max_.size());
    const bool needs_sum = top_p || p.min_p <= 0;
    if (needs_sum) {
      sampling::BlockWeights(logits.data(), static_cast<int32_t>(logits.size()), max_,
                             inverse_temperature, block_sum_.data());
    }
    if (!top_p && p.min_p <= 0) return DrawFromAll(logits, inverse_temperature, uniform);
    const uint64_t mass = top_p ? PartOf(p.top_p, Sum(block_sum_)) : 0;
    // Both cut the same descending order, so what min-p drops need not be looked at: only the first
    // candidates are gathered, wider until they hold the mass.
    float depth = p.min_p > 0 ? std::max(-std::log(p.min_p), 0.0f) + 1e-3f : 8.0f;
    for (;; depth *= 4) {
      GatherAbove(logits, depth > 90.0f ? kMinusInfinity : max_ - depth * p.temperature);
      Weigh(inverse_temperature);
      if (p.min_p > 0 || depth > 90.0f || CandidateMass() >= mass) break;
    }
    if (top_p) FilterTopP(mass);
  }
  if (p.min_p > 0) FilterMinP(p.min_p);
  uint64_t target = Drawn(uniform, CandidateMass());
  for (const Candidate& c : candidates_) {
    if (target < c.weight) return c.token;
    target -= c.weight;
  }
  return candidates_.front().token;  // not reached: the best has a weight
}

SampledToken Sampler::Sample(std::span<float> logits, const SamplingContext& context) {
  const SamplingParams& p = *context.params;
  SampledToken result;
  touched_.clear();
  rescan_ = false;
  if (!Scan(logits)) {
    result.logits_valid = false;
    return result;
  }
  double log_sum = 0;
  if (context.num_logprobs >= 0) {
    log_sum = LogSumExp(logits);
    TopLogprobs(logits, context.num_logprobs, log_sum, &result.top);
  }
  ApplyPenalties(logits, context);
  ApplyMasks(logits, context);
  RescanBlocksOf(logits);
  if (!std::isfinite(max_)) {
    result.logits_valid = false;
    return result;
  }
  result.token = p.temperature < kGreedyBelow ? Greedy(logits) : Draw(logits, context);
  if (context.num_logprobs >= 0) {
    float raw = logits[static_cast<size_t>(result.token)];
    for (const auto& [token, before] : touched_) {
      if (token == result.token) {
        raw = before;
        break;
      }
    }
    result.logprob = static_cast<float>(static_cast<double>(raw) - log_sum);
  }
  return result;
}

SampledToken Sampler::Score(std::span<const float> logits, int32_t token, int32_t num_top) {
  SampledToken result;
  result.token = token;
  if (token < 0 || static_cast<size_t>(token) >= logits.size() || !Scan(logits)) {
    result.logits_valid = false;
    return result;
  }
  const double log_sum = LogSumExp(logits);
  result.logprob =
      static_cast<float>(static_cast<double>(logits[static_cast<size_t>(token)]) - log_sum);
  TopLogprobs(logits, num_top, log_sum, &result.top);
  return result;
}

}  // namespace longstride::model

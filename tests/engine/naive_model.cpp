#include "tests/engine/naive_model.h"

#include <algorithm>

#include "tests/engine/fake_executor.h"

namespace longstride::engine {
namespace {

struct Found {
  size_t begin = 0;
  size_t end = 0;
  std::string stop;
};

// The stop string that ends first behind `from`; the longest of several.
std::optional<Found> FindStop(const std::string& text, size_t from,
                              const std::vector<std::string>& stops) {
  for (size_t end = from + 1; end <= text.size(); ++end) {
    std::optional<Found> found;
    for (const std::string& stop : stops) {
      if (stop.empty() || end - from < stop.size()) continue;
      if (text.compare(end - stop.size(), stop.size(), stop) != 0) continue;
      if (!found || stop.size() > found->stop.size()) found = Found{end - stop.size(), end, stop};
    }
    if (found) return found;
  }
  return std::nullopt;
}

}  // namespace

NaiveChoice NaiveGenerate(const GenerationRequest& r, int32_t choice, const Hash128& root_key,
                          uint8_t rope_variant, int32_t vocab_size) {
  NaiveChoice result;
  uint64_t chain = FakeExecutor::ChainStart(root_key, rope_variant);
  for (const int32_t token : r.prompt) chain = FakeExecutor::Chain(chain, token);
  std::vector<int32_t> ends = r.stop_token_ids;
  if (!r.ignore_eos) ends.insert(ends.end(), r.eos_token_ids.begin(), r.eos_token_ids.end());
  std::vector<int32_t> generated;
  std::vector<float> row(static_cast<size_t>(vocab_size));
  model::Sampler sampler;
  std::string bytes;
  size_t searchable = 0;
  const auto stop_at = [&](const Found& found) {
    result.reason = FinishReason::kStop;
    result.stop_string = found.stop;
    result.text = result.all_text.substr(0, r.include_stop_in_output ? found.end : found.begin);
  };
  for (int32_t i = 0; i < r.max_tokens; ++i) {
    for (int32_t v = 0; v < vocab_size; ++v) {
      row[static_cast<size_t>(v)] = FakeExecutor::Logit(chain, v);
    }
    const model::SampledToken sampled = sampler.Sample(
        row, {.params = &r.sampling,
              .prompt = r.prompt,
              .generated = generated,
              .banned = i < r.min_tokens ? std::span<const int32_t>(ends) : std::span<const int32_t>(),
              .choice = static_cast<uint32_t>(choice),
              .num_logprobs = r.num_logprobs});
    ++result.num_sampled;
    generated.push_back(sampled.token);
    chain = FakeExecutor::Chain(chain, sampled.token);
    const bool end_token = i >= r.min_tokens &&
                           std::find(ends.begin(), ends.end(), sampled.token) != ends.end();
    const bool last = end_token || i + 1 == r.max_tokens;
    if (!end_token || r.include_stop_in_output) {
      bytes += FakeText::Bytes(sampled.token);
      result.tokens.push_back({.token = sampled.token, .logprob = sampled.logprob,
                               .top = sampled.top});
    }
    result.all_text += FakeText::TakeCharacters(&bytes, false);
    if (i < r.min_tokens) {
      searchable = result.all_text.size();
    } else if (!end_token) {
      if (const auto found = FindStop(result.all_text, searchable, r.stop)) {
        stop_at(*found);
        return result;
      }
    }
    if (!last) continue;
    const size_t before = result.all_text.size();
    result.all_text += FakeText::TakeCharacters(&bytes, true);
    result.text = result.all_text;
    if (i >= r.min_tokens && result.all_text.size() > before) {
      if (const auto found = FindStop(result.all_text, searchable, r.stop)) {
        stop_at(*found);
        return result;
      }
    }
    if (end_token) {
      result.reason = FinishReason::kStop;
      result.stop_token = sampled.token;
    }
    return result;
  }
  return result;
}

std::vector<float> NaiveEmbedding(const GenerationRequest& r, const Hash128& root_key,
                                  uint8_t rope_variant, int32_t dim) {
  std::vector<double> sums(static_cast<size_t>(dim), 0.0);
  uint64_t chain = FakeExecutor::ChainStart(root_key, rope_variant);
  for (const int32_t token : r.prompt) {
    chain = FakeExecutor::Chain(chain, token);
    for (int32_t d = 0; d < dim; ++d) {
      sums[static_cast<size_t>(d)] += static_cast<double>(FakeExecutor::Hidden(chain, d));
    }
  }
  std::vector<float> mean;
  for (const double sum : sums) {
    mean.push_back(static_cast<float>(sum / static_cast<double>(r.prompt.size())));
  }
  return mean;
}

}  // namespace longstride::engine

// The bare decode loop: greedy decode steps of a model one after the other, with no scheduler, no
// queue and no front end; what a server's steps a second are compared with
// (bench/cuda/server_check.py overhead).
//
//   decode_loop MODEL [--device cpu|cuda] [--sequences N] [--prompt N] [--steps N] [--step-tokens
//   N] [--sparsity-plan FILE]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "config/base/clock.h"
#include "config/sparsity_policy.h"
#include "model/model.h"
#include "model/sampler.h"

namespace longstride::model {
namespace {

using kernels::kPageTokens;

struct Options {
  std::map<std::string, std::string> values = {{"device", "cpu"},       {"sequences", "1"},
                                               {"prompt", "128"},       {"steps", "200"},
                                               {"step-tokens", "2048"}, {"sparsity-plan", ""}};
  int32_t Int(const char* name) const { return std::atoi(values.at(name).c_str()); }
};

[[noreturn]] void Fail(const std::string& why) {
  std::fprintf(stderr, "%s\n", why.c_str());
  std::exit(1);
}

class Loop {
 public:
  Loop(const std::string& path, const Options& o)
      : sequences_(o.Int("sequences")),
        prompt_(o.Int("prompt")),
        steps_(o.Int("steps")),
        step_tokens_(o.Int("step-tokens")) {
    const int32_t length = prompt_ + steps_ + 1;
    ModelOptions options;
    options.path = path;
    options.backend =
        o.values.at("device") == "cuda" ? kernels::BackendKind::kCuda : kernels::BackendKind::kCpu;
    options.max_context = (length + kPageTokens - 1) / kPageTokens * kPageTokens;
    options.max_step_tokens = step_tokens_;
    options.max_sequences = sequences_;
    if (const std::string& plan = o.values.at("sparsity-plan"); !plan.empty()) {
      auto policy = SparsityPolicy::Load(plan);
      if (!policy.ok()) Fail(std::string(policy.status().message()));
      options.policy = *std::move(policy);
    }
    auto model = Model::Load(options);
    if (!model.ok()) Fail(std::string(model.status().message()));
    model_ = *std::move(model);
    const int32_t pages = options.max_context / kPageTokens;
    for (size_t g = 0; g < model_->cache().groups().size(); ++g) {
      if (model_->cache().num_pages(static_cast<int32_t>(g)) < pages * sequences_) {
        Fail("the cache does not hold so many sequences of this length");
      }
    }
    pages_ = pages;
    std::mt19937 random(5);
    for (int32_t s = 0; s < sequences_; ++s) {
      std::vector<int32_t>& text = texts_.emplace_back();
      for (int32_t i = 0; i < prompt_; ++i) {
        text.push_back(
            static_cast<int32_t>(random() % static_cast<uint32_t>(model_->spec().vocab_size)));
      }
    }
  }

  void Run() {
    for (int32_t s = 0; s < sequences_; ++s) Prefill(s);
    std::vector<double> times;
    for (int32_t i = 0; i + 1 < steps_; ++i) {
      const int64_t start = Clock::Real()->MonotonicNanos();
      Decode();
      times.push_back(static_cast<double>(Clock::Real()->MonotonicNanos() - start) * 1e-9);
    }
    // The first steps launch, record, and map memory.
    times.erase(times.begin(), times.begin() + std::min<ptrdiff_t>(8, std::ssize(times) - 1));
    double total = 0;
    for (const double t : times) total += t;
    std::sort(times.begin(), times.end());
    std::printf(
        "{\"sequences\": %d, \"prompt_tokens\": %d, \"steps\": %zu, \"steps_per_second\": %.3f, "
        "\"step_ms_p50\": %.4f}\n",
        sequences_, prompt_, times.size(), static_cast<double>(times.size()) / total,
        times[times.size() / 2] * 1e3);
  }

 private:
  void Prefill(int32_t s) {
    for (int32_t at = 0; at < prompt_; at += step_tokens_) {
      const int32_t count = std::min(step_tokens_, prompt_ - at);
      Begin();
      Add(s, at, count, at + count == prompt_, NumericsClass::kPrompt);
      Step();
    }
  }
  void Decode() {
    Begin();
    for (int32_t s = 0; s < sequences_; ++s) {
      const auto last = static_cast<int32_t>(texts_[static_cast<size_t>(s)].size()) - 1;
      Add(s, last, 1, true, NumericsClass::kGenerated);
    }
    Step();
  }

  void Begin() {
    input_ = {};
    members_.clear();
    input_.page_tables.resize(model_->cache().groups().size());
    for (GroupPageTable& table : input_.page_tables) table.stride = pages_;
  }
  void Add(int32_t s, int32_t at, int32_t count, bool choose, NumericsClass numerics) {
    const std::vector<int32_t>& text = texts_[static_cast<size_t>(s)];
    input_.runs.push_back({.sequence = input_.num_sequences++,
                           .first_position = at,
                           .num_tokens = count,
                           .num_logits = choose ? 1 : 0,
                           .numerics = numerics});
    input_.token_ids.insert(input_.token_ids.end(), text.begin() + at, text.begin() + at + count);
    const int32_t filled = (at + count + kPageTokens - 1) / kPageTokens;
    for (GroupPageTable& table : input_.page_tables) {
      for (int32_t p = 0; p < pages_; ++p) {
        table.pages.push_back(p < filled ? s * pages_ + p : kernels::kNoPage);
      }
    }
    if (!choose) return;
    const std::span<const int32_t> all = text;
    input_.choices.push_back({.logits_row = static_cast<int32_t>(members_.size()),
                              .context = {.params = &greedy_,
                                          .prompt = all.first(static_cast<size_t>(prompt_)),
                                          .generated = all.subspan(static_cast<size_t>(prompt_))}});
    members_.push_back(s);
  }
  void Step() {
    if (const absl::Status status = model_->Forward(input_, &output_); !status.ok()) {
      Fail(std::string(status.message()));
    }
    for (size_t i = 0; i < members_.size(); ++i) {
      const auto row = static_cast<int32_t>(i);
      const std::optional<SampledToken>& chosen = output_.chosen[i];
      const int32_t token = chosen ? chosen->token
                                   : sampler_
                                         .Sample({output_.logits.row<float>(row),
                                                  static_cast<size_t>(model_->spec().vocab_size)},
                                                 input_.choices[i].context)
                                         .token;
      texts_[static_cast<size_t>(members_[i])].push_back(token);
    }
  }

  const int32_t sequences_, prompt_, steps_, step_tokens_;
  int32_t pages_ = 0;
  std::unique_ptr<Model> model_;
  std::vector<std::vector<int32_t>> texts_;
  std::vector<int32_t> members_;  // sequences of the step's choices
  SamplingParams greedy_{.temperature = 0.0f};
  Sampler sampler_;
  ModelInput input_;
  ModelOutput output_;
};

}  // namespace
}  // namespace longstride::model

int main(int argc, char** argv) {
  longstride::model::Options options;
  if (argc < 2)
    longstride::model::Fail("usage: decode_loop MODEL [--device cuda] [--sequences N] ...");
  for (int i = 2; i + 1 < argc; i += 2) {
    const std::string name = std::string(argv[i]).substr(2);
    if (!options.values.contains(name))
      longstride::model::Fail(std::string("unknown option ") + argv[i]);
    options.values[name] = argv[i + 1];
  }
  longstride::model::Loop(argv[1], options).Run();
  return 0;
}

// Runs a decoder for tests the way an engine does: hands out scattered physical pages, gives the
// dead ones back, and collects logits as plain vectors.
#pragma once

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "model/decoder.h"
#include "model/kv_cache.h"
#include "model/sparsity/sparsity_plan.h"
#include "tests/testing/kernel_choice.h"

namespace longstride::model {

// What this machine can run a model on.
inline const std::vector<kernels::BackendKind>& Backends() {
  using kernels::BackendKind;
  static const std::vector<BackendKind> kinds = [] {
    std::vector<BackendKind> all = {BackendKind::kReference, BackendKind::kCpu};
    if (kernels::MakeBackend(BackendKind::kCuda, {}).ok()) all.push_back(BackendKind::kCuda);
    return all;
  }();
  return kinds;
}

// And a model of this spec.
inline std::vector<kernels::BackendKind> Backends(const ModelSpec& spec) {
  std::vector<kernels::BackendKind> kinds = Backends();
  const bool gated = std::any_of(spec.layers.begin(), spec.layers.end(),
                                 [](const LayerSpec& layer) { return layer.attention.gates > 0; });
  if (gated) std::erase(kinds, kernels::BackendKind::kCuda);
  return kinds;
}

using FloatRows = std::vector<std::vector<float>>;

// One sequence's part of a step.
struct Piece {
  int sequence = 0;
  std::vector<int32_t> tokens;
  int32_t num_logits = 0;
  bool wants_hidden = false;
  uint8_t rope_variant = 0;
  NumericsClass numerics = NumericsClass::kPrompt;
};

class PagedRunner {
 public:
  PagedRunner(const ModelSpec* spec, const std::string& plan_text,
              kernels::BackendKind kind = kernels::BackendKind::kReference,
              kernels::KvDType dtype = kernels::KvDType::kF32, int32_t max_step_tokens = 512,
              int num_threads = 1)
      : PagedRunner(spec, plan_text, Make(kind, num_threads), dtype, max_step_tokens) {}

  PagedRunner(const ModelSpec* spec, const std::string& plan_text,
              std::unique_ptr<kernels::Backend> backend, kernels::KvDType dtype,
              int32_t max_step_tokens = 512)
      : spec_(spec), backend_(std::move(backend)) {
    auto policy = SparsityPolicy::Parse(plan_text);
    EXPECT_TRUE(policy.ok()) << policy.status();
    auto plan = SparsityPlan::Resolve(*policy, *spec, dtype);
    EXPECT_TRUE(plan.ok()) << plan.status();
    plan_ = *std::move(plan);
    auto cache = KvCache::Create(backend_.get(), plan_.groups,
                                 {.dtype = dtype, .budget_bytes = int64_t{64} << 20});
    EXPECT_TRUE(cache.ok()) << cache.status();
    cache_ = *std::move(cache);
    auto decoder = Decoder::Create(backend_.get(), spec, &plan_, cache_.get(), max_step_tokens,
                                   [this](const kernels::TensorView&) { ++released; });
    EXPECT_TRUE(decoder.ok()) << decoder.status();
    decoder_ = *std::move(decoder);
    for (size_t g = 0; g < plan_.groups.size(); ++g) {
      std::vector<int32_t> free(
          static_cast<size_t>(std::min(cache_->num_pages(static_cast<int32_t>(g)), 4096)));
      for (size_t p = 0; p < free.size(); ++p) free[p] = static_cast<int32_t>(p);
      std::shuffle(free.begin(), free.end(), random_);
      free_.push_back(std::move(free));
    }
    max_held.assign(plan_.groups.size(), 0);
  }

  // Tells `observer` of every attention call; it must outlive the runner's steps.
  void Observe(AttentionObserver* observer) { decoder_->SetObserver(observer); }

  // Appends the pieces' tokens to their sequences; logits in the order of the pieces (which must be
  // ordered by sequence).
  absl::Status Step(const std::vector<Piece>& pieces) {
    ModelInput input = MakeInput(pieces);
    logits.clear();
    hidden.clear();
    ModelOutput output;
    RETURN_IF_ERROR(decoder_->Forward(input, &output));
    Copy(output.logits, &logits);
    Copy(output.hidden, &hidden);
    counters = output.counters;
    times = output.times;
    repeatable = output.repeatable;
    for (const Piece& piece : pieces) FreeDead(piece.sequence);
    return absl::OkStatus();
  }

  ModelInput MakeInput(const std::vector<Piece>& pieces) {
    ModelInput input;
    for (const Piece& piece : pieces) {
      const auto count = static_cast<int32_t>(piece.tokens.size());
      Sequence& s = sequences_[piece.sequence];
      if (s.pages.empty()) s.pages.resize(plan_.groups.size());
      input.runs.push_back({.sequence = input.num_sequences++,
                            .first_position = s.length,
                            .num_tokens = count,
                            .num_logits = piece.num_logits,
                            .wants_hidden = piece.wants_hidden,
                            .rope_variant = piece.rope_variant,
                            .numerics = piece.numerics});
      input.token_ids.insert(input.token_ids.end(), piece.tokens.begin(), piece.tokens.end());
      s.length += count;
      Grow(&s);
    }
    for (size_t g = 0; g < plan_.groups.size(); ++g) {
      GroupPageTable table;
      for (const Piece& piece : pieces) {
        table.stride = std::max(table.stride,
                                static_cast<int64_t>(sequences_[piece.sequence].pages[g].size()));
      }
      for (const Piece& piece : pieces) {
        std::vector<int32_t> row = sequences_[piece.sequence].pages[g];
        row.resize(static_cast<size_t>(table.stride), kernels::kNoPage);
        table.pages.insert(table.pages.end(), row.begin(), row.end());
      }
      input.page_tables.push_back(std::move(table));
    }
    return input;
  }

  // The prompt in pieces of `chunk` tokens (the last may be shorter), logits of every position.
  FloatRows Prefill(int sequence, const std::vector<int32_t>& tokens, int32_t chunk,
                    uint8_t rope_variant = 0,
                    NumericsClass numerics = NumericsClass::kPrompt) {
    FloatRows all;
    for (size_t at = 0; at < tokens.size();) {
      const size_t count = std::min(static_cast<size_t>(chunk), tokens.size() - at);
      const std::vector<int32_t> part(tokens.begin() + static_cast<std::ptrdiff_t>(at),
                                      tokens.begin() + static_cast<std::ptrdiff_t>(at + count));
      const absl::Status status = Step({{.sequence = sequence,
                                         .tokens = part,
                                         .num_logits = static_cast<int32_t>(count),
                                         .rope_variant = rope_variant,
                                         .numerics = numerics}});
      EXPECT_TRUE(status.ok()) << status;
      all.insert(all.end(), logits.begin(), logits.end());
      at += count;
    }
    return all;
  }

  // A new sequence that begins with the first `tokens` (whole pages) of another one, as a prefix hit
  // does. Groups must keep everything; `from` must outlive it.
  void Share(int from, int sequence, int32_t tokens) {
    Sequence& s = sequences_[sequence];
    const auto pages = static_cast<size_t>(tokens / kernels::kPageTokens);
    for (const auto& held : sequences_[from].pages) {
      s.pages.emplace_back(held.begin(), held.begin() + static_cast<std::ptrdiff_t>(pages));
    }
    s.length = tokens;
    s.borrowed = pages;
  }

  void Drop(int sequence) {
    Sequence& s = sequences_[sequence];
    for (size_t g = 0; g < s.pages.size(); ++g) {
      for (size_t p = s.borrowed; p < s.pages[g].size(); ++p) {
        if (s.pages[g][p] != kernels::kNoPage) free_[g].push_back(s.pages[g][p]);
      }
    }
    sequences_.erase(sequence);
  }

  kernels::Backend& backend() { return *backend_; }
  Decoder& decoder() { return *decoder_; }
  KvCache& cache() { return *cache_; }
  const SparsityPlan& plan() const { return plan_; }

  FloatRows logits, hidden;
  std::vector<PatternCounters> counters;
  StepTimes times;
  std::optional<kernels::StepRun> repeatable;
  std::vector<int64_t> max_held;  // [group] most pages one sequence held
  int released = 0;

 private:
  static std::unique_ptr<kernels::Backend> Make(kernels::BackendKind kind, int num_threads) {
    auto backend = kernels::MakeBackend(kind, {.num_threads = num_threads, .kernels = TestKernels()});
    EXPECT_TRUE(backend.ok()) << backend.status();
    return *std::move(backend);
  }

  struct Sequence {
    int32_t length = 0;
    size_t borrowed = 0;                      // first pages, which belong to another sequence
    std::vector<std::vector<int32_t>> pages;  // [group][logical page]
  };

  void Grow(Sequence* s) {
    for (size_t g = 0; g < s->pages.size(); ++g) {
      while (static_cast<int32_t>(s->pages[g].size()) * kernels::kPageTokens < s->length) {
        ASSERT_FALSE(free_[g].empty());
        s->pages[g].push_back(free_[g].back());
        free_[g].pop_back();
      }
      const auto held = static_cast<int64_t>(
          s->pages[g].size() - static_cast<size_t>(std::count(
                                   s->pages[g].begin(), s->pages[g].end(), kernels::kNoPage)));
      max_held[g] = std::max(max_held[g], held);
    }
  }

  // Gives dead pages back, filled with NaN: whoever reads one is found out.
  void FreeDead(int sequence) {
    Sequence& s = sequences_[sequence];
    for (size_t g = 0; g < s.pages.size(); ++g) {
      const Retention& keep = plan_.groups[g].retention;
      for (int64_t p = keep.first_dead_page(); p < keep.end_dead_page(s.length); ++p) {
        int32_t& page = s.pages[g][static_cast<size_t>(p)];
        if (page == kernels::kNoPage) continue;
        for (const int32_t layer : plan_.groups[g].layers) {
          if (backend_->device() != kernels::Device::kCpu) break;  // its memory is out of reach
          const kernels::PagedKv view = cache_->View(static_cast<int32_t>(g), layer);
          // A page's K, V and summaries follow each other.
          std::memset(static_cast<char*>(view.k) + page * view.page_stride, 0xff,
                      static_cast<size_t>(view.page_stride));
        }
        free_[g].insert(free_[g].begin(), page);
        page = kernels::kNoPage;
      }
    }
  }

  static void Copy(const kernels::TensorView& t, FloatRows* rows) {
    for (int64_t r = 0; t.data != nullptr && r < t.shape[0]; ++r) {
      rows->emplace_back(t.row<float>(r), t.row<float>(r) + t.shape[1]);
    }
  }

  const ModelSpec* spec_;
  SparsityPlan plan_;
  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<Decoder> decoder_;
  std::vector<std::vector<int32_t>> free_;
  std::map<int, Sequence> sequences_;
  std::mt19937 random_{99};
};

}  // namespace longstride::model

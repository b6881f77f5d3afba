#include "model/fidelity/lane.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "config/base/check.h"

namespace longstride::model::fidelity {
namespace {

using kernels::kNoPage;
using kernels::kPageTokens;

int64_t PagesOf(int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

// The rotary tables of sequences up to `tokens` (longrope keeps one for short and one for long).
uint8_t RopeVariant(const ModelSpec& spec, int32_t tokens) {
  size_t variant = 0;
  for (const RopeSpec& rope : spec.ropes) {
    const auto& lengths = rope.variant_lengths;
    const auto it = std::lower_bound(lengths.begin(), lengths.end(), tokens);
    variant = std::max(variant, static_cast<size_t>(it - lengths.begin()));
  }
  return static_cast<uint8_t>(variant);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Lane>> Lane::Create(Model* model, SparsityPlan plan,
                                                   const LaneOptions& options) {
  std::unique_ptr<Lane> lane(new Lane());
  lane->plan_ = std::move(plan);
  lane->options_ = options;
  lane->on_host_ = model->backend().device() == kernels::Device::kCpu;
  lane->rope_variant_ = RopeVariant(model->spec(), options.max_tokens);
  // One step's pages more than a sequence holds: dead pages go back when the next step begins.
  const int32_t step = options.step_tokens;
  int64_t budget = 0;
  for (const CacheGroup& group : lane->plan_.groups) {
    const int64_t all = PagesOf(options.max_tokens);
    const int64_t kept = group.retention.keeps_all()
                             ? all
                             : PagesOf(int64_t{group.retention.window} + group.retention.chunk) +
                                   group.retention.first_dead_page() + 2 * PagesOf(step) + 3;
    budget += std::min(all, kept) * group.page_bytes;
  }
  ASSIGN_OR_RETURN(lane->cache_,
                   KvCache::Create(&model->backend(), lane->plan_.groups,
                                   {.dtype = options.kv_dtype, .budget_bytes = budget}));
  ASSIGN_OR_RETURN(lane->decoder_,
                   model->decoder().WithPlan(&lane->plan_, lane->cache_.get(), step));
  const size_t groups = lane->plan_.groups.size();
  lane->free_.resize(groups);
  lane->held_.resize(groups);
  lane->input_.num_sequences = 1;
  lane->input_.runs.resize(1);
  lane->input_.page_tables.resize(groups);
  for (GroupPageTable& table : lane->input_.page_tables) {
    table.stride = PagesOf(options.max_tokens);
  }
  lane->Reset();
  return lane;
}

void Lane::Reset() {
  length_ = last_begin_ = 0;
  max_kv_bytes_ = 0;
  for (size_t g = 0; g < free_.size(); ++g) {
    free_[g].resize(static_cast<size_t>(cache_->num_pages(static_cast<int32_t>(g))));
    std::iota(free_[g].rbegin(), free_[g].rend(), 0);
    held_[g] = 0;
    GroupPageTable& table = input_.page_tables[g];
    table.pages.assign(static_cast<size_t>(table.stride), kNoPage);
  }
}

absl::Status Lane::Append(std::span<const int32_t> tokens, int32_t num_logits,
                          NumericsClass numerics) {
  const auto count = static_cast<int32_t>(tokens.size());
  LS_CHECK(count >= 1 && count <= options_.step_tokens);
  LS_CHECK_LE(length_ + count, options_.max_tokens);
  FreeDeadPages();
  Grow(length_ + count);
  input_.token_ids.assign(tokens.begin(), tokens.end());
  input_.runs[0] = {.sequence = 0,
                    .first_position = length_,
                    .num_tokens = count,
                    .num_logits = num_logits,
                    .wants_hidden = false,
                    .rope_variant = rope_variant_,
                    .numerics = numerics};
  RETURN_IF_ERROR(decoder_->Forward(input_, &output_));
  for (const PatternCounters& c : output_.counters) {
    keys_visible_ += c.keys_visible;
    keys_total_ += c.keys_total;
  }
  logits_ = output_.logits;
  if (!on_host_ && num_logits > 0) {
    const float* logits = logits_.ptr<float>();
    copied_logits_.assign(logits, logits + logits_.num_elements());
    logits_.data = copied_logits_.data();
  }
  last_begin_ = length_;
  length_ += count;
  return absl::OkStatus();
}

void Lane::CutTo(int32_t length) {
  LS_CHECK(length >= last_begin_ && length <= length_);
  length_ = length;
}

void Lane::FreeDeadPages() {
  for (size_t g = 0; g < held_.size(); ++g) {
    const Retention& keep = plan_.groups[g].retention;
    std::vector<int32_t>& pages = input_.page_tables[g].pages;
    for (int64_t p = keep.first_dead_page(); p < keep.end_dead_page(length_); ++p) {
      int32_t& page = pages[static_cast<size_t>(p)];
      if (page == kNoPage) continue;
      free_[g].push_back(std::exchange(page, kNoPage));
      --held_[g];
    }
  }
}

void Lane::Grow(int32_t length) {
  for (size_t g = 0; g < held_.size(); ++g) {
    std::vector<int32_t>& pages = input_.page_tables[g].pages;
    for (int64_t p = length_ / kPageTokens; p < PagesOf(length); ++p) {
      int32_t& page = pages[static_cast<size_t>(p)];
      if (page != kNoPage) continue;
      LS_CHECK(!free_[g].empty());
      page = free_[g].back();
      free_[g].pop_back();
      ++held_[g];
    }
  }
  max_kv_bytes_ = std::max(max_kv_bytes_, kv_bytes());
}

int64_t Lane::kv_bytes() const {
  int64_t bytes = 0;
  for (size_t g = 0; g < held_.size(); ++g) bytes += held_[g] * plan_.groups[g].page_bytes;
  return bytes;
}

}  // namespace longstride::model::fidelity

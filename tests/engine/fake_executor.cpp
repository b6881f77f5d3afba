#include "tests/engine/fake_executor.h"

#include <algorithm>
#include <limits>
#include <set>
#include <utility>

#include "config/base/check.h"

namespace longstride::engine {
namespace {

using kernels::kNoPage;
using kernels::kPageTokens;

uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

}  // namespace

model::CacheGroup MakeGroup(std::string name, model::Retention retention, int64_t page_bytes) {
  model::CacheGroup group;
  group.name = std::move(name);
  group.retention = retention;
  group.page_bytes = page_bytes;
  return group;
}

FakeExecutor::FakeExecutor(const FakeExecutorOptions& options, FakeClock* clock)
    : options_(options), clock_(clock) {
  info_.groups = options.groups;
  info_.kv_budget_bytes = options.kv_budget_bytes;
  info_.vocab_size = options.vocab_size;
  info_.max_context = options.max_context;
  info_.max_step_tokens = options.max_step_tokens;
  info_.plan_digest = "plan";
  info_.model_digest = "model";
  info_.kv_dtype = "f32";
  info_.variant_lengths = options.variant_lengths;
  info_.variants_by_prompt = options.variants_by_prompt;
  info_.chunk_alignment = options.chunk_alignment;
  info_.one_numerics_class = options.one_numerics_class;
  info_.causal = options.causal;
  info_.classify_pooling = options.classify_pooling;
  info_.num_labels = options.num_labels;
  for (const model::CacheGroup& group : options.groups) {
    const auto pages = static_cast<int32_t>(options.kv_budget_bytes / group.page_bytes);
    info_.num_pages.push_back(pages);
    shadow_.emplace_back(static_cast<size_t>(pages) * kPageTokens, uint64_t{0});
  }
  info_.num_host_slots = options.host_slots;
  for (const int32_t slots : options.host_slots) {
    host_.emplace_back(static_cast<size_t>(slots) * kPageTokens, uint64_t{0});
  }
}

double FakeExecutor::AttendedKeys(int64_t position, model::NumericsClass) const {
  double keys = 0;
  for (const model::CacheGroup& group : options_.groups) {
    const int64_t begin = group.retention.live_begin(position);
    keys += static_cast<double>(position + 1 - begin +
                                std::min<int64_t>(begin, group.retention.sink_tokens));
  }
  return keys / static_cast<double>(std::max<size_t>(1, options_.groups.size()));
}

uint64_t FakeExecutor::Chain(uint64_t before, int32_t token) {
  return Mix(before * 3 + static_cast<uint64_t>(token) + 1);
}
uint64_t FakeExecutor::ChainStart(const Hash128& root_key, uint8_t rope_variant) {
  return Mix(root_key.lo ^ rope_variant);
}
float FakeExecutor::Logit(uint64_t chain, int32_t token) {
  const uint64_t bits = Mix(chain ^ Mix(static_cast<uint64_t>(token)));
  return static_cast<float>(bits >> 40) * 0x1p-24f * 8.0f;
}
float FakeExecutor::Hidden(uint64_t chain, int32_t dim) {
  return Logit(chain, 1'000'000 + dim) - 4.0f;
}

void FakeExecutor::Error(const std::string& text) {
  if (errors_.size() < 10) errors_.push_back(text);
}

const std::vector<uint64_t>& FakeExecutor::ChainOf(const Sequence& s) {
  std::vector<uint64_t>& chain = known_[s.id].chain;
  uint64_t last = chain.empty() ? ChainStart(s.root_key, s.rope_variant) : chain.back();
  for (size_t i = chain.size(); i < s.tokens.size(); ++i) {
    last = Chain(last, s.tokens[i]);
    chain.push_back(last);
  }
  return chain;
}

const std::vector<uint64_t>& FakeExecutor::KeysOf(const Sequence& s) {
  const std::vector<uint64_t>& chain = ChainOf(s);
  std::vector<uint64_t>& keys = known_[s.id].keys;
  const int64_t tile = options_.chunk_alignment;
  for (auto p = static_cast<int64_t>(keys.size()); p < std::ssize(chain); ++p) {
    const bool generated = p >= s.num_prompt;
    const int64_t reach = generated ? p : std::min<int64_t>((p / tile + 1) * tile, s.num_prompt) - 1;
    uint64_t key = chain[static_cast<size_t>(p)] + 5 * chain[static_cast<size_t>(reach)];
    if (generated && !options_.one_numerics_class) key = Mix(key);
    keys.push_back(key);
  }
  return keys;
}

// Everything that the run's queries see and that earlier steps wrote.
void FakeExecutor::CheckRun(const model::ModelInput& input, size_t index, const Sequence& s) {
  const model::InputRun& run = input.runs[index];
  const std::vector<uint64_t>& keys = KeysOf(s);
  for (size_t g = 0; g < options_.groups.size(); ++g) {
    const model::Retention& retention = options_.groups[g].retention;
    const model::GroupPageTable& table = input.page_tables[g];
    const int32_t* pages = table.pages.data() + run.sequence * table.stride;
    const int64_t live = retention.live_begin(run.first_position);
    const auto check = [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end;) {
        const int64_t page_end = std::min<int64_t>(end, (j / kPageTokens + 1) * kPageTokens);
        const int64_t logical = j / kPageTokens;
        const int32_t page = logical < table.stride ? pages[logical] : kNoPage;
        if (page == kNoPage) {
          Error(StrCat("sequence ", s.id, " lacks page ", logical, " of group ", g,
                       " for the query at ", run.first_position));
        } else {
          const uint64_t* held =
              shadow_[g].data() + static_cast<size_t>(page) * kPageTokens + j % kPageTokens;
          if (!std::equal(held, held + (page_end - j), keys.begin() + j)) {
            Error(StrCat("sequence ", s.id, " page ", logical, " (physical ", page, ") of group ", g,
                         " does not hold the sequence's keys, query at ", run.first_position));
          }
        }
        positions_checked_ += page_end - j;
        j = page_end;
      }
    };
    check(0, std::min<int64_t>(retention.sink_tokens, live));
    check(live, run.first_position);
  }
}

void FakeExecutor::Write(const model::ModelInput& input, size_t index, const Sequence& s) {
  const model::InputRun& run = input.runs[index];
  const std::vector<uint64_t>& keys = KeysOf(s);
  const PageAllocator& allocator = *scheduler_->state().allocator;
  for (size_t i = 0; i < options_.groups.size(); ++i) {
    const auto g = static_cast<int32_t>(i);
    const model::GroupPageTable& table = input.page_tables[i];
    const int32_t* pages = table.pages.data() + run.sequence * table.stride;
    for (int64_t p = run.first_position; p < run.first_position + run.num_tokens; ++p) {
      const int64_t logical = p / kPageTokens;
      const int32_t page = logical < table.stride ? pages[logical] : kNoPage;
      if (page == kNoPage) {
        Error(StrCat("sequence ", s.id, " has no page of group ", g, " to write ", p, " to"));
        continue;
      }
      if (allocator.refs(g, page) != 1 || allocator.cached(g, page)) {
        Error(StrCat("sequence ", s.id, " writes to a shared page of group ", g));
      }
      shadow_[i][static_cast<size_t>(page) * kPageTokens + static_cast<size_t>(p % kPageTokens)] =
          keys[static_cast<size_t>(p)];
    }
  }
}

absl::Status FakeExecutor::Forward(const model::ModelInput& input, model::ModelOutput* output) {
  ++steps_;
  LS_CHECK(scheduler_ != nullptr && plan_->runs.size() == input.runs.size());
  double keys = 0;
  int64_t num_tokens = 0, num_logits = 0, num_hidden = 0;
  size_t next_token = 0;
  for (size_t i = 0; i < input.runs.size(); ++i) {
    const model::InputRun& run = input.runs[i];
    const Sequence& s = *scheduler_->state().sequences.at(plan_->runs[i].id);
    for (int32_t k = 0; k < run.num_tokens; ++k) {
      if (input.token_ids[next_token++] != s.tokens[static_cast<size_t>(run.first_position + k)]) {
        Error(StrCat("sequence ", s.id, " gets a wrong token at ", run.first_position + k));
      }
      keys += AttendedKeys(run.first_position + k, run.numerics);
      const bool generated = run.first_position + k >= s.num_prompt;
      if (generated != (run.numerics == model::NumericsClass::kGenerated)) {
        Error(StrCat("sequence ", s.id, " computes ", run.first_position + k,
                     " in the wrong numerics class"));
      }
    }
    const int32_t end = run.first_position + run.num_tokens;
    if (run.numerics == model::NumericsClass::kPrompt &&
        (run.first_position % options_.chunk_alignment != 0 ||
         (end % options_.chunk_alignment != 0 && end != s.num_prompt))) {
      Error(StrCat("sequence ", s.id, " computes ", run.first_position, " to ", end,
                   " of its prompt, not whole tiles of ", options_.chunk_alignment));
    }
    CheckRun(input, i, s);
    num_tokens += run.num_tokens;
    num_logits += run.num_logits;
    if (run.wants_hidden) num_hidden += run.num_tokens;
  }
  if (num_tokens > options_.max_step_tokens) Error(StrCat(num_tokens, " tokens in one step"));
  clock_->Advance(absl::Seconds(
      std::exchange(delay_, 1.0) *
      (options_.seconds_per_step + options_.seconds_per_token * static_cast<double>(num_tokens) +
       options_.seconds_per_key * keys)));
  const bool fail = std::exchange(fail_next_, false) || !healthy_;
  logits_.assign(static_cast<size_t>(num_logits * options_.vocab_size), 0.0f);
  hidden_.assign(static_cast<size_t>(num_hidden * options_.hidden_dim), 0.0f);
  float* logit = logits_.data();
  float* hidden = hidden_.data();
  for (size_t i = 0; i < input.runs.size(); ++i) {
    if (fail && i * 2 >= input.runs.size()) break;
    const model::InputRun& run = input.runs[i];
    const Sequence& s = *scheduler_->state().sequences.at(plan_->runs[i].id);
    Write(input, i, s);
    const std::vector<uint64_t>& chain = ChainOf(s);
    const int32_t end = run.first_position + run.num_tokens;
    for (int32_t p = end - run.num_logits; p < end; ++p) {
      for (int32_t v = 0; v < options_.vocab_size; ++v) {
        *logit++ = Logit(chain[static_cast<size_t>(p)], v);
      }
    }
    for (int32_t p = run.first_position; run.wants_hidden && p < end; ++p) {
      for (int32_t d = 0; d < options_.hidden_dim; ++d) {
        *hidden++ = Hidden(chain[static_cast<size_t>(p)], d);
      }
    }
  }
  for (auto it = known_.begin(); it != known_.end();) {
    it = scheduler_->state().sequences.contains(it->first) ? std::next(it) : known_.erase(it);
  }
  if (fail) return absl::InternalError("injected fault");
  if (std::exchange(invalid_next_, false) && !logits_.empty()) {
    logits_[0] = std::numeric_limits<float>::quiet_NaN();
  }
  output->logits = kernels::TensorView::Matrix(logits_.data(), kernels::DType::kF32, num_logits,
                                               options_.vocab_size);
  output->hidden = kernels::TensorView::Matrix(hidden_.data(), kernels::DType::kF32, num_hidden,
                                               options_.hidden_dim);
  return absl::OkStatus();
}

void FakeExecutor::Decommit(int32_t group, std::span<const int32_t> pages) {
  const PageAllocator& allocator = *scheduler_->state().allocator;
  for (const int32_t page : pages) {
    if (allocator.refs(group, page) > 0 || allocator.cached(group, page)) {
      Error(StrCat("page ", page, " of group ", group, " is in use and loses its memory"));
    }
    std::fill_n(shadow_[static_cast<size_t>(group)].begin() + ptrdiff_t{page} * kPageTokens,
                kPageTokens, uint64_t{0});
  }
}

absl::Status FakeExecutor::CopyPages(std::span<const model::PageCopy> copies) {
  if (std::exchange(fail_next_copy_, false)) return absl::InternalError("injected fault of a copy");
  const PageAllocator& allocator = *scheduler_->state().allocator;
  std::set<std::pair<int32_t, int32_t>> written;
  for (const model::PageCopy& copy : copies) {
    const auto g = static_cast<size_t>(copy.group);
    if (!written.emplace(copy.group, copy.to_host ? copy.slot : copy.page).second) {
      Error("a slot or a page is written by two copies of one call, which have no order");
    }
    if (copy.to_host != copies.front().to_host) Error("copies of both directions in one call");
    if (!copy.to_host && !allocator.cached(copy.group, copy.page)) {
      Error(StrCat("page ", copy.page, " comes back to nobody"));
    }
    const auto page = shadow_[g].begin() + ptrdiff_t{copy.page} * kPageTokens;
    const auto slot = host_[g].begin() + ptrdiff_t{copy.slot} * kPageTokens;
    if (copy.to_host) {
      std::copy_n(page, kPageTokens, slot);
    } else {
      std::copy_n(slot, kPageTokens, page);
    }
  }
  return absl::OkStatus();
}

const std::string& FakeText::Bytes(int32_t token) {
  static const std::vector<std::string> kTable = [] {
    std::vector<std::string> table;
    for (const char* piece : {"\xc3", "\xa9", "\xe2\x82", "\xac", "é", "€", "", " "}) {
      table.emplace_back(piece);
    }
    for (int i = 8; i < 64; ++i) {
      std::string piece(1, static_cast<char>('a' + i % 4));
      if (i % 3 == 0) piece += static_cast<char>('a' + i / 4 % 4);
      table.push_back(piece);
    }
    return table;
  }();
  return kTable[static_cast<size_t>(token) % kTable.size()];
}

std::string FakeText::TakeCharacters(std::string* bytes, bool at_end) {
  std::string out;
  size_t i = 0;
  while (i < bytes->size()) {
    const auto lead = static_cast<unsigned char>((*bytes)[i]);
    const size_t length = lead < 0x80 ? 1 : lead >= 0xe0 ? 3 : lead >= 0xc0 ? 2 : 0;
    size_t have = length == 0 ? 0 : 1;
    while (have < length && i + have < bytes->size() &&
           (static_cast<unsigned char>((*bytes)[i + have]) & 0xc0) == 0x80) {
      ++have;
    }
    if (have == length && length > 0) {
      out.append(*bytes, i, length);
      i += length;
    } else if (length > 0 && i + have == bytes->size() && !at_end) {
      break;
    } else {
      out += "\xef\xbf\xbd";
      i += std::max<size_t>(have, 1);
    }
  }
  bytes->erase(0, i);
  return out;
}

namespace {

class FakeStream : public TextStream {
 public:
  std::string Push(int32_t token) override {
    pending_ += FakeText::Bytes(token);
    return FakeText::TakeCharacters(&pending_, false);
  }
  std::string Flush() override { return FakeText::TakeCharacters(&pending_, true); }

 private:
  std::string pending_;
};

}  // namespace

std::unique_ptr<TextStream> FakeText::NewStream(bool skip_special, bool at_text_start,
                                                const std::vector<int32_t>& keep) const {
  return std::make_unique<FakeStream>();
}

}  // namespace longstride::engine

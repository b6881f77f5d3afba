// PlanStep: decodes first, then admission, then prefill chunks under the time that decodes can wait.
//
// Room. A sequence is admitted with a reservation in every cache group; `spare` is the budget that
// is neither used nor reserved. Growth inside a reservation always succeeds. Growth beyond it comes
// out of `spare`, and where that is used up somebody is preempted. Pages that only the prefix cache
// holds count as free: Apply evicts them as needed.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "server/engine/scheduler.h"

namespace longstride::engine {
namespace {

using kernels::kNoPage;
using kernels::kPageTokens;

constexpr double kBoundShare = 0.97;  // of the inter-token bound: the rest is the way to the client
constexpr int kOldestTurn = 4;         // every 4th step the oldest prompt goes first
constexpr int kMaxFailedAdmissions = 8;   // that found no pages, a step
constexpr int kMaxSlotFailures = 4;       // that found no prefill slot; then only short ones are tried

int64_t Pages(int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

// Forks of one sequence: what each needs beside the whole pages of the prompt that it shares.
int64_t ForkBytes(const std::vector<model::CacheGroup>& groups, const SchedulerLimits& limits,
                  const Sequence& s, int64_t target) {
  if (s.pending_forks == 0) return 0;
  const int64_t shared = s.num_prompt / limits.unit_tokens * (limits.unit_tokens / kPageTokens);
  int64_t bytes = 0;
  for (const model::CacheGroup& group : groups) {
    const int64_t peak = PeakPages(group, target, limits.unit_tokens);
    // A shared window is left behind by everyone, each for pages of its own.
    bytes += group.page_bytes * (group.retention.keeps_all()
                                     ? s.pending_forks * (peak - shared)
                                     : (s.pending_forks + 1) * peak);
  }
  return bytes;
}

class Planner {
 public:
  Planner(const SchedulerState& state, const SchedulerLimits& limits, const StepCost& cost,
          const AttendedKeysFn& attended_keys, absl::Time now)
      : state_(state), limits_(limits), cost_(cost), attended_keys_(attended_keys), now_(now) {}

  StepPlan Plan() {
    Survey();
    PlanDecodes();
    PlanAdmissions();
    PlanPrefills();
    plan_.predicted_seconds = plan_.runs.empty() ? 0 : cost_.Step(plan_.work);
    return std::move(plan_);
  }

 private:
  struct Entry {
    const Sequence* sequence = nullptr;
    int64_t reserved = 0;   // bytes still to come inside its reservation
    int64_t new_bytes = 0;  // its decode's new pages
    int64_t growth = 0;     // of these, beyond the reservation
    bool decode = false;
    bool preempted = false;
  };

  // Pages of `s` in group g that nobody else holds, victims of this plan aside.
  int64_t ExclusivePages(const Sequence& s, int32_t g) const;
  int64_t ReservedPages(const Sequence& s, int32_t g) const;
  int64_t SoftReserve(const Sequence& s) const;
  int64_t RefsLeft(int32_t g, int32_t page) const;

  void Survey();
  void PlanDecodes();
  Entry* ChooseVictim();
  void Preempt(Entry* victim);
  double RecomputeSeconds(const Sequence& s) const;

  void PlanAdmissions();
  const Sequence* NextWaiting(const std::set<SequenceId>& tried, bool only_short) const;
  bool HasSlot(const Sequence& s, int32_t remaining) const;
  int64_t AdmissionBytes(const Sequence& s, const PrefixCache::Match& match) const;
  void Admit(const Sequence& s, PrefixCache::Match match, int64_t bytes);

  struct Prefill {
    const Sequence* sequence;
    int32_t first_position;
  };
  void PlanPrefills();
  bool PlanChunk(const Prefill& prefill, double* seconds_left);
  int32_t LogitRows(const Sequence& s, int32_t begin, int32_t end) const;
  StepWork WorkOf(const Sequence& s, int32_t begin, int32_t end) const;
  int64_t NewBytes(const Sequence& s, int32_t end) const;

  int64_t EffectivePriority(const Sequence& s) const {
    return s.priority - (now_ - s.arrival) / limits_.priority_ageing;
  }

  const SchedulerState& state_;
  const SchedulerLimits& limits_;
  const StepCost& cost_;
  const AttendedKeysFn& attended_keys_;
  const absl::Time now_;

  StepPlan plan_;
  std::vector<Entry> entries_;
  int64_t spare_ = 0;     // budget - used - reserved
  int64_t physical_ = 0;  // budget - used
  int32_t running_ = 0;   // with forks to come
  int32_t tokens_left_ = 0;
  int32_t logits_left_ = 0;
  int32_t long_prefills_ = 0;
  int64_t short_prefill_tokens_ = 0;
  std::map<std::pair<int32_t, int32_t>, int32_t> released_;  // (group, page): refs of victims
  std::map<int32_t, double> charged_;                        // client: work admitted in this plan
  std::vector<Prefill> admitted_;
};

// Of kNoPage, what is in host memory: nobody's.
int64_t Planner::RefsLeft(int32_t g, int32_t page) const {
  if (page == kNoPage) return 0;
  const int64_t refs = state_.allocator->refs(g, page);
  if (released_.empty()) return refs;
  const auto it = released_.find({g, page});
  return it == released_.end() ? refs : refs - it->second;
}

int64_t Planner::ExclusivePages(const Sequence& s, int32_t g) const {
  const std::vector<int32_t>& table = s.pages[g];
  const model::Retention& retention = state_.groups[g].retention;
  const auto size = static_cast<int64_t>(table.size());
  int64_t count = 0;
  for (int64_t p = 0; p < size; ++p) {
    if (!retention.keeps_all() && p == retention.first_dead_page()) {
      p = std::max<int64_t>(p, s.first_live[g]);
      if (p >= size) break;
    }
    if (table[p] != kNoPage && RefsLeft(g, table[p]) == 1) ++count;
  }
  return count;
}

// Pages still to come inside the reservation.
int64_t Planner::ReservedPages(const Sequence& s, int32_t g) const {
  const model::CacheGroup& group = state_.groups[g];
  const int64_t step = s.is_decoding() ? limits_.unit_tokens : limits_.max_step_tokens;
  const int64_t peak = PeakPages(group, s.reserved_tokens, step);
  // A page of a window that others hold too does not come back when this sequence moves on.
  const int64_t held = group.retention.keeps_all() ? static_cast<int64_t>(s.pages[g].size())
                                                   : ExclusivePages(s, g);
  return std::max<int64_t>(0, peak - held);
}

// What a running sequence may want beyond its reservation soon: nobody is admitted into that.
int64_t Planner::SoftReserve(const Sequence& s) const {
  const int32_t target = ReserveTarget(limits_, s);
  if (target <= s.reserved_tokens) return 0;
  int64_t bytes = 0;
  for (const model::CacheGroup& group : state_.groups) {
    bytes += (PeakPages(group, target, limits_.unit_tokens) -
              PeakPages(group, s.reserved_tokens, limits_.unit_tokens)) *
             group.page_bytes;
  }
  return bytes;
}

int64_t Planner::NewBytes(const Sequence& s, int32_t end) const {
  int64_t bytes = 0;
  for (size_t g = 0; g < state_.groups.size(); ++g) {
    const int64_t fresh = Pages(end) - static_cast<int64_t>(s.pages[g].size());
    if (fresh > 0) bytes += fresh * state_.groups[g].page_bytes;
  }
  return bytes;
}

void Planner::Survey() {
  tokens_left_ = limits_.max_step_tokens;
  logits_left_ = limits_.max_step_logits;
  physical_ = state_.allocator->budget_bytes() - state_.allocator->used_bytes();
  spare_ = physical_;
  for (const Sequence* s : state_.running) {
    Entry entry{.sequence = s, .decode = s->is_decoding() && !s->stalled};
    for (size_t i = 0; i < state_.groups.size(); ++i) {
      const auto g = static_cast<int32_t>(i);
      const int64_t page_bytes = state_.groups[i].page_bytes;
      const int64_t reserved = ReservedPages(*s, g);
      entry.reserved += reserved * page_bytes;
      if (entry.decode) {
        const int64_t fresh =
            std::max<int64_t>(0, Pages(s->num_computed + 1) - static_cast<int64_t>(s->pages[i].size()));
        entry.new_bytes += fresh * page_bytes;
        entry.growth += std::max<int64_t>(0, fresh - reserved) * page_bytes;
      }
    }
    entry.reserved += ForkBytes(state_.groups, limits_, *s, s->reserved_tokens);
    spare_ -= entry.reserved;
    running_ += 1 + s->pending_forks;
    if (!s->is_decoding()) {
      if (s->remaining() > limits_.max_step_tokens) {
        ++long_prefills_;
      } else {
        short_prefill_tokens_ += s->remaining();
      }
    }
    entries_.push_back(entry);
  }
}

void Planner::PlanDecodes() {
  int64_t growth = 0, fresh = 0;
  for (const Entry& entry : entries_) {
    growth += entry.growth;
    fresh += entry.new_bytes;
  }
  while ((growth > 0 && growth > spare_) || fresh > physical_) {
    Entry* victim = ChooseVictim();
    if (victim == nullptr) break;
    growth -= victim->growth;
    fresh -= victim->new_bytes;
    Preempt(victim);
  }
  for (const Entry& entry : entries_) {
    if (!entry.decode || entry.preempted) continue;
    // Nobody could make room: it waits until somebody ends.
    if ((entry.growth > 0 && entry.growth > spare_) || entry.new_bytes > physical_) continue;
    const Sequence& s = *entry.sequence;
    spare_ -= entry.growth;
    physical_ -= entry.new_bytes;
    plan_.runs.push_back({.id = s.id,
                          .first_position = s.num_computed,
                          .num_tokens = 1,
                          .num_logits = 1,
                          .numerics = model::NumericsClass::kGenerated,
                          .decode = true});
    plan_.work += WorkOf(s, s.num_computed, s.num_computed + 1);
    --tokens_left_;
    --logits_left_;
  }
}

double Planner::RecomputeSeconds(const Sequence& s) const {
  return cost_.Marginal({.tokens = static_cast<double>(s.num_computed),
                         .keys = SumAttendedKeys(attended_keys_, 0, s.num_computed,
                                                 s.num_prompt)});
}

// The lowest priority, then what is cheapest to compute again; never the first in line, which so
// always gets on. Who was preempted too often is spared unless the first in line needs the room.
Planner::Entry* Planner::ChooseVictim() {
  const Entry* first = nullptr;
  for (const Entry& e : entries_) {
    if (e.preempted) continue;
    if (first == nullptr || std::make_pair(EffectivePriority(*e.sequence), e.sequence->id) <
                                std::make_pair(EffectivePriority(*first->sequence),
                                               first->sequence->id)) {
      first = &e;
    }
  }
  const bool first_needs_room = first != nullptr && first->growth + first->new_bytes > 0;
  Entry* best = nullptr;
  std::tuple<bool, int64_t, double, SequenceId> best_key;
  for (Entry& e : entries_) {
    if (e.preempted || &e == first) continue;
    const bool spared = e.sequence->preemptions >= limits_.max_preemptions;
    if (spared && !first_needs_room) continue;
    const std::tuple<bool, int64_t, double, SequenceId> key = {
        spared, -EffectivePriority(*e.sequence), RecomputeSeconds(*e.sequence), -e.sequence->id};
    if (best == nullptr || key < best_key) {
      best = &e;
      best_key = key;
    }
  }
  return best;
}

void Planner::Preempt(Entry* victim) {
  const Sequence& s = *victim->sequence;
  int64_t freed = 0;
  for (size_t i = 0; i < state_.groups.size(); ++i) {
    const auto g = static_cast<int32_t>(i);
    freed += ExclusivePages(s, g) * state_.groups[i].page_bytes;
    for (const int32_t page : s.pages[i]) {
      if (page != kNoPage) ++released_[{g, page}];
    }
  }
  spare_ += freed + victim->reserved;
  physical_ += freed;
  running_ -= 1 + s.pending_forks;
  if (!s.is_decoding()) {
    if (s.remaining() > limits_.max_step_tokens) {
      --long_prefills_;
    } else {
      short_prefill_tokens_ -= s.remaining();
    }
  }
  victim->preempted = true;
  plan_.preempt.push_back(s.id);
}

// In order of priority (waiting counts), preempted before new, then the client that received least.
const Sequence* Planner::NextWaiting(const std::set<SequenceId>& tried, bool only_short) const {
  const Sequence* best = nullptr;
  std::tuple<int64_t, bool, double, SequenceId> best_key;
  for (const Sequence* s : state_.waiting) {
    if (s->stalled || tried.contains(s->id)) continue;
    if (only_short && s->num_tokens() > limits_.max_step_tokens) continue;
    const bool is_new = s->preemptions == 0;
    double counter = 0;
    if (is_new) {
      counter = state_.fair_share.counter(s->client);
      const auto it = charged_.find(s->client);
      if (it != charged_.end()) counter += it->second;
    }
    const std::tuple<int64_t, bool, double, SequenceId> key = {EffectivePriority(*s), is_new,
                                                               counter, s->id};
    if (best == nullptr || key < best_key) {
      best = s;
      best_key = key;
    }
  }
  return best;
}

// Prompts of one step or less need no prefill slot, as long as one step does all of them.
bool Planner::HasSlot(const Sequence& s, int32_t remaining) const {
  if (remaining > limits_.max_step_tokens) return long_prefills_ < limits_.max_concurrent_prefills;
  return short_prefill_tokens_ == 0 ||
         short_prefill_tokens_ + remaining <= limits_.max_step_tokens;
}

int64_t Planner::AdmissionBytes(const Sequence& s, const PrefixCache::Match& match) const {
  int64_t bytes = ReserveBytes(state_.groups, limits_, s);
  if (match.nodes.empty()) return bytes;
  for (size_t i = 0; i < state_.groups.size(); ++i) {
    const auto g = static_cast<int32_t>(i);
    const model::CacheGroup& group = state_.groups[i];
    for (size_t p = 0; p < match.nodes.size(); ++p) {
      if (!PageIsLive(group.retention, match.tokens, static_cast<int64_t>(p))) continue;
      const int64_t refs = RefsLeft(g, state_.prefix_cache->page(match.nodes[p], g));
      if (group.retention.keeps_all()) {
        if (refs > 0) bytes -= group.page_bytes;
      } else if (refs == 1) {
        bytes += group.page_bytes;  // its holder now needs one more when it moves on
      }
    }
  }
  return bytes;
}

void Planner::PlanAdmissions() {
  int64_t room = spare_;
  for (const Entry& entry : entries_) {
    if (!entry.preempted) room -= SoftReserve(*entry.sequence);
  }
  std::set<SequenceId> tried;
  std::vector<SequenceId> failed;
  int slot_failures = 0;
  // A sequence that this very plan preempts is still in `running`, and so is not tried.
  while (running_ < limits_.max_running_sequences) {
    const Sequence* s = NextWaiting(tried, slot_failures >= kMaxSlotFailures);
    if (s == nullptr || slot_failures >= 2 * kMaxSlotFailures) break;
    tried.insert(s->id);
    PrefixCache::Match match;
    const bool needs_all =
        s->wants_hidden || (s->wants_prompt_logits && s->high_water < s->num_prompt);
    if (state_.prefix_cache != nullptr && s->use_prefix_cache && !needs_all) {
      match = state_.prefix_cache->Find(s->keys, s->num_tokens() - 1);
    }
    if (!HasSlot(*s, s->num_tokens() - match.tokens)) {
      ++slot_failures;
      continue;
    }
    const int64_t bytes = AdmissionBytes(*s, match);
    const bool fits =
        bytes <= room && running_ + 1 + s->pending_forks <= limits_.max_running_sequences;
    if (!fits) {
      if (s->times_bypassed >= limits_.max_bypasses) break;
      failed.push_back(s->id);
      if (failed.size() >= kMaxFailedAdmissions) break;
      continue;
    }
    room -= bytes;
    Admit(*s, std::move(match), bytes);
    plan_.bypassed.insert(plan_.bypassed.end(), failed.begin(), failed.end());
    const bool enough = std::any_of(failed.begin(), failed.end(), [&](SequenceId id) {
      const auto passes = std::count(plan_.bypassed.begin(), plan_.bypassed.end(), id);
      return state_.sequences.at(id)->times_bypassed + passes >= limits_.max_bypasses;
    });
    if (enough) break;
  }
}

void Planner::Admit(const Sequence& s, PrefixCache::Match match, int64_t bytes) {
  running_ += 1 + s.pending_forks;
  spare_ -= bytes;
  for (size_t i = 0; i < state_.groups.size(); ++i) {
    const auto g = static_cast<int32_t>(i);
    for (size_t p = 0; p < match.nodes.size(); ++p) {
      if (!PageIsLive(state_.groups[i].retention, match.tokens, static_cast<int64_t>(p))) continue;
      if (RefsLeft(g, state_.prefix_cache->page(match.nodes[p], g)) == 0) {
        physical_ -= state_.groups[i].page_bytes;
      }
    }
  }
  const int32_t remaining = s.num_tokens() - match.tokens;
  if (remaining > limits_.max_step_tokens) {
    ++long_prefills_;
  } else {
    short_prefill_tokens_ += remaining;
  }
  if (s.preemptions == 0) {
    charged_[s.client] +=
        FairShare::TokenWork(attended_keys_(s.num_prompt, model::NumericsClass::kPrompt), false) *
        remaining;
  }
  admitted_.push_back({&s, match.tokens});
  plan_.admit.push_back({.id = s.id,
                         .cached_tokens = match.tokens,
                         .generated_tokens = match.generated_tokens,
                         .nodes = std::move(match.nodes)});
}

int32_t Planner::LogitRows(const Sequence& s, int32_t begin, int32_t end) const {
  int32_t rows = 0;
  if (s.wants_prompt_logits && begin < s.num_prompt) {
    rows = std::max(0, end - std::max(begin, s.high_water));
  }
  if (end == s.num_tokens() && s.wants_last_logits) rows = std::max(rows, 1);
  return rows;
}

StepWork Planner::WorkOf(const Sequence& s, int32_t begin, int32_t end) const {
  return {.tokens = static_cast<double>(end - begin),
          .keys = SumAttendedKeys(attended_keys_, begin, end, s.num_prompt),
          .logits = static_cast<double>(LogitRows(s, begin, end))};
}

void Planner::PlanPrefills() {
  double seconds_left = std::numeric_limits<double>::infinity();
  if (!plan_.runs.empty()) {
    seconds_left = kBoundShare * absl::ToDoubleSeconds(limits_.inter_token_bound) / cost_.late -
                   cost_.Step(plan_.work);
  }
  std::vector<Prefill> prefills;
  for (const Entry& entry : entries_) {
    const Sequence& s = *entry.sequence;
    if (!entry.preempted && !s.is_decoding() && !s.stalled) {
      prefills.push_back({&s, s.num_computed});
    }
  }
  prefills.insert(prefills.end(), admitted_.begin(), admitted_.end());
  // Shortest remaining first; in turn, every few steps, the oldest. So a long prompt neither stops a
  // short one nor is stopped by a stream of them.
  const auto seconds_of = [&](const Prefill& p) {
    return cost_.Marginal(WorkOf(*p.sequence, p.first_position, p.sequence->num_tokens()));
  };
  std::vector<std::tuple<int64_t, double, SequenceId, size_t>> order;
  for (size_t i = 0; i < prefills.size(); ++i) {
    const Sequence& s = *prefills[i].sequence;
    order.emplace_back(EffectivePriority(s), seconds_of(prefills[i]), s.id, i);
  }
  std::sort(order.begin(), order.end());
  if (!order.empty() && state_.steps % kOldestTurn == kOldestTurn - 1) {
    const auto oldest = std::min_element(order.begin(), order.end(), [](auto& a, auto& b) {
      return std::get<2>(a) < std::get<2>(b);
    });
    std::rotate(order.begin(), oldest, oldest + 1);
  }
  for (const auto& [priority, seconds, id, index] : order) {
    if (tokens_left_ <= 0) break;
    if (!PlanChunk(prefills[index], &seconds_left)) break;
  }
}

// Plans the next chunk of one prompt; false where the step's time is used up.
bool Planner::PlanChunk(const Prefill& prefill, double* seconds_left) {
  const Sequence& s = *prefill.sequence;
  const int32_t begin = prefill.first_position;
  // One run has one numerics class.
  const int32_t goal = begin < s.num_prompt ? s.num_prompt : s.num_tokens();
  const int32_t unit = limits_.unit_tokens;
  const int32_t in_unit = begin % unit;
  int32_t end = std::min({goal, begin + tokens_left_, begin - in_unit + limits_.max_step_tokens});
  const auto fits_logits = [&](int32_t e) { return LogitRows(s, begin, e) <= logits_left_; };
  const auto fits_time = [&](int32_t e) {
    return cost_.Marginal(WorkOf(s, begin, e)) <= *seconds_left;
  };
  const auto last_where = [&](const auto& fits) {
    if (fits(end)) return end;
    int32_t low = begin, high = end;  // fits(low), not fits(high)
    while (high - low > 1) {
      const int32_t middle = low + (high - low) / 2;
      (fits(middle) ? low : high) = middle;
    }
    return low;
  };
  end = last_where(fits_logits);
  const int32_t most = end;
  const bool first = plan_.runs.empty() || plan_.runs.back().decode;
  if (std::isfinite(*seconds_left)) end = last_where(fits_time);
  // Chunks end at boundaries of units; at least at the next one, so that some prompt always gets on.
  const auto aligned = [&](int32_t e) { return e == goal ? e : e - e % unit; };
  const bool out_of_time = end < most;
  end = aligned(end);
  if (end <= begin && first) {
    end = std::min(most, begin - in_unit + unit);
    // What cannot be cut waits for a step with room for it.
    if (limits_.whole_units && begin < s.num_prompt && end != aligned(end)) end = begin;
  }
  if (end <= begin) return !out_of_time;
  const int64_t new_bytes =
      NewBytes(s, end) - (s.state == SequenceState::kWaiting ? NewBytes(s, begin) : 0);
  if (new_bytes > physical_) return true;
  physical_ -= new_bytes;
  const StepWork work = WorkOf(s, begin, end);
  *seconds_left -= cost_.Marginal(work);
  tokens_left_ -= end - begin;
  logits_left_ -= LogitRows(s, begin, end);
  plan_.runs.push_back({.id = s.id,
                        .first_position = begin,
                        .num_tokens = end - begin,
                        .num_logits = LogitRows(s, begin, end),
                        .numerics = begin < s.num_prompt ? model::NumericsClass::kPrompt
                                                         : model::NumericsClass::kGenerated});
  plan_.work += work;
  return !out_of_time;
}

}  // namespace

double SumAttendedKeys(const AttendedKeysFn& attended_keys, int64_t begin, int64_t end,
                       int64_t num_prompt) {
  const auto sum = [&](int64_t first, int64_t last, model::NumericsClass numerics) {
    if (last <= first) return 0.0;
    if (last - first == 1) return attended_keys(first, numerics);
    const double middle = attended_keys(first + (last - first) / 2, numerics);
    return (attended_keys(first, numerics) + 4 * middle + attended_keys(last - 1, numerics)) / 6 *
           static_cast<double>(last - first);
  };
  return sum(begin, std::min(end, num_prompt), model::NumericsClass::kPrompt) +
         sum(std::max(begin, num_prompt), end, model::NumericsClass::kGenerated);
}

int32_t ReserveTarget(const SchedulerLimits& limits, const Sequence& s) {
  const int32_t left = s.max_tokens - s.num_generated();
  // Preempted too often: it returns with room for everything, and needs to grow no more.
  const bool all = s.preemptions >= limits.max_preemptions;
  return s.num_tokens() + std::max(0, all ? left : std::min(left, limits.reserve_tokens));
}

int64_t ReserveBytes(const std::vector<model::CacheGroup>& groups, const SchedulerLimits& limits,
                     const Sequence& s) {
  const int32_t target = ReserveTarget(limits, s);
  return PeakBytes(groups, target, limits.max_step_tokens) + ForkBytes(groups, limits, s, target);
}

StepPlan PlanStep(const SchedulerState& state, const SchedulerLimits& limits, const StepCost& cost,
                  const AttendedKeysFn& attended_keys, absl::Time now) {
  return Planner(state, limits, cost, attended_keys, now).Plan();
}

}  // namespace longstride::engine

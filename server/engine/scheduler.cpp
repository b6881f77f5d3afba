#include "server/engine/scheduler.h"

#include <algorithm>
#include <utility>

#include "config/base/check.h"

namespace longstride::engine {

using kernels::kNoPage;
using kernels::kPageTokens;

namespace {

void InsertById(std::vector<Sequence*>* list, Sequence* sequence) {
  list->insert(std::lower_bound(list->begin(), list->end(), sequence,
                                [](const Sequence* a, const Sequence* b) { return a->id < b->id; }),
               sequence);
}

void EraseFrom(std::vector<Sequence*>* list, const Sequence* sequence) {
  const auto it = std::find(list->begin(), list->end(), sequence);
  LS_CHECK(it != list->end());
  list->erase(it);
}

}  // namespace

Scheduler::Scheduler(SchedulerState state, const SchedulerLimits& limits, EngineObserver* observer)
    : state_(std::move(state)), limits_(limits), observer_(observer) {
  LS_CHECK_GT(limits_.max_running_sequences, 0);
  LS_CHECK_LE(limits_.max_running_sequences, limits_.max_step_tokens);
  LS_CHECK_LE(limits_.max_running_sequences, limits_.max_step_logits);
  LS_CHECK(limits_.unit_tokens > 0 && limits_.unit_tokens % kPageTokens == 0);
  LS_CHECK_GE(limits_.max_step_tokens, limits_.unit_tokens);
}

Sequence* Scheduler::Find(SequenceId id) {
  const auto it = state_.sequences.find(id);
  return it == state_.sequences.end() ? nullptr : it->second.get();
}

Sequence* Scheduler::Add(std::unique_ptr<Sequence> sequence) {
  Sequence* s = sequence.get();
  s->state = SequenceState::kWaiting;
  s->pages.assign(state_.groups.size(), {});
  s->first_live.assign(state_.groups.size(), 0);
  LS_CHECK(state_.sequences.emplace(s->id, std::move(sequence)).second);
  InsertById(&state_.waiting, s);
  return s;
}

Sequence* Scheduler::Fork(Sequence* parent, std::unique_ptr<Sequence> fork) {
  LS_CHECK(parent->state == SequenceState::kRunning && parent->num_computed == parent->num_prompt);
  LS_CHECK_GT(parent->pending_forks, 0);
  --parent->pending_forks;
  Sequence* s = fork.get();
  const int32_t shared = parent->num_whole_pages(limits_.unit_tokens);
  s->state = SequenceState::kRunning;
  s->num_computed = shared * kPageTokens;
  s->high_water = s->num_prompt;
  s->reserved_tokens = parent->reserved_tokens;
  s->root_key = parent->root_key;
  s->keys.assign(parent->keys.begin(),
                 parent->keys.begin() + std::min<ptrdiff_t>(shared, std::ssize(parent->keys)));
  s->num_shared_pages = std::min(shared, parent->num_shared_pages);
  s->pages.resize(state_.groups.size());
  s->first_live = parent->first_live;
  for (size_t g = 0; g < state_.groups.size(); ++g) {
    s->pages[g].assign(parent->pages[g].begin(), parent->pages[g].begin() + shared);
    for (const int32_t page : s->pages[g]) {
      if (page != kNoPage) state_.allocator->Ref(static_cast<int32_t>(g), page);
    }
  }
  LS_CHECK(state_.sequences.emplace(s->id, std::move(fork)).second);
  InsertById(&state_.running, s);
  return s;
}

bool Scheduler::Release(int32_t group, int32_t page) {
  state_.allocator->Unref(group, page);
  return state_.allocator->refs(group, page) == 0 && !state_.allocator->cached(group, page);
}

void Scheduler::ReleasePages(Sequence* s, PageFreeCause cause) {
  for (size_t i = 0; i < state_.groups.size(); ++i) {
    const auto g = static_cast<int32_t>(i);
    int64_t freed = 0;
    for (const int32_t page : s->pages[i]) {
      if (page != kNoPage) freed += Release(g, page) ? 1 : 0;
    }
    if (freed > 0) observer_->PagesFreed(g, cause, freed);
  }
}

// A sequence that gives its pages back: a later one (the next turn of a conversation, or itself
// resumed) finds all of its whole pages, and what the query behind them sees.
void Scheduler::KeepTail(Sequence* s) {
  PrefixCache* cache = state_.prefix_cache.get();
  if (cache == nullptr || s->num_shared_pages == 0) return;
  cache->Snapshot({.keys = s->keys, .pages = &s->pages, .num_prompt_tokens = s->num_prompt},
                  s->num_shared_pages * kPageTokens);
  cache->Touch({s->keys.data(), static_cast<size_t>(s->num_shared_pages)});
}

void Scheduler::ForgetPages(Sequence* s) {
  s->pages.assign(state_.groups.size(), {});
  s->first_live.assign(state_.groups.size(), 0);
  s->num_computed = 0;
  s->num_shared_pages = 0;
  s->reserved_tokens = 0;
}

void Scheduler::Remove(SequenceId id, PageFreeCause cause) {
  Sequence* s = Find(id);
  LS_CHECK(s != nullptr);
  if (s->state == SequenceState::kRunning) {
    KeepTail(s);
    EraseFrom(&state_.running, s);
    ReleasePages(s, cause);
  } else {
    EraseFrom(&state_.waiting, s);
  }
  state_.sequences.erase(id);
}

void Scheduler::TakeMatch(const Admission& admission, Sequence* s) {
  for (size_t i = 0; i < state_.groups.size(); ++i) {
    const auto g = static_cast<int32_t>(i);
    const model::Retention& retention = state_.groups[i].retention;
    for (size_t p = 0; p < admission.nodes.size(); ++p) {
      int32_t page = kNoPage;
      if (PageIsLive(retention, admission.cached_tokens, static_cast<int64_t>(p))) {
        page = state_.prefix_cache->page(admission.nodes[p], g);
        if (page != kNoPage) state_.allocator->Ref(g, page);
      }
      s->pages[i].push_back(page);
    }
    if (!retention.keeps_all()) {
      s->first_live[i] = static_cast<int32_t>(std::min<int64_t>(
          std::ssize(admission.nodes), retention.end_dead_page(admission.cached_tokens)));
    }
  }
}

// Pages of the match that are in host memory get fresh ones, where several sequences match them one.
absl::Status Scheduler::RestoreMatch(const Admission& admission, Sequence* s,
                                     std::vector<Restored>* restored) {
  for (size_t i = 0; i < state_.groups.size(); ++i) {
    const auto g = static_cast<int32_t>(i);
    for (size_t p = 0; p < admission.nodes.size(); ++p) {
      const int32_t node = admission.nodes[p];
      if (!PageIsLive(state_.groups[i].retention, admission.cached_tokens,
                      static_cast<int64_t>(p)) ||
          !state_.prefix_cache->in_host(node, g)) {
        continue;
      }
      const auto same = std::find_if(restored->begin(), restored->end(), [&](const Restored& r) {
        return r.node == node && r.group == g;
      });
      if (same != restored->end()) {
        state_.allocator->Ref(g, same->page);
        s->pages[i][p] = same->page;
        continue;
      }
      ASSIGN_OR_RETURN(s->pages[i][p], AllocatePage(g));
      restored->push_back({node, g, s->pages[i][p]});
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<int32_t> Scheduler::AllocatePage(int32_t group) {
  PageAllocator& allocator = *state_.allocator;
  const int64_t over = allocator.used_bytes() + allocator.cached_bytes() +
                       allocator.page_bytes(group) - allocator.budget_bytes();
  if (over > 0 && state_.prefix_cache != nullptr) state_.prefix_cache->Free(over);
  const int32_t page = allocator.Allocate(group);
  if (page != kNoPage) return page;
  return absl::ResourceExhaustedError(
      StrCat("no page of cache group ", state_.groups[static_cast<size_t>(group)].name,
             " could be had: ", allocator.used_bytes(), " of ", allocator.budget_bytes(),
             " bytes in use"));
}

std::vector<model::PageCopy> Scheduler::TakeCopies() {
  if (state_.prefix_cache == nullptr) return {};
  return state_.prefix_cache->TakeCopies();
}

absl::Status Scheduler::AllocateFor(const PlannedRun& run, Sequence* s,
                                    std::vector<std::vector<int32_t>>* fresh) {
  fresh->resize(state_.groups.size());
  const int64_t want = (run.first_position + run.num_tokens + kPageTokens - 1) / kPageTokens;
  for (size_t i = 0; i < state_.groups.size(); ++i) {
    const auto g = static_cast<int32_t>(i);
    for (int64_t have = std::ssize(s->pages[i]); have < want; ++have) {
      ASSIGN_OR_RETURN(const int32_t page, AllocatePage(g));
      (*fresh)[i].push_back(page);
    }
  }
  return absl::OkStatus();
}

absl::Status Scheduler::Apply(const StepPlan& plan, absl::Time now) {
  PageAllocator& allocator = *state_.allocator;
  // First everything that can fail, on pages alone; sequences follow when it went well. Pages of
  // admitted sequences are put into their (empty) tables at once.
  for (const SequenceId id : plan.preempt) KeepTail(Find(id));
  allocator.Begin();
  std::vector<int64_t> freed(state_.groups.size(), 0);
  for (const SequenceId id : plan.preempt) {
    Sequence* s = Find(id);
    for (size_t g = 0; g < state_.groups.size(); ++g) {
      for (const int32_t page : s->pages[g]) {
        if (page != kNoPage) freed[g] += Release(static_cast<int32_t>(g), page) ? 1 : 0;
      }
    }
  }
  for (const Admission& admission : plan.admit) {
    if (!admission.nodes.empty()) state_.prefix_cache->Pin(admission.nodes);
    TakeMatch(admission, Find(admission.id));
  }
  std::vector<std::vector<std::vector<int32_t>>> fresh(plan.runs.size());
  std::vector<Restored> restored;
  absl::Status status;
  for (size_t i = 0; i < plan.admit.size() && status.ok(); ++i) {
    status = RestoreMatch(plan.admit[i], Find(plan.admit[i].id), &restored);
  }
  for (size_t i = 0; i < plan.runs.size() && status.ok(); ++i) {
    status = AllocateFor(plan.runs[i], Find(plan.runs[i].id), &fresh[i]);
  }
  for (const Admission& admission : plan.admit) {
    if (!admission.nodes.empty()) state_.prefix_cache->Unpin(admission.nodes);
  }
  if (!status.ok()) {
    allocator.Rollback();
    for (const Admission& admission : plan.admit) ForgetPages(Find(admission.id));
    ReportEvictions();
    return status;
  }
  allocator.Commit();
  for (const Restored& r : restored) state_.prefix_cache->Restore(r.node, r.group, r.page);

  for (const SequenceId id : plan.preempt) {
    Sequence* s = Find(id);
    observer_->Preempted(s->num_computed);
    ++s->preemptions;
    s->state = SequenceState::kWaiting;
    ForgetPages(s);
    EraseFrom(&state_.running, s);
    InsertById(&state_.waiting, s);
  }
  for (size_t g = 0; g < freed.size(); ++g) {
    if (freed[g] > 0) {
      observer_->PagesFreed(static_cast<int32_t>(g), PageFreeCause::kPreempt, freed[g]);
    }
  }
  for (const SequenceId id : plan.bypassed) ++Find(id)->times_bypassed;
  for (const Admission& admission : plan.admit) {
    Sequence* s = Find(admission.id);
    s->state = SequenceState::kRunning;
    s->reserved_tokens = ReserveTarget(limits_, *s);
    s->num_computed = admission.cached_tokens;
    s->num_shared_pages = static_cast<int32_t>(admission.nodes.size());
    if (!admission.nodes.empty()) {
      state_.prefix_cache->Touch({s->keys.data(), admission.nodes.size()});
    }
    EraseFrom(&state_.waiting, s);
    InsertById(&state_.running, s);
  }
  for (size_t i = 0; i < plan.runs.size(); ++i) {
    Sequence* s = Find(plan.runs[i].id);
    for (size_t g = 0; g < state_.groups.size(); ++g) {
      s->pages[g].insert(s->pages[g].end(), fresh[i][g].begin(), fresh[i][g].end());
    }
  }
  ++state_.steps;
  ReportEvictions();
  return absl::OkStatus();
}

void Scheduler::Complete(const PlannedRun& run) {
  Sequence* s = Find(run.id);
  LS_CHECK(s != nullptr && s->num_computed == run.first_position);
  const int32_t before = s->num_computed;
  s->num_computed += run.num_tokens;
  Share(s, before);
  FreeDeadPages(s);
  s->high_water = std::max(s->high_water, s->num_computed);
}

// Offers the whole pages that are new, and window snapshots at the cut points passed: every
// window_snapshot_interval tokens and at the end of the prompt (the end of the generated text
// follows in KeepTail).
void Scheduler::Share(Sequence* s, int32_t computed_before) {
  PrefixCache* cache = state_.prefix_cache.get();
  if (cache == nullptr || !s->use_prefix_cache) return;
  cache->ExtendKeys(s->root_key, {s->tokens.data(), static_cast<size_t>(s->num_computed)},
                    s->num_prompt, &s->keys);
  const int32_t whole = s->num_whole_pages(limits_.unit_tokens);
  const PrefixCache::Source source{.keys = s->keys, .pages = &s->pages,
                                   .num_prompt_tokens = s->num_prompt};
  if (whole > s->num_shared_pages) {
    cache->Insert(source, s->num_shared_pages, whole);
    s->num_shared_pages = whole;
  }
  if (!cache->has_windows()) return;
  const int32_t held_from = static_cast<int32_t>(LiveBoundary(computed_before, limits_.unit_tokens));
  const int32_t unit = limits_.unit_tokens;
  const int32_t wanted = limits_.window_snapshot_interval;
  const int32_t interval = wanted < kPageTokens ? 0 : std::max(1, wanted / unit) * unit;
  const auto snapshot = [&](int32_t cut) {
    if (cut > 0 && cut >= held_from && cut <= whole * kPageTokens) cache->Snapshot(source, cut);
  };
  if (interval > 0) {
    for (int32_t cut = (held_from + interval - 1) / interval * interval;
         cut <= whole * kPageTokens; cut += interval) {
      snapshot(cut);
    }
  }
  if (computed_before < s->num_prompt && s->num_computed >= s->num_prompt) {
    // The same prompt again recomputes its last token; a longer one reuses all whole pages.
    snapshot((s->num_prompt - 1) / unit * unit);
    snapshot(s->num_prompt / unit * unit);
  }
}

void Scheduler::FreeDeadPages(Sequence* s) {
  for (size_t i = 0; i < state_.groups.size(); ++i) {
    const auto g = static_cast<int32_t>(i);
    const model::Retention& retention = state_.groups[i].retention;
    if (retention.keeps_all()) continue;
    const int64_t end = std::min<int64_t>(std::ssize(s->pages[i]),
                                          retention.end_dead_page(LiveBoundary(s->num_computed, limits_.unit_tokens)));
    int64_t freed = 0;
    for (int64_t p = std::max<int64_t>(retention.first_dead_page(), s->first_live[i]); p < end; ++p) {
      int32_t& page = s->pages[i][p];
      if (page == kNoPage) continue;
      freed += Release(g, page) ? 1 : 0;
      page = kNoPage;
    }
    s->first_live[i] = static_cast<int32_t>(std::max<int64_t>(s->first_live[i], end));
    if (freed > 0) observer_->PagesFreed(g, PageFreeCause::kWindow, freed);
  }
}

void Scheduler::ReportEvictions() {
  if (state_.prefix_cache == nullptr) return;
  const std::vector<int64_t> evicted = state_.prefix_cache->TakeEvictedPages();
  for (size_t g = 0; g < evicted.size(); ++g) {
    if (evicted[g] > 0) {
      observer_->PagesFreed(static_cast<int32_t>(g), PageFreeCause::kEvict, evicted[g]);
    }
  }
}

void Scheduler::EndStep() {
  if (state_.prefix_cache == nullptr) return;
  state_.prefix_cache->Trim();
  ReportEvictions();
}

void Scheduler::FlushCache() {
  if (state_.prefix_cache == nullptr) return;
  state_.prefix_cache->Clear();
  for (Sequence* s : state_.running) s->num_shared_pages = 0;
  ReportEvictions();
}

absl::Status Scheduler::CheckIntegrity() const {
  if (absl::Status status = state_.allocator->CheckIntegrity(); !status.ok()) return status;
  std::map<std::pair<int32_t, int32_t>, int32_t> holders;
  for (const Sequence* s : state_.running) {
    for (size_t i = 0; i < state_.groups.size(); ++i) {
      const model::Retention& retention = state_.groups[i].retention;
      const int64_t boundary = LiveBoundary(s->num_computed, limits_.unit_tokens);
      for (size_t p = 0; p < s->pages[i].size(); ++p) {
        const int32_t page = s->pages[i][p];
        const bool live = PageIsLive(retention, boundary, static_cast<int64_t>(p));
        if (live != (page != kNoPage)) {
          return absl::InternalError(StrCat("sequence ", s->id, " group ", i, " page ", p,
                                            live ? " is missing" : " should have been given back"));
        }
        if (page != kNoPage) ++holders[{static_cast<int32_t>(i), page}];
      }
    }
  }
  for (const Sequence* s : state_.waiting) {
    for (const auto& table : s->pages) {
      if (!table.empty()) {
        return absl::InternalError(StrCat("waiting sequence ", s->id, " holds pages"));
      }
    }
  }
  std::vector<int64_t> used(state_.groups.size(), 0);
  for (const auto& [key, count] : holders) {
    ++used[key.first];
    if (state_.allocator->refs(key.first, key.second) != count) {
      return absl::InternalError(StrCat("group ", key.first, " page ", key.second, " has ",
                                        state_.allocator->refs(key.first, key.second),
                                        " references but ", count, " holders"));
    }
  }
  for (size_t g = 0; g < used.size(); ++g) {
    const int64_t counted = state_.allocator->counts(static_cast<int32_t>(g)).used;
    if (counted != used[g]) {
      return absl::InternalError(
          StrCat("group ", g, ": ", counted, " pages in use but ", used[g], " held"));
    }
  }
  if (state_.running.size() + state_.waiting.size() != state_.sequences.size()) {
    return absl::InternalError("a sequence is in no list or in two");
  }
  if (state_.prefix_cache != nullptr) return state_.prefix_cache->CheckIntegrity();
  return absl::OkStatus();
}

}  // namespace longstride::engine

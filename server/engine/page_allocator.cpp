#include "server/engine/page_allocator.h"

#include <utility>

#include "config/base/check.h"
#include "kernels/paged_kv.h"

namespace longstride::engine {

PageAllocator::PageAllocator(std::vector<Group> groups, int64_t budget_bytes)
    : budget_bytes_(budget_bytes) {
  for (const Group& config : groups) {
    LS_CHECK(config.page_bytes > 0 && config.num_pages >= 0);
    LS_CHECK_GE(config.num_pages, budget_bytes / config.page_bytes);
    GroupState state;
    state.config = config;
    state.pages.resize(static_cast<size_t>(config.num_pages));
    state.free_committed = IdSet(config.num_pages);
    state.free_uncommitted = IdSet(config.num_pages, /*full=*/true);
    groups_.push_back(std::move(state));
  }
}

PageAllocator::Counts PageAllocator::counts(int32_t group) const {
  const GroupState& g = groups_[group];
  return {.used = g.used,
          .cached = g.cached,
          .committed = g.config.num_pages - g.free_uncommitted.size()};
}

int32_t PageAllocator::Allocate(int32_t group) {
  if (fail_after_ >= 0 && fail_after_-- == 0) return kernels::kNoPage;
  GroupState& g = groups_[group];
  if (g.free_committed.empty()) {
    if (g.free_uncommitted.empty() || !MakeRoom(group)) return kernels::kNoPage;
    const int32_t fresh = g.free_uncommitted.Lowest();
    SetCommitted(group, fresh, true);
    Record(Change::Kind::kCommitMemory, group, fresh);
  }
  const int32_t page = g.free_committed.Lowest();
  g.free_committed.Erase(page);
  g.pages[page].refs = 1;
  ++g.used;
  used_bytes_ += g.config.page_bytes;
  Record(Change::Kind::kAllocate, group, page);
  return page;
}

// Takes memory from the groups with the most free memory, highest page first, until one more page of
// `group` fits.
bool PageAllocator::MakeRoom(int32_t group) {
  const int64_t need = groups_[group].config.page_bytes;
  if (used_bytes_ + cached_bytes_ + need > budget_bytes_) return false;
  while (committed_bytes_ + need > budget_bytes_) {
    int32_t donor = -1;
    int64_t most = 0;
    for (int32_t other = 0; other < num_groups(); ++other) {
      const int64_t bytes =
          groups_[other].free_committed.size() * groups_[other].config.page_bytes;
      if (bytes > most) {
        most = bytes;
        donor = other;
      }
    }
    LS_CHECK_GE(donor, 0);  // committed = used + cached + free
    const int32_t page = groups_[donor].free_committed.Highest();
    SetCommitted(donor, page, false);
    groups_[donor].decommits.push_back(page);
    Record(Change::Kind::kDecommitMemory, donor, page);
  }
  return true;
}

void PageAllocator::SetCommitted(int32_t group, int32_t page, bool committed) {
  GroupState& g = groups_[group];
  (committed ? g.free_uncommitted : g.free_committed).Erase(page);
  (committed ? g.free_committed : g.free_uncommitted).Insert(page);
  g.pages[page].committed = committed;
  committed_bytes_ += committed ? g.config.page_bytes : -g.config.page_bytes;
}

void PageAllocator::DoRef(int32_t group, int32_t page) {
  GroupState& g = groups_[group];
  Page& p = g.pages[page];
  if (p.refs++ > 0) return;
  if (p.cached) {
    --g.cached;
    cached_bytes_ -= g.config.page_bytes;
  } else {
    g.free_committed.Erase(page);
  }
  ++g.used;
  used_bytes_ += g.config.page_bytes;
}

void PageAllocator::DoUnref(int32_t group, int32_t page) {
  GroupState& g = groups_[group];
  Page& p = g.pages[page];
  LS_CHECK_GT(p.refs, 0);
  if (--p.refs > 0) return;
  --g.used;
  used_bytes_ -= g.config.page_bytes;
  if (p.cached) {
    ++g.cached;
    cached_bytes_ += g.config.page_bytes;
  } else {
    g.free_committed.Insert(page);
  }
}

void PageAllocator::Ref(int32_t group, int32_t page) {
  LS_CHECK(refs(group, page) > 0 || cached(group, page));
  DoRef(group, page);
  Record(Change::Kind::kRef, group, page);
}

void PageAllocator::Unref(int32_t group, int32_t page) {
  DoUnref(group, page);
  Record(Change::Kind::kUnref, group, page);
}

void PageAllocator::SetCached(int32_t group, int32_t page) {
  Page& p = groups_[group].pages[page];
  LS_CHECK(p.refs > 0 && !p.cached);
  p.cached = true;
}

void PageAllocator::ClearCached(int32_t group, int32_t page) {
  GroupState& g = groups_[group];
  Page& p = g.pages[page];
  LS_CHECK(p.cached);
  p.cached = false;
  if (p.refs > 0) return;
  --g.cached;
  cached_bytes_ -= g.config.page_bytes;
  g.free_committed.Insert(page);
}

void PageAllocator::Record(Change::Kind kind, int32_t group, int32_t page) {
  if (recording_) journal_.push_back({kind, group, page});
}

void PageAllocator::Begin() {
  LS_CHECK(!recording_);
  recording_ = true;
  journal_.clear();
}

void PageAllocator::Commit() {
  LS_CHECK(recording_);
  recording_ = false;
}

void PageAllocator::Rollback() {
  LS_CHECK(recording_);
  recording_ = false;
  for (; !journal_.empty(); journal_.pop_back()) {
    const Change& change = journal_.back();
    switch (change.kind) {
      case Change::Kind::kAllocate:
      case Change::Kind::kRef:
        DoUnref(change.group, change.page);
        break;
      case Change::Kind::kUnref:
        DoRef(change.group, change.page);
        break;
      case Change::Kind::kCommitMemory:
        SetCommitted(change.group, change.page, false);
        break;
      case Change::Kind::kDecommitMemory:
        SetCommitted(change.group, change.page, true);
        groups_[change.group].decommits.pop_back();
        break;
    }
  }
}

std::vector<std::vector<int32_t>> PageAllocator::TakeDecommits() {
  std::vector<std::vector<int32_t>> taken(groups_.size());
  for (size_t i = 0; i < groups_.size(); ++i) {
    for (const int32_t page : groups_[i].decommits) {
      if (!groups_[i].pages[page].committed) taken[i].push_back(page);
    }
    groups_[i].decommits.clear();
  }
  return taken;
}

absl::Status PageAllocator::CheckIntegrity() const {
  int64_t used_bytes = 0, cached_bytes = 0, committed_bytes = 0;
  for (size_t i = 0; i < groups_.size(); ++i) {
    const GroupState& g = groups_[i];
    int64_t used = 0, cached = 0, committed = 0;
    for (int32_t id = 0; id < g.config.num_pages; ++id) {
      const Page& p = g.pages[id];
      const bool free = p.refs == 0 && !p.cached;
      if (p.refs < 0) return absl::InternalError(StrCat("group ", i, " page ", id, ": refs < 0"));
      if (g.free_committed.Contains(id) != (free && p.committed) ||
          g.free_uncommitted.Contains(id) != (free && !p.committed) || (!free && !p.committed)) {
        return absl::InternalError(StrCat("group ", i, " page ", id, ": wrong free set"));
      }
      used += p.refs > 0;
      cached += p.refs == 0 && p.cached;
      committed += p.committed;
    }
    if (used != g.used || cached != g.cached) {
      return absl::InternalError(StrCat("group ", i, ": counts ", g.used, " used, ", g.cached,
                                        " cached, but pages say ", used, " and ", cached));
    }
    used_bytes += used * g.config.page_bytes;
    cached_bytes += cached * g.config.page_bytes;
    committed_bytes += committed * g.config.page_bytes;
  }
  if (used_bytes != used_bytes_ || cached_bytes != cached_bytes_ ||
      committed_bytes != committed_bytes_) {
    return absl::InternalError("page allocator: byte totals disagree with the pages");
  }
  if (committed_bytes > budget_bytes_) {
    return absl::InternalError(
        StrCat("page allocator: ", committed_bytes, " bytes committed of ", budget_bytes_));
  }
  return absl::OkStatus();
}

}  // namespace longstride::engine

// Accounts for the physical pages of every cache group: who holds them, which are free, and which
// hold memory. Touches no memory itself.
#pragma once

#include <cstdint>
#include <vector>

#include "config/base/status.h"
#include "server/engine/id_set.h"

namespace longstride::engine {

// A page is in use while a sequence holds a reference or the prefix cache holds it. A page that
// nobody holds is free; its memory stays committed until another group needs the bytes. One byte
// budget covers the committed pages of all groups. Engine thread only.
class PageAllocator {
 public:
  struct Group {
    int32_t num_pages = 0;  // ids 0 .. n-1; at least budget / page_bytes
    int64_t page_bytes = 0;
  };
  struct Counts {
    int64_t used = 0;       // held by at least one sequence
    int64_t cached = 0;     // held by the prefix cache alone
    int64_t committed = 0;  // used + cached + free with memory
  };

  PageAllocator(std::vector<Group> groups, int64_t budget_bytes);

  int32_t num_groups() const { return static_cast<int32_t>(groups_.size()); }
  int64_t page_bytes(int32_t group) const { return groups_[group].config.page_bytes; }
  int64_t budget_bytes() const { return budget_bytes_; }
  int64_t used_bytes() const { return used_bytes_; }      // by sequences, shared pages once
  int64_t cached_bytes() const { return cached_bytes_; }  // by the prefix cache alone
  int64_t committed_bytes() const { return committed_bytes_; }
  Counts counts(int32_t group) const;

  int32_t refs(int32_t group, int32_t page) const { return groups_[group].pages[page].refs; }
  bool cached(int32_t group, int32_t page) const { return groups_[group].pages[page].cached; }

  // A free page with one reference; kNoPage where the budget is full of pages in use. Prefers the
  // lowest free page that has memory, then a new one, then takes memory from other groups' free
  // pages (TakeDecommits).
  int32_t Allocate(int32_t group);
  void Ref(int32_t group, int32_t page);    // REQUIRES: in use
  void Unref(int32_t group, int32_t page);  // REQUIRES: refs > 0
  // The prefix cache's hold on a page. REQUIRES: in use / cached.
  void SetCached(int32_t group, int32_t page);
  void ClearCached(int32_t group, int32_t page);

  // Between Begin and Rollback or Commit, Allocate, Ref and Unref are recorded; Rollback undoes
  // them, last first. The prefix cache may drop pages meanwhile: those stay dropped.
  void Begin();
  void Commit();
  void Rollback();

  // Pages per group whose memory must be given back before the next step runs; clears the list.
  std::vector<std::vector<int32_t>> TakeDecommits();

  // INTERNAL where counters and page states disagree.
  absl::Status CheckIntegrity() const;

  // Fault injection: the n-th Allocate from now (0: the next) fails once; negative: none does.
  void FailAllocationAfter(int64_t n) { fail_after_ = n; }
  bool FailurePending() const { return fail_after_ >= 0; }

 private:
  struct Page {
    int32_t refs = 0;
    bool cached = false;
    bool committed = false;
  };
  struct GroupState {
    Group config;
    std::vector<Page> pages;
    IdSet free_committed;
    IdSet free_uncommitted;
    std::vector<int32_t> decommits;
    int64_t used = 0;
    int64_t cached = 0;
  };
  struct Change {
    enum class Kind : uint8_t { kAllocate, kCommitMemory, kDecommitMemory, kRef, kUnref };
    Kind kind;
    int32_t group;
    int32_t page;
  };

  bool MakeRoom(int32_t group);
  void DoRef(int32_t group, int32_t page);
  void DoUnref(int32_t group, int32_t page);
  void SetCommitted(int32_t group, int32_t page, bool committed);  // of a free page
  void Record(Change::Kind kind, int32_t group, int32_t page);

  std::vector<GroupState> groups_;
  int64_t budget_bytes_ = 0;
  int64_t used_bytes_ = 0;
  int64_t cached_bytes_ = 0;
  int64_t committed_bytes_ = 0;
  bool recording_ = false;
  std::vector<Change> journal_;
  int64_t fail_after_ = -1;
};

}  // namespace longstride::engine

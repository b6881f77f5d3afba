// Pages of finished and running sequences, found again by the exact tokens they hold.
#pragma once

#include <cstdint>
#include <set>
#include <span>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "config/base/status.h"
#include "model/cache_group.h"
#include "server/engine/id_set.h"
#include "server/engine/page_allocator.h"
#include "server/engine/siphash.h"

namespace longstride::engine {

// Page ids of one sequence, [group][logical page]; kNoPage where none is held.
using PageTables = std::vector<std::vector<int32_t>>;

// Whether a sequence whose next query stands at `next` still needs logical page `page`.
inline bool PageIsLive(const model::Retention& retention, int64_t next, int64_t page) {
  return page < retention.first_dead_page() || page >= retention.end_dead_page(next);
}

// A tree of nodes, one per distinct prefix of whole pages. A node holds its page of every group that
// keeps all pages; of windowed groups it holds a page only as part of a *window snapshot*: the pages
// that the next query behind some cut point sees. A prefix of L tokens can be reused where every
// group still has what the query at L sees. Engine thread only, except for the key functions, which
// are const and thread-safe.
//
// With slots in host memory a page that would be given up is moved there instead, least recently used
// first, and given up only when the slots are needed; an admission that matches it moves it back
// (docs/decisions/0008). A page is in one of the two places, never in both.
class PrefixCache {
 public:
  struct Options {
    Hash128 key;  // secret: collisions cannot be constructed without it
    // Prompt and generated tokens have the same bits, so that pages with generated tokens may serve
    // as a prompt's pages. Otherwise they only match tokens of the same role.
    bool one_numerics_class = true;
    int64_t max_cached_bytes = 0;  // pages that only the cache holds
    // A page's bits depend on the tokens up to the end of its unit (SchedulerLimits::unit_tokens):
    // prefixes match in whole units.
    int32_t unit_tokens = kernels::kPageTokens;
    std::vector<int32_t> host_slots{};  // by group; empty: none
  };
  struct Match {
    int32_t tokens = 0;            // whole units
    int32_t generated_tokens = 0;  // of these, in pages that hold another request's output
    std::vector<int32_t> nodes;    // one per page
  };
  // What a sequence offers for sharing.
  struct Source {
    std::span<const Hash128> keys;  // one per whole page
    const PageTables* pages = nullptr;
    int32_t num_prompt_tokens = 0;
  };

  PrefixCache(PageAllocator* allocator, std::vector<model::Retention> groups, Options options);

  // The key before the first page: everything but tokens that the cached bits depend on.
  Hash128 RootKey(std::span<const std::string_view> parts) const;
  // Appends the keys of the pages of `tokens`' whole units that `keys` lacks.
  void ExtendKeys(const Hash128& root, std::span<const int32_t> tokens, int32_t num_prompt_tokens,
                  std::vector<Hash128>* keys) const;

  // The longest usable prefix of at most `max_tokens` tokens. Changes nothing.
  Match Find(std::span<const Hash128> keys, int32_t max_tokens) const;
  // The page that a node holds of a group, or kNoPage: it has none, or it is in host memory.
  int32_t page(int32_t node, int32_t group) const { return nodes_[node].pages[group]; }
  bool in_host(int32_t node, int32_t group) const { return nodes_[node].slots[group] != kNoSlot; }

  // A match's nodes stay while they are pinned.
  void Pin(std::span<const int32_t> nodes);
  void Unpin(std::span<const int32_t> nodes);
  // The node's page of the group comes back from host memory to `page`, which a sequence holds.
  // REQUIRES: in_host.
  void Restore(int32_t node, int32_t group, int32_t page);
  // What must be copied before the pages freed or handed out since the last call are written to:
  // those to host memory first. No slot is written twice.
  std::vector<model::PageCopy> TakeCopies();
  int64_t host_slots_used(int32_t group) const {
    return host_slots_.empty() ? 0 : options_.host_slots[group] - host_slots_[group].size();
  }

  // Marks the prefix as just used.
  void Touch(std::span<const Hash128> keys);
  // Adds the nodes of pages [first, end) of the source. Pages that are there already stay.
  void Insert(const Source& source, int32_t first, int32_t end);
  // Keeps what the query behind `tokens` (whole pages, inserted before) sees in windowed groups.
  void Snapshot(const Source& source, int32_t tokens);

  // Gives up (or moves to host memory) least recently used prefixes, ends first, until `bytes` were
  // freed or nothing that is held by the cache alone is left; returns the bytes freed.
  int64_t Free(int64_t bytes);
  // Keeps within max_cached_bytes.
  void Trim();
  void Clear();

  bool has_windows() const { return has_windows_; }
  int64_t num_nodes() const { return static_cast<int64_t>(index_.size()); }
  // Pages freed by group since the last call.
  std::vector<int64_t> TakeEvictedPages();
  absl::Status CheckIntegrity() const;

 private:
  using Order = std::tuple<uint64_t, int32_t, int32_t>;  // tick, -depth, node
  static constexpr int32_t kNoSlot = -1;
  struct Node {
    Hash128 key{};
    int32_t parent = -1;
    int32_t children = 0;
    int32_t children_in_pages = 0;  // of these, children that hold a page
    int32_t depth = 0;
    int32_t pins = 0;
    uint64_t tick = 0;
    bool generated = false;
    bool in_pages = false;         // holds a page, as listed
    std::vector<int32_t> pages{};  // by group
    std::vector<int32_t> slots{};  // by group, in host memory
  };

  Order OrderOf(int32_t node) const {
    return {nodes_[node].tick, -nodes_[node].depth, node};
  }
  int32_t Lookup(const Hash128& key) const;
  int32_t AddNode(const Hash128& key, int32_t parent, int32_t depth);
  // Takes a node out of the ordered lists, and puts it where it belongs now. Between the two calls
  // its pages, slots and tick may change.
  void Unlist(int32_t node);
  void List(int32_t node);
  bool HoldsPage(const Node& n) const;
  bool HoldsWindowPage(const Node& n) const;
  void SetTick(int32_t node, uint64_t tick);
  bool Referenced(int32_t node) const;
  bool HasIdleWindowPages(int32_t node) const;
  // Of a node that is not listed.
  int64_t DropPage(int32_t node, int32_t group);
  int32_t TakeSlot(int32_t group);
  bool MoveToHost(int32_t node, int32_t group, int64_t* freed);
  int64_t FreeWindowPages(int32_t node);
  // Frees the pages of a node that no sequence reads; -1 if it must stay.
  int64_t Evict(int32_t node);
  int64_t Remove(int32_t node);
  bool RemoveFromHost();

  PageAllocator* allocator_;
  std::vector<model::Retention> groups_;
  Options options_;
  bool has_windows_ = false;
  int64_t max_nodes_ = 0;
  uint64_t tick_ = 0;
  std::vector<Node> nodes_;
  std::vector<int32_t> free_nodes_;
  std::unordered_map<Hash128, int32_t> index_;
  std::set<Order> leaves_;       // nodes that hold a page, and none of whose children does
  std::set<Order> host_leaves_;  // nodes without children that hold no page
  std::set<Order> snapshots_;    // nodes that hold a page of a windowed group
  std::vector<IdSet> host_slots_;  // by group: the free ones
  std::vector<model::PageCopy> copies_;
  std::vector<int64_t> evicted_;
};

}  // namespace longstride::engine

#include "server/engine/prefix_cache.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

#include "config/base/check.h"

namespace longstride::engine {

using kernels::kNoPage;
using kernels::kPageTokens;

PrefixCache::PrefixCache(PageAllocator* allocator, std::vector<model::Retention> groups,
                         Options options)
    : allocator_(allocator),
      groups_(std::move(groups)),
      options_(options),
      evicted_(groups_.size(), 0) {
  for (size_t g = 0; g < groups_.size(); ++g) {
    has_windows_ = has_windows_ || !groups_[g].keeps_all();
    max_nodes_ = std::max(max_nodes_,
                          allocator->budget_bytes() / allocator->page_bytes(static_cast<int32_t>(g)));
  }
  LS_CHECK(options_.unit_tokens > 0 && options_.unit_tokens % kPageTokens == 0);
  for (const int32_t slots : options_.host_slots) {
    host_slots_.emplace_back(slots, /*full=*/true);
    max_nodes_ += slots;
  }
  LS_CHECK(host_slots_.empty() || host_slots_.size() == groups_.size());
  // Nodes without pages (models whose layers are all windowed) are bounded too.
  max_nodes_ = 4 * max_nodes_ + 1024;
}

Hash128 PrefixCache::RootKey(std::span<const std::string_view> parts) const {
  std::string text;
  for (const std::string_view part : parts) {
    const uint64_t size = part.size();
    text.append(reinterpret_cast<const char*>(&size), sizeof(size));
    text.append(part);
  }
  return SipHash128(options_.key, text.data(), text.size());
}

void PrefixCache::ExtendKeys(const Hash128& root, std::span<const int32_t> tokens,
                             int32_t num_prompt_tokens, std::vector<Hash128>* keys) const {
  const auto unit = static_cast<size_t>(options_.unit_tokens);
  const size_t pages_of_unit = unit / kPageTokens;
  std::vector<unsigned char> block;
  const auto append = [&block](const void* data, size_t bytes) {
    const auto* from = static_cast<const unsigned char*>(data);
    block.insert(block.end(), from, from + bytes);
  };
  for (size_t u = keys->size() / pages_of_unit; (u + 1) * unit <= tokens.size(); ++u) {
    const Hash128 parent = keys->empty() ? root : keys->back();
    // The numerics classes of the unit's tokens.
    const uint64_t prompt_tokens =
        options_.one_numerics_class
            ? unit
            : std::clamp<int64_t>(num_prompt_tokens - static_cast<int64_t>(u * unit), 0,
                                  options_.unit_tokens);
    block.clear();
    append(&parent, sizeof(parent));
    append(&prompt_tokens, sizeof(prompt_tokens));
    append(tokens.data() + u * unit, unit * sizeof(tokens[0]));
    for (uint64_t page = 0; page < pages_of_unit; ++page) {
      if (page > 0) append(&page, sizeof(page));
      keys->push_back(SipHash128(options_.key, block.data(), block.size()));
    }
  }
}

int32_t PrefixCache::Lookup(const Hash128& key) const {
  const auto it = index_.find(key);
  return it == index_.end() ? -1 : it->second;
}

PrefixCache::Match PrefixCache::Find(std::span<const Hash128> keys, int32_t max_tokens) const {
  Match match;
  const size_t max_pages = std::min(keys.size(), static_cast<size_t>(max_tokens / kPageTokens));
  // runs[g]: pages of group g in a row up to and with the current one; usable: the longest prefix so
  // far where every windowed group has its sinks and its window.
  std::vector<int64_t> runs(groups_.size(), 0), heads(groups_.size(), 0);
  size_t usable = 0;
  for (size_t p = 0; p < max_pages; ++p) {
    const int32_t node = Lookup(keys[p]);
    if (node < 0) break;
    match.nodes.push_back(node);
    bool complete = true;
    const auto end = static_cast<int64_t>(p) + 1;
    for (size_t g = 0; g < groups_.size(); ++g) {
      const model::Retention& retention = groups_[g];
      if (retention.keeps_all()) continue;
      const bool has = nodes_[node].pages[g] != kNoPage || nodes_[node].slots[g] != kNoSlot;
      runs[g] = has ? runs[g] + 1 : 0;
      if (has && heads[g] == static_cast<int64_t>(p)) heads[g] = end;
      const int64_t window_begin =
          std::max(retention.first_dead_page(), retention.end_dead_page(end * kPageTokens));
      const int64_t sink_end = std::min(retention.first_dead_page(), end);
      complete = complete && runs[g] >= end - window_begin && heads[g] >= sink_end;
    }
    if (complete && end * kPageTokens % options_.unit_tokens == 0) usable = p + 1;
  }
  match.nodes.resize(usable);
  match.tokens = static_cast<int32_t>(usable) * kPageTokens;
  for (const int32_t node : match.nodes) {
    if (nodes_[node].generated) match.generated_tokens += kPageTokens;
  }
  return match;
}

bool PrefixCache::HoldsPage(const Node& n) const {
  return std::any_of(n.pages.begin(), n.pages.end(), [](int32_t page) { return page != kNoPage; });
}

bool PrefixCache::HoldsWindowPage(const Node& n) const {
  for (size_t g = 0; g < groups_.size(); ++g) {
    if (!groups_[g].keeps_all() && n.pages[g] != kNoPage) return true;
  }
  return false;
}

void PrefixCache::Unlist(int32_t node) {
  leaves_.erase(OrderOf(node));
  host_leaves_.erase(OrderOf(node));
  snapshots_.erase(OrderOf(node));
}

void PrefixCache::List(int32_t node) {
  Unlist(node);  // a child that was removed meanwhile has listed it
  Node& n = nodes_[node];
  const bool in_pages = HoldsPage(n);
  if (in_pages != n.in_pages) {
    n.in_pages = in_pages;
    if (n.parent >= 0) {
      Unlist(n.parent);
      nodes_[n.parent].children_in_pages += in_pages ? 1 : -1;
      List(n.parent);
    }
  }
  if (in_pages && n.children_in_pages == 0) leaves_.insert(OrderOf(node));
  if (!in_pages && n.children == 0) host_leaves_.insert(OrderOf(node));
  if (HoldsWindowPage(n)) snapshots_.insert(OrderOf(node));
}

void PrefixCache::SetTick(int32_t node, uint64_t tick) {
  if (nodes_[node].tick == tick) return;
  Unlist(node);
  nodes_[node].tick = tick;
  List(node);
}

void PrefixCache::Pin(std::span<const int32_t> nodes) {
  for (const int32_t node : nodes) ++nodes_[node].pins;
}

void PrefixCache::Unpin(std::span<const int32_t> nodes) {
  for (const int32_t node : nodes) --nodes_[node].pins;
}

void PrefixCache::Restore(int32_t node, int32_t group, int32_t page) {
  int32_t& slot = nodes_[node].slots[group];
  LS_CHECK(slot != kNoSlot && nodes_[node].pages[group] == kNoPage);
  Unlist(node);
  copies_.push_back({.group = group, .page = page, .slot = slot, .to_host = false});
  host_slots_[group].Insert(slot);
  slot = kNoSlot;
  allocator_->SetCached(group, page);
  nodes_[node].pages[group] = page;
  List(node);
}

void PrefixCache::Touch(std::span<const Hash128> keys) {
  ++tick_;
  for (const Hash128& key : keys) {
    const int32_t node = Lookup(key);
    if (node < 0) break;
    SetTick(node, tick_);
  }
}

int32_t PrefixCache::AddNode(const Hash128& key, int32_t parent, int32_t depth) {
  int32_t node;
  if (free_nodes_.empty()) {
    node = static_cast<int32_t>(nodes_.size());
    nodes_.emplace_back();
  } else {
    node = free_nodes_.back();
    free_nodes_.pop_back();
  }
  Node& n = nodes_[node];
  n = Node{.key = key, .parent = parent, .depth = depth, .tick = tick_};
  n.pages.assign(groups_.size(), kNoPage);
  n.slots.assign(groups_.size(), kNoSlot);
  index_.emplace(key, node);
  if (parent >= 0) {
    Unlist(parent);
    ++nodes_[parent].children;
    List(parent);
  }
  return node;
}

void PrefixCache::Insert(const Source& source, int32_t first, int32_t end) {
  ++tick_;
  // Ancestors may have been given up meanwhile: they come back with this sequence's pages.
  while (first > 0 && Lookup(source.keys[first - 1]) < 0) --first;
  int32_t parent = first == 0 ? -1 : Lookup(source.keys[first - 1]);
  for (int32_t p = first; p < end; ++p) {
    int32_t node = Lookup(source.keys[p]);
    if (node < 0) {
      node = AddNode(source.keys[p], parent, p);
      nodes_[node].generated = (p + 1) * kPageTokens > source.num_prompt_tokens;
      for (size_t g = 0; g < groups_.size(); ++g) {
        if (!groups_[g].keeps_all()) continue;
        const int32_t page = (*source.pages)[g][p];
        allocator_->SetCached(static_cast<int32_t>(g), page);
        nodes_[node].pages[g] = page;
      }
      List(node);
    }
    SetTick(node, tick_);
    parent = node;
  }
  while (num_nodes() > max_nodes_ && RemoveFromHost()) {
  }
  for (auto leaf = leaves_.begin(); num_nodes() > max_nodes_ && leaf != leaves_.end();) {
    const int32_t node = std::get<2>(*leaf);
    if (nodes_[node].children > 0 || nodes_[node].pins > 0) {
      ++leaf;
      continue;
    }
    Remove(node);
    leaf = leaves_.begin();
  }
}

void PrefixCache::Snapshot(const Source& source, int32_t tokens) {
  const int32_t num_pages = tokens / kPageTokens;
  if (num_pages == 0 || Lookup(source.keys[num_pages - 1]) < 0) return;
  for (size_t g = 0; g < groups_.size(); ++g) {
    if (groups_[g].keeps_all()) continue;
    for (int32_t p = 0; p < num_pages; ++p) {
      if (!PageIsLive(groups_[g], tokens, p)) {
        p = static_cast<int32_t>(groups_[g].end_dead_page(tokens)) - 1;
        continue;
      }
      const int32_t node = Lookup(source.keys[p]);
      const int32_t page = (*source.pages)[g][p];
      if (node < 0 || page == kNoPage || nodes_[node].pages[g] != kNoPage ||
          nodes_[node].slots[g] != kNoSlot) {
        continue;
      }
      Unlist(node);
      allocator_->SetCached(static_cast<int32_t>(g), page);
      nodes_[node].pages[g] = page;
      List(node);
    }
  }
}

bool PrefixCache::Referenced(int32_t node) const {
  for (size_t g = 0; g < groups_.size(); ++g) {
    const int32_t page = nodes_[node].pages[g];
    if (page != kNoPage && allocator_->refs(static_cast<int32_t>(g), page) > 0) return true;
  }
  return false;
}

bool PrefixCache::HasIdleWindowPages(int32_t node) const {
  for (size_t g = 0; g < groups_.size(); ++g) {
    const int32_t page = nodes_[node].pages[g];
    if (!groups_[g].keeps_all() && page != kNoPage &&
        allocator_->refs(static_cast<int32_t>(g), page) == 0) {
      return true;
    }
  }
  return false;
}

int64_t PrefixCache::DropPage(int32_t node, int32_t group) {
  int32_t& page = nodes_[node].pages[group];
  if (page == kNoPage) return 0;
  const bool idle = allocator_->refs(group, page) == 0;
  allocator_->ClearCached(group, page);
  page = kNoPage;
  if (!idle) return 0;
  ++evicted_[group];
  return allocator_->page_bytes(group);
}

std::vector<model::PageCopy> PrefixCache::TakeCopies() {
  std::vector<model::PageCopy> taken;
  // Of a slot that was given up again meanwhile only the last page counts.
  std::set<std::pair<int32_t, int32_t>> written;
  for (auto copy = copies_.rbegin(); copy != copies_.rend(); ++copy) {
    if (copy->to_host && !written.emplace(copy->group, copy->slot).second) continue;
    taken.push_back(*copy);
  }
  std::reverse(taken.begin(), taken.end());
  copies_.clear();
  return taken;
}

int32_t PrefixCache::TakeSlot(int32_t group) {
  IdSet& free = host_slots_[group];
  while (free.empty() && RemoveFromHost()) {
  }
  if (free.empty()) return kNoSlot;
  const int32_t slot = free.Lowest();
  free.Erase(slot);
  return slot;
}

// REQUIRES: the node is not listed, and holds the page alone.
bool PrefixCache::MoveToHost(int32_t node, int32_t group, int64_t* freed) {
  if (host_slots_.empty()) return false;
  const int32_t slot = TakeSlot(group);
  if (slot == kNoSlot) return false;
  copies_.push_back(
      {.group = group, .page = nodes_[node].pages[group], .slot = slot, .to_host = true});
  nodes_[node].slots[group] = slot;
  *freed += DropPage(node, group);
  return true;
}

int64_t PrefixCache::FreeWindowPages(int32_t node) {
  int64_t freed = 0;
  Unlist(node);
  for (size_t i = 0; i < groups_.size(); ++i) {
    const auto g = static_cast<int32_t>(i);
    const int32_t page = nodes_[node].pages[i];
    if (groups_[i].keeps_all() || page == kNoPage || allocator_->refs(g, page) > 0) continue;
    if (!MoveToHost(node, g, &freed)) freed += DropPage(node, g);
  }
  List(node);
  return freed;
}

int64_t PrefixCache::Evict(int32_t node) {
  int64_t freed = 0;
  Unlist(node);
  bool moved = !host_slots_.empty() && !Referenced(node);
  for (size_t i = 0; i < groups_.size() && moved; ++i) {
    const auto g = static_cast<int32_t>(i);
    if (nodes_[node].pages[i] == kNoPage || MoveToHost(node, g, &freed)) continue;
    // A snapshot may go; a prefix without a page of its own is none.
    moved = !groups_[i].keeps_all();
    if (moved) freed += DropPage(node, g);
  }
  List(node);
  if (moved) return freed;
  if (nodes_[node].children == 0 && nodes_[node].pins == 0) return freed + Remove(node);
  // Children without pages, of a model whose groups are all windowed.
  const bool keeps = std::any_of(groups_.begin(), groups_.end(),
                                 [](const model::Retention& r) { return r.keeps_all(); });
  if (keeps || nodes_[node].pins > 0) return freed > 0 ? freed : -1;
  return freed + FreeWindowPages(node);
}

// REQUIRES: no children.
int64_t PrefixCache::Remove(int32_t node) {
  Node& n = nodes_[node];
  LS_CHECK(n.children == 0 && n.pins == 0);
  Unlist(node);
  int64_t freed = 0;
  for (size_t g = 0; g < groups_.size(); ++g) {
    freed += DropPage(node, static_cast<int32_t>(g));
    if (n.slots[g] != kNoSlot) host_slots_[g].Insert(std::exchange(n.slots[g], kNoSlot));
  }
  index_.erase(n.key);
  if (n.parent >= 0) {
    Unlist(n.parent);
    --nodes_[n.parent].children;
    nodes_[n.parent].children_in_pages -= n.in_pages ? 1 : 0;
    List(n.parent);
  }
  free_nodes_.push_back(node);
  return freed;
}

// The least recently used node that holds no page and leads to none.
bool PrefixCache::RemoveFromHost() {
  for (const Order& order : host_leaves_) {
    const int32_t node = std::get<2>(order);
    if (nodes_[node].pins > 0) continue;
    Remove(node);
    return true;
  }
  return false;
}

int64_t PrefixCache::Free(int64_t bytes) {
  int64_t freed = 0;
  // Everything before these was found in use.
  Order leaf_from{}, snapshot_from{};
  std::get<1>(leaf_from) = std::get<1>(snapshot_from) = std::numeric_limits<int32_t>::min();
  while (freed < bytes) {
    auto leaf = leaves_.lower_bound(leaf_from);
    while (leaf != leaves_.end() && Referenced(std::get<2>(*leaf))) ++leaf;
    auto snapshot = snapshots_.lower_bound(snapshot_from);
    while (snapshot != snapshots_.end() && !HasIdleWindowPages(std::get<2>(*snapshot))) ++snapshot;
    if (leaf == leaves_.end() && snapshot == snapshots_.end()) break;
    if (snapshot != snapshots_.end()) snapshot_from = *snapshot;
    if (leaf != leaves_.end()) leaf_from = *leaf;
    const bool takes_snapshot =
        leaf == leaves_.end() || (snapshot != snapshots_.end() &&
                                  std::get<0>(*snapshot) < std::get<0>(*leaf));
    const Order order = takes_snapshot ? *snapshot : *leaf;
    const int32_t node = std::get<2>(order), parent = nodes_[node].parent;
    freed += takes_snapshot ? FreeWindowPages(node) : std::max<int64_t>(Evict(node), 0);
    // What stayed in spite of all is passed by; a parent may have become a leaf.
    if (!takes_snapshot) ++std::get<2>(leaf_from);
    if (parent >= 0) leaf_from = std::min(leaf_from, OrderOf(parent));
  }
  // What is left lies above pages that running sequences hold: forget those, they keep their pages.
  for (auto it = leaves_.begin();
       freed < bytes && allocator_->cached_bytes() > 0 && it != leaves_.end();) {
    const int32_t node = std::get<2>(*it);
    while (nodes_[node].children > 0 && RemoveFromHost()) {
    }
    if (nodes_[node].children > 0 || nodes_[node].pins > 0) {
      ++it;
      continue;
    }
    freed += Remove(node);
    it = leaves_.begin();
  }
  return freed;
}

void PrefixCache::Trim() {
  const int64_t excess = allocator_->cached_bytes() - options_.max_cached_bytes;
  if (excess > 0) Free(excess);
}

void PrefixCache::Clear() {
  while (!index_.empty()) {
    while (RemoveFromHost()) {
    }
    const auto end = std::find_if(leaves_.begin(), leaves_.end(), [this](const Order& order) {
      return nodes_[std::get<2>(order)].children == 0;
    });
    if (end != leaves_.end()) Remove(std::get<2>(*end));
  }
}

std::vector<int64_t> PrefixCache::TakeEvictedPages() {
  return std::exchange(evicted_, std::vector<int64_t>(groups_.size(), 0));
}

absl::Status PrefixCache::CheckIntegrity() const {
  std::vector<int64_t> idle(groups_.size(), 0), slots(groups_.size(), 0);
  size_t num_leaves = 0, num_host_leaves = 0, num_snapshots = 0;
  std::vector<int32_t> children(nodes_.size(), 0), children_in_pages(nodes_.size(), 0);
  for (const auto& [key, node] : index_) {
    const Node& n = nodes_[node];
    if (!(n.key == key)) return absl::InternalError("prefix cache: node under a wrong key");
    if (n.parent < 0) continue;
    ++children[n.parent];
    children_in_pages[n.parent] += HoldsPage(n);
  }
  for (const auto& [key, node] : index_) {
    const Node& n = nodes_[node];
    for (size_t i = 0; i < groups_.size(); ++i) {
      const auto g = static_cast<int32_t>(i);
      const int32_t page = n.pages[i];
      if (groups_[i].keeps_all() && (page == kNoPage) == (n.slots[i] == kNoSlot)) {
        return absl::InternalError(
            StrCat("prefix cache: a node with no or two places of its page of group ", g));
      }
      if (n.slots[i] != kNoSlot) {
        if (page != kNoPage || host_slots_[i].Contains(n.slots[i])) {
          return absl::InternalError(StrCat("prefix cache: slot ", n.slots[i], " is free too"));
        }
        ++slots[i];
      }
      if (page == kNoPage) continue;
      if (!allocator_->cached(g, page)) {
        return absl::InternalError(StrCat("prefix cache: group ", g, " page ", page, " not held"));
      }
      idle[i] += allocator_->refs(g, page) == 0;
    }
    const bool in_pages = HoldsPage(n);
    if (n.children != children[node] || n.children_in_pages != children_in_pages[node]) {
      return absl::InternalError("prefix cache: children count");
    }
    const bool leaf = in_pages && n.children_in_pages == 0;
    const bool host_leaf = !in_pages && n.children == 0;
    if (n.in_pages != in_pages || leaves_.contains(OrderOf(node)) != leaf ||
        host_leaves_.contains(OrderOf(node)) != host_leaf ||
        snapshots_.contains(OrderOf(node)) != HoldsWindowPage(n)) {
      return absl::InternalError("prefix cache: a node is in the wrong list");
    }
    num_leaves += leaf;
    num_host_leaves += host_leaf;
    num_snapshots += HoldsWindowPage(n);
  }
  if (num_leaves != leaves_.size() || num_host_leaves != host_leaves_.size() ||
      num_snapshots != snapshots_.size()) {
    return absl::InternalError("prefix cache: a list holds nodes that are gone");
  }
  for (size_t i = 0; i < groups_.size(); ++i) {
    const auto g = static_cast<int32_t>(i);
    if (idle[i] != allocator_->counts(g).cached) {
      return absl::InternalError(
          StrCat("prefix cache: holds ", idle[i], " idle pages of group ", g, ", allocator says ",
                 allocator_->counts(g).cached));
    }
    if (slots[i] != host_slots_used(g)) {
      return absl::InternalError(StrCat("prefix cache: ", slots[i], " slots of group ", g,
                                        " held, ", host_slots_used(g), " taken"));
    }
  }
  return absl::OkStatus();
}

}  // namespace longstride::engine

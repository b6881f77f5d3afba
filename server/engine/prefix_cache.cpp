#include "server/engine/prefix_cache.h"

#include <algorithm>
#include <cstring>
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
      const bool has = nodes_[node].pages[g] != kNoPage;
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

void PrefixCache::SetTick(int32_t node, uint64_t tick) {
  Node& n = nodes_[node];
  if (n.tick == tick) return;
  const bool leaf = leaves_.erase(OrderOf(node)) > 0;
  const bool snapshot = snapshots_.erase(OrderOf(node)) > 0;
  n.tick = tick;
  if (leaf) leaves_.insert(OrderOf(node));
  if (snapshot) snapshots_.insert(OrderOf(node));
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
  index_.emplace(key, node);
  leaves_.insert(OrderOf(node));
  if (parent >= 0 && nodes_[parent].children++ == 0) leaves_.erase(OrderOf(parent));
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
    }
    SetTick(node, tick_);
    parent = node;
  }
  while (num_nodes() > max_nodes_ && !leaves_.empty()) Remove(std::get<2>(*leaves_.begin()));
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
      if (node < 0 || page == kNoPage || nodes_[node].pages[g] != kNoPage) continue;
      allocator_->SetCached(static_cast<int32_t>(g), page);
      nodes_[node].pages[g] = page;
      if (!nodes_[node].has_window_pages) {
        nodes_[node].has_window_pages = true;
        snapshots_.insert(OrderOf(node));
      }
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

int64_t PrefixCache::DropWindowPages(int32_t node) {
  int64_t freed = 0;
  bool left = false;
  for (size_t g = 0; g < groups_.size(); ++g) {
    const int32_t page = nodes_[node].pages[g];
    if (groups_[g].keeps_all() || page == kNoPage) continue;
    if (allocator_->refs(static_cast<int32_t>(g), page) == 0) {
      freed += DropPage(node, static_cast<int32_t>(g));
    } else {
      left = true;
    }
  }
  if (!left) {
    snapshots_.erase(OrderOf(node));
    nodes_[node].has_window_pages = false;
  }
  return freed;
}

// REQUIRES: a leaf.
int64_t PrefixCache::Remove(int32_t node) {
  Node& n = nodes_[node];
  LS_CHECK_EQ(n.children, 0);
  int64_t freed = 0;
  for (size_t g = 0; g < groups_.size(); ++g) freed += DropPage(node, static_cast<int32_t>(g));
  leaves_.erase(OrderOf(node));
  snapshots_.erase(OrderOf(node));
  index_.erase(n.key);
  if (n.parent >= 0 && --nodes_[n.parent].children == 0) leaves_.insert(OrderOf(n.parent));
  free_nodes_.push_back(node);
  return freed;
}

int64_t PrefixCache::Free(int64_t bytes) {
  int64_t freed = 0;
  auto leaf = leaves_.begin();
  auto snapshot = snapshots_.begin();
  while (freed < bytes) {
    while (leaf != leaves_.end() && Referenced(std::get<2>(*leaf))) ++leaf;
    while (snapshot != snapshots_.end() && !HasIdleWindowPages(std::get<2>(*snapshot))) ++snapshot;
    if (leaf == leaves_.end() && snapshot == snapshots_.end()) break;
    if (leaf == leaves_.end() ||
        (snapshot != snapshots_.end() && std::get<0>(*snapshot) < std::get<0>(*leaf))) {
      freed += DropWindowPages(std::get<2>(*snapshot++));
      continue;
    }
    const Order order = *leaf;
    const int32_t node = std::get<2>(order);
    if (snapshot != snapshots_.end() && std::get<2>(*snapshot) == node) ++snapshot;
    const int32_t parent = nodes_[node].parent;
    freed += Remove(node);
    // The parent may have become the next leaf, also one that is older than `order`.
    leaf = leaves_.lower_bound(parent >= 0 ? std::min(order, OrderOf(parent)) : order);
  }
  // What is left lies above pages that running sequences hold: forget those, they keep their pages.
  while (freed < bytes && allocator_->cached_bytes() > 0 && !leaves_.empty()) {
    freed += Remove(std::get<2>(*leaves_.begin()));
  }
  return freed;
}

void PrefixCache::Trim() {
  const int64_t excess = allocator_->cached_bytes() - options_.max_cached_bytes;
  if (excess > 0) Free(excess);
}

void PrefixCache::Clear() {
  while (!leaves_.empty()) Remove(std::get<2>(*leaves_.begin()));
}

std::vector<int64_t> PrefixCache::TakeEvictedPages() {
  return std::exchange(evicted_, std::vector<int64_t>(groups_.size(), 0));
}

absl::Status PrefixCache::CheckIntegrity() const {
  std::vector<int64_t> idle(groups_.size(), 0);
  size_t num_leaves = 0, num_snapshots = 0;
  std::vector<int32_t> children(nodes_.size(), 0);
  for (const auto& [key, node] : index_) {
    const Node& n = nodes_[node];
    if (n.parent >= 0) ++children[n.parent];
    if (!(n.key == key)) return absl::InternalError("prefix cache: node under a wrong key");
  }
  for (const auto& [key, node] : index_) {
    const Node& n = nodes_[node];
    bool window_pages = false;
    for (size_t g = 0; g < groups_.size(); ++g) {
      const int32_t page = n.pages[g];
      if (groups_[g].keeps_all() && page == kNoPage) {
        return absl::InternalError(StrCat("prefix cache: node without its page of group ", g));
      }
      if (page == kNoPage) continue;
      if (!groups_[g].keeps_all()) window_pages = true;
      if (!allocator_->cached(static_cast<int32_t>(g), page)) {
        return absl::InternalError(StrCat("prefix cache: group ", g, " page ", page, " not held"));
      }
      idle[g] += allocator_->refs(static_cast<int32_t>(g), page) == 0;
    }
    if (n.children != children[node]) return absl::InternalError("prefix cache: children count");
    if (leaves_.contains(OrderOf(node)) != (n.children == 0) ||
        snapshots_.contains(OrderOf(node)) != window_pages ||
        n.has_window_pages != window_pages) {
      return absl::InternalError("prefix cache: a node is in the wrong list");
    }
    num_leaves += n.children == 0;
    num_snapshots += window_pages;
  }
  if (num_leaves != leaves_.size() || num_snapshots != snapshots_.size()) {
    return absl::InternalError("prefix cache: a list holds nodes that are gone");
  }
  for (size_t g = 0; g < groups_.size(); ++g) {
    if (idle[g] != allocator_->counts(static_cast<int32_t>(g)).cached) {
      return absl::InternalError(
          StrCat("prefix cache: holds ", idle[g], " idle pages of group ", g, ", allocator says ",
                 allocator_->counts(static_cast<int32_t>(g)).cached));
    }
  }
  return absl::OkStatus();
}

}  // namespace longstride::engine

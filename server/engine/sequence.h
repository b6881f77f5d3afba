// One generation in flight: its tokens, its pages in every cache group, and its progress.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/time/time.h"
#include "kernels/paged_kv.h"
#include "model/cache_group.h"
#include "server/engine/prefix_cache.h"
#include "server/engine/siphash.h"

namespace longstride::engine {

using SequenceId = int64_t;

enum class SequenceState : uint8_t { kWaiting, kRunning };

// Positions below num_computed have their keys and values in the cache; the rest of `tokens` is
// still to be computed. A step computes a run of the next ones; when it reaches the end of `tokens`
// its last logits give the next token.
struct Sequence {
  SequenceId id = 0;        // ascending in order of arrival; choices of one request are neighbours
  SequenceState state = SequenceState::kWaiting;
  int32_t client = 0;       // FairShare index
  int32_t priority = 0;     // lower first
  absl::Time arrival;
  uint8_t rope_variant = 0;
  bool use_prefix_cache = true;
  bool wants_hidden = false;         // of every token (embeddings)
  bool wants_prompt_logits = false;  // of every prompt token
  bool wants_last_logits = true;     // false: only the prompt is scored
  bool stalled = false;              // its client does not read; keeps its pages, does not run
  int32_t num_prompt = 0;
  int32_t max_tokens = 0;            // generated, at most
  int32_t pending_forks = 0;         // choices that will branch off when the prompt is done

  std::vector<int32_t> tokens;
  int32_t num_computed = 0;
  // Positions below were computed before: what is computed again after a preemption is not counted,
  // scored or pooled twice.
  int32_t high_water = 0;
  int32_t reserved_tokens = 0;       // admission guaranteed pages up to here
  int32_t preemptions = 0;
  int32_t times_bypassed = 0;        // admissions that went past it while it waited for pages

  Hash128 root_key;
  std::vector<Hash128> keys;         // of the whole pages of `tokens`, as far as computed
  int32_t num_shared_pages = 0;      // whole pages offered to the prefix cache so far
  PageTables pages;                  // [group][logical page]
  std::vector<int32_t> first_live;   // [group] pages in [first_dead_page, here) were given back

  int32_t num_tokens() const { return static_cast<int32_t>(tokens.size()); }
  int32_t num_generated() const { return num_tokens() - num_prompt; }
  int32_t remaining() const { return num_tokens() - num_computed; }
  // Next step computes one token, the last one generated.
  bool is_decoding() const { return num_computed >= num_prompt && remaining() == 1; }
  // Pages that are computed, of whole units.
  int32_t num_whole_pages(int32_t unit_tokens) const {
    return num_computed / unit_tokens * (unit_tokens / kernels::kPageTokens);
  }
};

// The position behind whose window pages are given back: the last boundary of units
// (SchedulerLimits::unit_tokens), so that a window snapshot can be taken there at any time. Costs no
// page at the peak.
inline int64_t LiveBoundary(int64_t num_computed, int32_t unit_tokens) {
  return num_computed / unit_tokens * unit_tokens;
}

// The most pages of a group that a sequence holds at any time while it grows to `tokens` by steps
// that end at most `step_tokens` behind the unit boundary they begin after.
int64_t PeakPages(const model::CacheGroup& group, int64_t tokens, int64_t step_tokens);

// PeakPages of all groups in bytes.
int64_t PeakBytes(const std::vector<model::CacheGroup>& groups, int64_t tokens,
                  int64_t step_tokens);

}  // namespace longstride::engine

#pragma once

#include <cstdint>

#include "absl/time/time.h"

namespace longstride::engine {

// Limits and targets of scheduling; config/server_config.h has the user's side of each.
struct EngineOptions {
  int32_t max_running_sequences = 64;
  int32_t max_step_tokens = 512;           // tokens of one forward pass; Model's max_step_tokens
  int32_t max_step_logits = 512;           // logit rows of one forward pass
  int32_t max_concurrent_prefills = 4;     // prompts that share the prefill budget
  absl::Duration inter_token_bound = absl::Milliseconds(400);  // a decode waits at most this long
  int32_t max_queued_requests = 1024;
  int64_t max_queued_prompt_tokens = int64_t{8} << 20;
  int32_t max_context = 0;
  int32_t reserve_tokens = 1024;           // admission reserves prompt + min(max_tokens, this)
  int32_t max_choices = 8;
  absl::Duration priority_ageing = absl::Seconds(60);  // waiting this long is worth one priority
  int32_t max_preemptions = 3;  // then a request comes back with room for all it may need
  int32_t max_bypasses = 16;    // admissions past a request that waits for pages
  bool prefix_cache = true;
  int32_t window_snapshot_interval = 2048; // tokens between window snapshots of the prefix cache
  double prefix_cache_fraction = 1.0;      // of the KV budget that idle prefixes may take
  bool share_generated_pages = true;       // later prompts may reuse generated tokens' pages
  int64_t max_output_queue_bytes = int64_t{1} << 20;  // per request, before slow_client
  absl::Duration slow_client_timeout = absl::Seconds(60);
  uint64_t cache_key_seed = 0;             // 0: random at start; keys the prefix hash
  bool check_integrity = false;            // verify page accounting whenever idle
};

}  // namespace longstride::engine

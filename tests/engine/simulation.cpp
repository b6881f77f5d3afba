#include "tests/engine/simulation.h"

#include <algorithm>
#include <bit>
#include <map>
#include <memory>
#include <random>
#include <set>

#include "server/engine/engine_core.h"
#include "tests/engine/fake_executor.h"
#include "tests/engine/naive_model.h"

namespace longstride::engine {
namespace {

using kernels::kPageTokens;

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  int32_t Int(int32_t low, int32_t high) {  // both included
    return low + static_cast<int32_t>(engine_() % static_cast<uint64_t>(high - low + 1));
  }
  bool Chance(double p) { return static_cast<double>(engine_() >> 11) * 0x1p-53 < p; }
  double Real(double low, double high) {
    return low + static_cast<double>(engine_() >> 11) * 0x1p-53 * (high - low);
  }
  template <typename T>
  T Of(std::initializer_list<T> items) {
    return items.begin()[Int(0, static_cast<int32_t>(items.size()) - 1)];
  }
  uint64_t Bits() { return engine_(); }

 private:
  std::mt19937_64 engine_;
};

struct Observed : EngineObserver {
  SimulationResult* result = nullptr;
  void Preempted(int32_t) override { ++result->preemptions; }
  void GeneratedPrefixHit(int32_t tokens) override { result->generated_hits += tokens; }
  void Admitted(double, int32_t, int32_t cached) override { result->cached_tokens += cached; }
  void PagesFreed(int32_t, PageFreeCause cause, int64_t pages) override {
    if (cause == PageFreeCause::kEvict) result->evicted_pages += pages;
    if (cause == PageFreeCause::kWindow) result->window_pages += pages;
  }
  void ClientStalled(double) override { ++result->stalled; }
  void PagesCopied(bool to_host, int64_t bytes, double) override {
    (to_host ? result->bytes_to_host : result->bytes_from_host) += bytes;
  }
};

// What a client saw.
struct Client {
  GenerationRequest request;
  Hash128 root_key;
  uint8_t rope_variant = 0;
  std::shared_ptr<OutputQueue> output;
  std::vector<std::string> text;
  std::vector<std::vector<TokenOutput>> tokens;
  std::vector<std::optional<OutputEvent>> endings;
  std::optional<OutputEvent> finished;
  std::vector<TokenOutput> prompt_scores;
  std::vector<float> vector;
  bool any_delta = false;
  bool interfered = false;  // cancelled, failed, too slow: only a prefix can be expected
  double drain_chance = 1.0;
  int32_t last_progress = 0;
};

class Simulation {
 public:
  Simulation(uint64_t seed, int64_t steps) : random_(seed), max_steps_(steps) {
    Configure(seed);
  }

  SimulationResult Run() {
    while (result_.steps < max_steps_ && Healthy()) {
      Traffic();
      StepOnce();
    }
    // Faults and arrivals stop: everything must end, and every page come back.
    traffic_over_ = true;
    for (auto& [number, client] : clients_) client.drain_chance = 1.0;
    const int64_t patience = 20'000;
    for (int64_t i = 0; i < patience && !core_->idle() && Healthy(); ++i) StepOnce();
    if (Healthy() && !core_->idle()) {
      Fail(StrCat(clients_.size(), " requests never ended"));
    }
    if (Healthy()) {
      core_->scheduler().FlushCache();
      const PageAllocator& allocator = *core_->scheduler().state().allocator;
      if (allocator.used_bytes() != 0 || allocator.cached_bytes() != 0) {
        Fail("pages are left after everything ended");
      }
      Check(core_->CheckIntegrity());
    }
    for (auto& [number, client] : clients_) Drain(number, &client, true);
    for (auto& [number, client] : clients_) {
      if (Healthy() && !client.finished) Fail(StrCat("request ", number, " has no last event"));
    }
    result_.positions_checked = executor_->positions_checked();
    return result_;
  }

 private:
  bool Healthy() const { return result_.errors.empty(); }
  void Fail(const std::string& text) {
    if (result_.errors.size() < 5) {
      result_.errors.push_back(StrCat("step ", result_.steps, ": ", text));
    }
  }
  void Check(const absl::Status& status) {
    if (!status.ok()) Fail(std::string(ToStd(status.message())));
  }
  void Trace(uint64_t value) {
    result_.trace = (std::rotl(result_.trace, 7) ^ value) * 0x9e3779b97f4a7c15;
  }

  void Configure(uint64_t seed);
  GenerationRequest RandomRequest();
  void Submit();
  void Traffic();
  void StepOnce();
  void CheckPlan();
  void Drain(RequestNumber number, Client* client, bool all);
  void Take(RequestNumber number, Client* client, OutputEvent event);
  void Judge(RequestNumber number, Client* client);
  void JudgeChoice(RequestNumber number, const Client& client, int32_t choice);
  void JudgePromptScores(RequestNumber number, const Client& client);

  Random random_;
  int64_t max_steps_;
  SimulationResult result_;
  Observed observer_;
  FakeClock clock_;
  FakeText text_;
  EngineOptions options_;
  std::unique_ptr<FakeExecutor> executor_;
  std::unique_ptr<EngineCore> core_;
  std::map<RequestNumber, Client> clients_;
  RequestNumber next_number_ = 1;
  std::vector<std::vector<int32_t>> prefixes_;
  std::vector<std::vector<int32_t>> turns_;  // prompts with their answers
  bool traffic_over_ = false;
  int idle_steps_ = 0;
  int32_t max_prompt_ = 0;
  // Swarm: each seed has some kinds of trouble only.
  double fault_ = 0, allocation_fault_ = 0, late_ = 0, cancel_ = 0, invalid_ = 0, flush_ = 0;
  double copy_fault_ = 0;
  double long_ = 0.5, arrival_ = 0.2, deadline_ = 0, slow_reader_ = 0;
};

void Simulation::Configure(uint64_t seed) {
  FakeExecutorOptions e;
  const int32_t num_groups = random_.Int(1, 3);
  for (int32_t g = 0; g < num_groups; ++g) {
    model::Retention retention;
    switch (random_.Int(0, g == 0 ? 5 : 4)) {
      case 0: retention.window = random_.Int(1, 200); break;
      case 1:
        retention.window = random_.Int(2, 200);
        retention.sink_tokens = random_.Of({1, 4, 64, 65, 100});
        break;
      case 2: retention.chunk = random_.Of({64, 100, 128, 200}); break;
      case 3:
        retention.chunk = random_.Of({64, 128});
        retention.window = random_.Int(10, 100);
        break;
      default: break;
    }
    e.groups.push_back(MakeGroup(StrCat("g", g), retention, random_.Of({1000, 2000, 3000, 5000})));
  }
  e.max_step_tokens = random_.Of({64, 100, 128, 256});
  e.max_context = 1024;
  if (random_.Chance(0.3)) {
    e.variant_lengths = {200};
    e.variants_by_prompt = random_.Chance(0.5);
  }
  if (random_.Chance(0.3)) {
    e.chunk_alignment = random_.Of({64, 128, 128});
    e.max_step_tokens = std::max(e.max_step_tokens, e.chunk_alignment);
    e.one_numerics_class = false;
  }
  max_prompt_ = random_.Of({80, 300, 600});
  const int64_t largest = PeakBytes(e.groups, max_prompt_ + 300, e.max_step_tokens);
  e.kv_budget_bytes = static_cast<int64_t>(static_cast<double>(largest) * random_.Real(0.9, 3.0));

  EngineOptions& o = options_;
  o.max_running_sequences = random_.Int(1, 12);
  o.max_step_tokens = e.max_step_tokens;
  o.max_step_logits = random_.Of({12, 20, 64});
  o.max_concurrent_prefills = random_.Int(1, 4);
  o.inter_token_bound = absl::Milliseconds(random_.Of({1, 5, 20, 1000}));
  o.reserve_tokens = random_.Of({0, 16, 64, 1000});
  o.max_choices = 4;
  o.prefix_cache = random_.Chance(0.85);
  o.window_snapshot_interval = random_.Of({0, 64, 128, 200});
  o.prefix_cache_fraction = random_.Of({0.1, 0.5, 1.0});
  o.share_generated_pages = random_.Chance(0.6);
  o.max_output_queue_bytes = random_.Of({1500, 100'000});
  o.slow_client_timeout = absl::Milliseconds(random_.Of({50, 2000}));
  o.priority_ageing = absl::Milliseconds(random_.Of({200, 60'000}));
  o.max_preemptions = random_.Int(1, 4);
  o.max_bypasses = random_.Int(0, 6);
  o.cache_key_seed = seed | 1;
  const auto maybe = [&](double p) { return random_.Chance(0.5) ? p : 0.0; };
  fault_ = maybe(0.01);
  allocation_fault_ = maybe(0.03);
  late_ = maybe(0.02);
  cancel_ = maybe(0.05);
  invalid_ = maybe(0.005);
  flush_ = maybe(0.01);
  long_ = random_.Of({0.2, 0.5, 0.9});
  deadline_ = maybe(0.2);
  slow_reader_ = maybe(0.2);
  arrival_ = random_.Of({0.1, 0.3, 0.6});
  for (int i = 0; i < 4; ++i) {
    std::vector<int32_t> prefix(static_cast<size_t>(random_.Int(10, max_prompt_ - 10)));
    for (int32_t& token : prefix) token = random_.Int(0, e.vocab_size - 1);
    prefixes_.push_back(prefix);
  }
  result_.config = StrCat("groups ", num_groups, ", budget ", e.kv_budget_bytes, " of ", largest,
                          ", running ", o.max_running_sequences, ", step ", e.max_step_tokens, ", aligned ", e.chunk_alignment,
                          ", reserve ", o.reserve_tokens, ", cache ", o.prefix_cache, ", shared ",
                          o.share_generated_pages, ", interval ", o.window_snapshot_interval);
  for (const auto& g : e.groups) {
    StrAppend(&result_.config, ", [w ", g.retention.window, " s ", g.retention.sink_tokens, " c ",
              g.retention.chunk, " ", g.page_bytes, "B]");
  }
  if (random_.Chance(0.6)) {
    for (int32_t g = 0; g < num_groups; ++g) {
      e.host_slots.push_back(random_.Int(random_.Chance(0.3) ? 1 : 10, 60));
    }
    copy_fault_ = random_.Chance(0.3) ? 0.01 : 0.0;
    StrAppend(&result_.config, ", host ", e.host_slots[0]);
  }
  observer_.result = &result_;
  executor_ = std::make_unique<FakeExecutor>(e, &clock_);
  core_ = std::make_unique<EngineCore>(options_, executor_.get(), &text_, &observer_, &clock_);
  executor_->Watch(&core_->scheduler(), &core_->last_plan());
}

GenerationRequest Simulation::RandomRequest() {
  const int32_t vocab = executor_->info().vocab_size;
  GenerationRequest r;
  r.client = StrCat("c", random_.Int(0, 3));
  r.cache_salt = random_.Chance(0.1) ? "salt" : "";
  r.priority = random_.Chance(0.2) ? random_.Int(-2, 2) : 0;
  if (!turns_.empty() && random_.Chance(0.3)) {
    // The next turn of a conversation: what was said, what was answered, and more.
    r.prompt = turns_[static_cast<size_t>(random_.Int(0, static_cast<int32_t>(turns_.size()) - 1))];
  } else if (random_.Chance(0.7)) {
    const std::vector<int32_t>& prefix = prefixes_[static_cast<size_t>(random_.Int(0, 3))];
    r.prompt.assign(prefix.begin(),
                    prefix.begin() + random_.Int(1, static_cast<int32_t>(prefix.size())));
  }
  const int32_t more = random_.Chance(0.5) ? random_.Int(0, 20) : random_.Int(0, max_prompt_ / 2);
  for (int32_t i = 0; i < more || r.prompt.empty(); ++i) {
    r.prompt.push_back(random_.Int(0, vocab - 1));
  }
  r.use_prefix_cache = !random_.Chance(0.1);
  if (random_.Chance(0.05)) {
    r.kind = RequestKind::kEmbed;
    r.max_tokens = 0;
    return r;
  }
  r.max_tokens = random_.Chance(0.05) ? 0 : random_.Int(1, random_.Chance(long_) ? 300 : 20);
  r.min_tokens = random_.Chance(0.2) ? random_.Int(0, r.max_tokens) : 0;
  r.num_choices = random_.Chance(0.15) ? random_.Int(1, 4) : 1;
  if (random_.Chance(0.3)) r.stop.push_back(random_.Of<std::string>({"ab", "é", "aca", "dd"}));
  if (random_.Chance(0.2)) r.stop.push_back(random_.Of<std::string>({"bc", "€a", "cabd", "ddd"}));
  if (random_.Chance(0.2)) r.eos_token_ids = {random_.Int(0, vocab - 1)};
  if (random_.Chance(0.1)) r.stop_token_ids = {random_.Int(0, vocab - 1)};
  r.ignore_eos = random_.Chance(0.1);
  r.include_stop_in_output = random_.Chance(0.2);
  r.num_logprobs = random_.Chance(0.2) ? random_.Int(0, 3) : -1;
  r.num_prompt_logprobs = random_.Chance(0.1) ? random_.Int(0, 2) : -1;
  r.progress_interval_tokens = random_.Chance(0.2) ? 64 : 0;
  r.sampling.temperature = random_.Chance(0.5) ? 0.0f : 1.0f;
  r.sampling.top_k = random_.Chance(0.2) ? 5 : 0;
  r.sampling.repetition_penalty = random_.Chance(0.1) ? 1.2f : 1.0f;
  r.sampling.seed = random_.Bits();
  if (random_.Chance(deadline_)) {
    r.deadline = clock_.Now() + absl::Milliseconds(random_.Int(0, 2000));
  }
  return r;
}

void Simulation::Submit() {
  GenerationRequest request = RandomRequest();
  auto prepared = core_->Prepare(request);
  if (!prepared.ok()) {
    if (prepared.status().code() != absl::StatusCode::kInvalidArgument) Check(prepared.status());
    return;
  }
  PreparedRequest& p = **prepared;
  p.number = next_number_++;
  p.output = std::make_shared<OutputQueue>([] {}, [] {});
  Client& client = clients_[p.number];
  client.request = p.request;
  client.root_key = p.root_key;
  client.rope_variant = p.rope_variant;
  client.output = p.output;
  const auto n = static_cast<size_t>(p.request.num_choices);
  client.text.resize(n);
  client.tokens.resize(n);
  client.endings.resize(n);
  if (random_.Chance(slow_reader_)) client.drain_chance = random_.Of({0.0, 0.02, 0.3});
  core_->Enqueue(*std::move(prepared));
}

void Simulation::Traffic() {
  if (clients_.size() < 24 && random_.Chance(arrival_)) {
    const int32_t burst = random_.Chance(0.1) ? random_.Int(2, 12) : 1;
    for (int32_t i = 0; i < burst; ++i) Submit();
  }
  if (!clients_.empty() && random_.Chance(cancel_)) {
    auto it = clients_.begin();
    std::advance(it, random_.Int(0, static_cast<int32_t>(clients_.size()) - 1));
    it->second.interfered = true;
    core_->Cancel({.number = it->first});
    ++result_.aborted;
  }
  if (random_.Chance(fault_)) {
    executor_->FailNext();
    ++result_.faults;
  }
  if (copy_fault_ > 0 && random_.Chance(copy_fault_)) {
    executor_->FailNextCopy();
    ++result_.faults;
  }
  if (random_.Chance(invalid_)) executor_->InvalidateNextLogits();
  if (random_.Chance(late_)) executor_->DelayNext(50);
  if (random_.Chance(allocation_fault_)) {
    core_->scheduler().allocator().FailAllocationAfter(random_.Int(0, 5));
  }
  if (random_.Chance(flush_)) core_->scheduler().FlushCache();
  if (random_.Chance(0.01)) clock_.Advance(absl::Milliseconds(random_.Int(0, 3000)));
}

void Simulation::CheckPlan() {
  const StepPlan& plan = core_->last_plan();
  const SchedulerLimits& limits = core_->scheduler().limits();
  int32_t tokens = 0, logits = 0;
  std::set<SequenceId> ids;
  for (const PlannedRun& run : plan.runs) {
    tokens += run.num_tokens;
    logits += run.num_logits;
    if (run.num_tokens <= 0) Fail("an empty run");
    if (!ids.insert(run.id).second) Fail("two runs of one sequence");
    Trace(static_cast<uint64_t>(run.id * 1000003 + run.first_position * 1009 + run.num_tokens));
  }
  for (const SequenceId id : plan.preempt) Trace(static_cast<uint64_t>(id) + 17);
  if (tokens > limits.max_step_tokens) Fail("too many tokens in a step");
  if (logits > limits.max_step_logits) Fail("too many rows of logits in a step");
  const auto& state = core_->scheduler().state();
  if (std::ssize(state.running) > limits.max_running_sequences) Fail("too many running");
}

void Simulation::StepOnce() {
  ++result_.steps;
  if (result_.steps % 16 == 0) {
    // Planning has no side effects, and twice the same answer.
    const AttendedKeysFn keys = [this](int64_t p, model::NumericsClass numerics) {
      return executor_->AttendedKeys(p, numerics);
    };
    const auto plan = [&] {
      return PlanStep(core_->scheduler().state(), core_->scheduler().limits(),
                      core_->cost_model().cost(), keys, clock_.Now());
    };
    const StepPlan a = plan(), b = plan();
    if (a.runs.size() != b.runs.size() || a.preempt != b.preempt || a.bypassed != b.bypassed ||
        a.admit.size() != b.admit.size() || a.predicted_seconds != b.predicted_seconds) {
      Fail("two plans of one state differ");
    }
  }
  const bool worked = core_->Step();
  if (worked) CheckPlan();
  for (const std::string& error : executor_->errors()) Fail(error);
  Check(core_->CheckIntegrity());
  std::vector<RequestNumber> done;
  bool waits_for_reader = false;
  for (auto& [number, client] : clients_) {
    const bool read = random_.Chance(client.drain_chance);
    Drain(number, &client, read);
    if (client.finished) done.push_back(number);
    waits_for_reader = waits_for_reader || client.drain_chance < 1;
  }
  for (const RequestNumber number : done) {
    Judge(number, &clients_[number]);
    clients_.erase(number);
  }
  if (worked) {
    idle_steps_ = 0;
    return;
  }
  clock_.Advance(absl::Milliseconds(5));
  // Waiting requests with nothing running and nobody stalled would be a deadlock.
  if (!core_->idle() && !waits_for_reader && ++idle_steps_ > 1000) Fail("nothing moves");
}

void Simulation::Drain(RequestNumber number, Client* client, bool read) {
  if (!read) return;
  std::vector<OutputEvent> events;
  client->output->Drain(&events);
  for (OutputEvent& event : events) Take(number, client, std::move(event));
}

void Simulation::Take(RequestNumber number, Client* client, OutputEvent event) {
  using Kind = OutputEvent::Kind;
  Trace(static_cast<uint64_t>(number) * 31 + static_cast<uint64_t>(event.kind));
  for (const char c : event.text) Trace(static_cast<unsigned char>(c));
  if (client->finished) Fail(StrCat("request ", number, ": an event after the last"));
  const auto choice = static_cast<size_t>(event.choice);
  if (choice >= client->text.size()) {
    Fail(StrCat("request ", number, ": an event of choice ", event.choice));
    return;
  }
  switch (event.kind) {
    case Kind::kDelta: {
      if (client->endings[choice]) Fail(StrCat("request ", number, ": text after a choice ended"));
      std::string joined;
      for (const TokenOutput& token : event.tokens) joined += token.text;
      if (!event.text.starts_with(joined)) Fail("a delta's text is not that of its tokens");
      std::string bytes = event.text;
      if (FakeText::TakeCharacters(&bytes, false) != event.text) Fail("half a character");
      client->any_delta = true;
      client->text[choice] += event.text;
      for (TokenOutput& token : event.tokens) client->tokens[choice].push_back(std::move(token));
      break;
    }
    case Kind::kChoiceFinished:
      if (client->endings[choice]) Fail(StrCat("request ", number, ": a choice ended twice"));
      client->endings[choice] = std::move(event);
      break;
    case Kind::kPromptLogprobs:
      if (client->any_delta || !client->prompt_scores.empty()) Fail("prompt logprobs out of order");
      client->prompt_scores = std::move(event.tokens);
      break;
    case Kind::kProgress:
      if (event.processed_tokens < client->last_progress) Fail("progress goes back");
      client->last_progress = event.processed_tokens;
      break;
    case Kind::kVector:
      client->vector = std::move(event.vector);
      break;
    case Kind::kFinished:
      client->finished = std::move(event);
      break;
  }
}

void Simulation::Judge(RequestNumber number, Client* client) {
  ++result_.finished;
  const OutputEvent& last = *client->finished;
  const RequestUsage& usage = last.usage;
  result_.most_preemptions = std::max(result_.most_preemptions, usage.preemptions);
  for (const auto& ending : client->endings) {
    if (!ending) Fail(StrCat("request ", number, ": a choice did not end"));
  }
  if (usage.prompt_tokens != std::ssize(client->request.prompt)) Fail("wrong prompt_tokens");
  if (usage.cached_tokens >= usage.prompt_tokens) Fail("nothing of the prompt was computed");
  if (!last.status.ok()) {
    const auto code = last.status.code();
    const bool expected =
        code == absl::StatusCode::kCancelled || code == absl::StatusCode::kDeadlineExceeded ||
        code == absl::StatusCode::kAborted || code == absl::StatusCode::kInternal;
    if (!expected) Check(last.status);
    if (code == absl::StatusCode::kCancelled && !client->interfered) Fail("nobody cancelled it");
    for (int32_t c = 0; c < client->request.num_choices; ++c) JudgeChoice(number, *client, c);
    return;
  }
  if (client->request.kind == RequestKind::kEmbed) {
    if (client->vector != NaiveEmbedding(client->request, client->root_key, client->rope_variant,
                                            static_cast<int32_t>(client->vector.size())) ||
        client->vector.empty()) {
      Fail(StrCat("request ", number, ": a wrong embedding"));
    }
  }
  int32_t generated = 0;
  for (int32_t c = 0; c < client->request.num_choices; ++c) {
    JudgeChoice(number, *client, c);
    if (client->request.max_tokens > 0) {
      generated += NaiveGenerate(client->request, c, client->root_key, client->rope_variant,
                                 executor_->info().vocab_size)
                       .num_sampled;
    }
  }
  if (usage.generated_tokens != generated) {
    Fail(StrCat("request ", number, ": usage says ", usage.generated_tokens, " tokens, not ",
                generated));
  }
  if (client->request.num_prompt_logprobs >= 0) JudgePromptScores(number, *client);
  if (client->request.num_choices > 1) ++result_.forked;
  std::vector<int32_t> turn = client->request.prompt;
  for (const TokenOutput& token : client->tokens[0]) turn.push_back(token.token);
  if (std::ssize(turn) < max_prompt_) {
    turns_.push_back(std::move(turn));
    if (turns_.size() > 6) turns_.erase(turns_.begin());
  }
  ++result_.completed;
}

void Simulation::JudgeChoice(RequestNumber number, const Client& client, int32_t choice) {
  const auto c = static_cast<size_t>(choice);
  const OutputEvent& ending = *client.endings[c];
  if (client.request.max_tokens == 0) {
    if (!client.text[c].empty()) Fail(StrCat("request ", number, ": text though max_tokens is 0"));
    return;
  }
  const NaiveChoice naive = NaiveGenerate(client.request, choice, client.root_key,
                                          client.rope_variant, executor_->info().vocab_size);
  const bool whole = ending.reason == FinishReason::kStop || ending.reason == FinishReason::kLength;
  if (whole) {
    if (client.text[c] != naive.text) {
      Fail(StrCat("request ", number, " choice ", choice, ": \"", client.text[c], "\", expected \"",
                  naive.text, "\""));
    }
    if (ending.reason != naive.reason || ending.stop_string != naive.stop_string ||
        ending.stop_token != naive.stop_token) {
      Fail(StrCat("request ", number, " choice ", choice, ": wrong ending"));
    }
  } else if (!naive.all_text.starts_with(client.text[c])) {
    Fail(StrCat("request ", number, " choice ", choice, ": \"", client.text[c],
                "\" is not how \"", naive.all_text, "\" begins"));
  }
  const std::vector<TokenOutput>& tokens = client.tokens[c];
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (i >= naive.tokens.size() || tokens[i].token != naive.tokens[i].token ||
        tokens[i].logprob != naive.tokens[i].logprob ||
        tokens[i].top.size() != naive.tokens[i].top.size()) {
      Fail(StrCat("request ", number, " choice ", choice, ": token ", i, " differs"));
      break;
    }
  }
}

void Simulation::JudgePromptScores(RequestNumber number, const Client& client) {
  const auto& scores = client.prompt_scores;
  const auto& prompt = client.request.prompt;
  if (scores.size() != prompt.size()) {
    Fail(StrCat("request ", number, ": ", scores.size(), " prompt scores of ", prompt.size()));
    return;
  }
  uint64_t chain = FakeExecutor::ChainStart(client.root_key, client.rope_variant);
  model::Sampler sampler;
  const int32_t vocab = executor_->info().vocab_size;
  std::vector<float> row(static_cast<size_t>(vocab));
  for (size_t i = 0; i < prompt.size(); ++i) {
    if (scores[i].token != prompt[i]) Fail("a prompt score of another token");
    if (i > 0) {
      for (int32_t v = 0; v < vocab; ++v) {
        row[static_cast<size_t>(v)] = FakeExecutor::Logit(chain, v);
      }
      if (sampler.Score(row, prompt[i], 0).logprob != scores[i].logprob) {
        Fail(StrCat("request ", number, ": prompt logprob ", i, " differs"));
        return;
      }
    }
    chain = FakeExecutor::Chain(chain, prompt[i]);
  }
}

}  // namespace

SimulationResult Simulate(uint64_t seed, int64_t steps) {
  return Simulation(seed, steps).Run();
}

}  // namespace longstride::engine

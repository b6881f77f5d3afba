#include "server/engine/engine_core.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <set>
#include <utility>

#include "config/base/check.h"
#include "config/base/logging.h"
#include "server/engine/batch_builder.h"

namespace longstride::engine {

using kernels::kPageTokens;

namespace {

constexpr int32_t kSequencesPerRequest = 256;
constexpr int kMaxApplyFailures = 3;

SequenceId SequenceIdOf(RequestNumber number, int32_t choice) {
  return number * kSequencesPerRequest + choice;
}

void NotifyAll(std::vector<std::shared_ptr<OutputQueue>>* queues) {
  for (const auto& queue : *queues) queue->Notify();
  queues->clear();
}

class NoText : public TextStream {
 public:
  std::string Push(int32_t token) override { return {}; }
  std::string Flush() override { return {}; }
};

Hash128 MakeCacheKey(uint64_t seed) {
  Hash128 key{.lo = seed, .hi = ~seed};
  if (seed == 0) {
    std::random_device random;
    key.lo = uint64_t{random()} << 32 | random();
    key.hi = uint64_t{random()} << 32 | random();
  }
  return key;
}

SchedulerLimits LimitsOf(const EngineOptions& options, const ExecutorInfo& info) {
  SchedulerLimits limits;
  limits.unit_tokens = std::max(info.chunk_alignment, kPageTokens);
  limits.whole_units = info.chunk_alignment > 1;
  limits.max_step_tokens = std::max(options.max_step_tokens, limits.unit_tokens);
  if (info.max_step_tokens > 0) {
    limits.max_step_tokens = std::min(limits.max_step_tokens, info.max_step_tokens);
  }
  limits.max_step_logits = std::max(options.max_step_logits, 1);
  int32_t most = std::min(limits.max_step_tokens, limits.max_step_logits);
  if (!info.causal) {
    most = limits.max_step_tokens;  // nothing decodes beside the prompts
  } else if (limits.whole_units) {
    // Beside all others' decodes there is room for a tile of a prompt, scored if need be.
    limits.max_step_logits = std::max(limits.max_step_logits, limits.unit_tokens);
    most = std::min(limits.max_step_tokens, limits.max_step_logits) - limits.unit_tokens;
  }
  limits.max_running_sequences = std::max(1, std::min(options.max_running_sequences, most));
  limits.max_concurrent_prefills = std::max(options.max_concurrent_prefills, 1);
  limits.inter_token_bound = options.inter_token_bound;
  limits.priority_ageing = options.priority_ageing;
  limits.reserve_tokens = std::max(options.reserve_tokens, 0);
  limits.max_preemptions = options.max_preemptions;
  limits.max_bypasses = options.max_bypasses;
  limits.window_snapshot_interval = options.window_snapshot_interval;
  limits.share_generated_pages = options.share_generated_pages;
  return limits;
}

SchedulerState MakeState(const EngineOptions& options, const ExecutorInfo& info) {
  SchedulerState state;
  state.groups = info.groups;
  std::vector<PageAllocator::Group> groups;
  std::vector<model::Retention> retentions;
  for (size_t g = 0; g < info.groups.size(); ++g) {
    groups.push_back({.num_pages = info.num_pages[g], .page_bytes = info.groups[g].page_bytes});
    retentions.push_back(info.groups[g].retention);
  }
  state.allocator = std::make_unique<PageAllocator>(std::move(groups), info.kv_budget_bytes);
  // An encoder's keys depend on what follows them: no text shares another's.
  if (options.prefix_cache && info.causal) {
    const double fraction = std::clamp(options.prefix_cache_fraction, 0.0, 1.0);
    state.prefix_cache = std::make_unique<PrefixCache>(
        state.allocator.get(), std::move(retentions),
        PrefixCache::Options{
            .key = MakeCacheKey(options.cache_key_seed),
            .one_numerics_class = options.share_generated_pages && info.one_numerics_class,
            .max_cached_bytes =
                static_cast<int64_t>(fraction * static_cast<double>(info.kv_budget_bytes)),
            .unit_tokens = std::max(info.chunk_alignment, kPageTokens),
            .host_slots = info.num_host_slots});
  }
  return state;
}

}  // namespace

struct EngineCore::Choice {
  std::unique_ptr<OutputProcessor> output;
  bool finished = false;
  absl::Time last_emitted = absl::InfinitePast();
};

struct EngineCore::Request {
  explicit Request(PreparedRequest&& prepared)
      : number(prepared.number),
        request(std::move(prepared.request)),
        output(std::move(prepared.output)),
        arrival(prepared.arrival),
        rules(request),
        choices(static_cast<size_t>(request.num_choices)) {}

  RequestNumber number;
  GenerationRequest request;
  std::shared_ptr<OutputQueue> output;
  absl::Time arrival;
  OutputRules rules;
  std::vector<Choice> choices;
  int32_t client = 0;
  RequestUsage usage;
  bool admitted = false;
  absl::Time admitted_at;
  absl::Time first_token_at = absl::InfiniteFuture();
  absl::Time stalled_since = absl::InfiniteFuture();
  bool any_stop = false;  // some choice ended by itself
  bool ended = false;
  bool touched = false;  // in touched_
  int32_t reported_progress = 0;
  std::vector<TokenOutput> prompt_scores;
  std::unique_ptr<TextStream> prompt_text;
  double attended = 0;  // usage.kv_tokens_attended before rounding
  std::vector<double> pooled;  // sums over num_pooled tokens, or one token's
  int32_t num_pooled = 0;

  int32_t num_prompt() const { return static_cast<int32_t>(request.prompt.size()); }
};

// One run of the step with its part of the model's output.
struct EngineCore::RunContext {
  const PlannedRun* run;
  size_t index;  // into the plan's runs
  Request* request;
  Sequence* sequence;
  int64_t first_logit_row;
  int64_t first_hidden_row;
};

EngineCore::EngineCore(const EngineOptions& options, Executor* executor,
                       const TextStreamFactory* text, EngineObserver* observer, const Clock* clock,
                       AnnounceFn announce)
    : options_(options),
      executor_(executor),
      text_(text),
      observer_(observer),
      clock_(clock),
      announce_(announce != nullptr ? std::move(announce) : NotifyAll) {
  const ExecutorInfo& info = executor->info();
  LS_CHECK_EQ(info.groups.size(), info.num_pages.size());
  LS_CHECK_LE(options.max_choices, kSequencesPerRequest);
  attended_keys_ = [executor](int64_t position, model::NumericsClass numerics) {
    return executor->AttendedKeys(position, numerics);
  };
  max_context_ = info.max_context;
  if (options.max_context > 0) max_context_ = std::min(max_context_, options.max_context);
  scheduler_ = std::make_unique<Scheduler>(MakeState(options, info), LimitsOf(options, info), observer);
  int32_t fits = 0, too_many = max_context_ + 1;
  while (too_many - fits > 1) {
    const int32_t middle = fits + (too_many - fits) / 2;
    const bool ok = PeakBytes(info.groups, middle, scheduler_->limits().max_step_tokens) <=
                    info.kv_budget_bytes;
    (ok ? fits : too_many) = middle;
  }
  max_request_tokens_ = fits;
  now_ = clock->Now();
}

EngineCore::~EngineCore() = default;

absl::Status EngineCore::Validate(const GenerationRequest& r) const {
  const ExecutorInfo& info = executor_->info();
  if (r.prompt.empty()) return absl::InvalidArgumentError("the prompt has no tokens");
  for (const int32_t token : r.prompt) {
    if (token < 0 || token >= info.vocab_size) {
      return absl::InvalidArgumentError(StrCat("prompt token id ", token,
                                               " is not in the vocabulary of ", info.vocab_size));
    }
  }
  if (r.num_choices < 1 || r.num_choices > options_.max_choices ||
      r.num_choices > scheduler_->limits().max_running_sequences) {
    return absl::InvalidArgumentError(
        StrCat("n is ", r.num_choices, ", allowed are 1 to ",
               std::min(options_.max_choices, scheduler_->limits().max_running_sequences)));
  }
  if (r.max_tokens < 0 || r.min_tokens < 0 || r.min_tokens > r.max_tokens) {
    return absl::InvalidArgumentError(StrCat("min_tokens is ", r.min_tokens, " and max_tokens is ",
                                             r.max_tokens, ": 0 <= min_tokens <= max_tokens is needed"));
  }
  if (r.kind == RequestKind::kGenerate && !info.causal) {
    return absl::InvalidArgumentError("an encoder generates no text");
  }
  if (r.kind == RequestKind::kClassify && info.num_labels == 0) {
    return absl::InvalidArgumentError("the model has no classifier");
  }
  if (r.kind != RequestKind::kGenerate && (r.max_tokens != 0 || r.num_choices != 1)) {
    return absl::InvalidArgumentError(
        "an embedding or classification generates no tokens and has one choice");
  }
  const model::SamplingParams& s = r.sampling;
  for (const float x : {s.temperature, s.top_p, s.min_p, s.typical_p, s.repetition_penalty,
                        s.presence_penalty, s.frequency_penalty}) {
    if (!std::isfinite(x)) return absl::InvalidArgumentError("a sampling parameter is not finite");
  }
  if (s.temperature < 0 || s.top_k < 0 || s.repetition_penalty <= 0) {
    return absl::InvalidArgumentError(
        "temperature and top_k must not be negative, repetition_penalty must be positive");
  }
  const int64_t total = std::ssize(r.prompt) + int64_t{r.max_tokens};
  if (total > max_context_) {
    return absl::InvalidArgumentError(
        StrCat("the prompt has ", r.prompt.size(), " tokens and max_tokens is ", r.max_tokens,
               ", together ", total, ", but the context holds ", max_context_,
               " tokens; shorten the prompt or lower max_tokens"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<PreparedRequest>> EngineCore::Prepare(
    GenerationRequest request) const {
  RETURN_IF_ERROR(Validate(request));
  const ExecutorInfo& info = executor_->info();
  auto prepared = std::make_unique<PreparedRequest>();
  const int64_t total = std::ssize(request.prompt) + int64_t{request.max_tokens};
  const int64_t decisive = info.variants_by_prompt ? std::ssize(request.prompt) : total;
  for (const int32_t length : info.variant_lengths) prepared->rope_variant += decisive > length;
  prepared->arrival = clock_->Now();
  prepared->request = std::move(request);
  const GenerationRequest& r = prepared->request;

  const std::unique_ptr<Sequence> probe = NewSequence(*prepared, 0);
  const SchedulerLimits& limits = scheduler_->limits();
  const int64_t need = std::max(PeakBytes(info.groups, total, limits.max_step_tokens),
                                ReserveBytes(info.groups, limits, *probe));
  if (need > info.kv_budget_bytes) {
    return absl::InvalidArgumentError(
        StrCat("the request may need ", need, " bytes of KV cache (", r.prompt.size(),
               " prompt tokens, max_tokens ", r.max_tokens, ", n ", r.num_choices,
               "), but the page budget is ", info.kv_budget_bytes,
               " bytes; shorten it or give the server more KV memory"));
  }
  if (const PrefixCache* cache = scheduler_->state().prefix_cache.get()) {
    const std::string variant(1, static_cast<char>(prepared->rope_variant));
    const std::string_view parts[] = {info.model_digest, info.plan_digest, info.kv_dtype, variant,
                                      r.cache_salt};
    prepared->root_key = cache->RootKey(parts);
    if (r.use_prefix_cache) {
      cache->ExtendKeys(prepared->root_key, r.prompt, static_cast<int32_t>(r.prompt.size()),
                        &prepared->keys);
    }
  }
  return prepared;
}

std::unique_ptr<Sequence> EngineCore::NewSequence(const PreparedRequest& prepared,
                                                  int32_t choice) const {
  const GenerationRequest& r = prepared.request;
  auto s = std::make_unique<Sequence>();
  s->id = SequenceIdOf(prepared.number, choice);
  s->priority = r.priority;
  s->arrival = prepared.arrival;
  s->rope_variant = prepared.rope_variant;
  s->use_prefix_cache = r.use_prefix_cache;
  s->wants_hidden = r.kind != RequestKind::kGenerate;
  s->wants_prompt_logits = r.num_prompt_logprobs >= 0;
  s->wants_last_logits = r.max_tokens > 0;
  s->num_prompt = static_cast<int32_t>(r.prompt.size());
  s->max_tokens = r.max_tokens;
  s->pending_forks = r.max_tokens > 0 ? r.num_choices - 1 : 0;
  s->tokens = r.prompt;
  s->root_key = prepared.root_key;
  s->keys = prepared.keys;
  return s;
}

void EngineCore::Enqueue(std::unique_ptr<PreparedRequest> prepared) {
  now_ = clock_->Now();
  auto sequence = NewSequence(*prepared, 0);
  auto request = std::make_unique<Request>(std::move(*prepared));
  const RequestNumber number = request->number;
  observer_->Submitted(request->request);
  request->client = scheduler_->fair_share().Join(request->request.client);
  request->usage.prompt_tokens = request->num_prompt();
  sequence->client = request->client;
  for (Choice& choice : request->choices) {
    std::unique_ptr<TextStream> stream =
        text_ == nullptr ? std::make_unique<NoText>()
                         : text_->NewStream(request->request.skip_special_tokens, false,
                                            request->request.keep_special_token_ids);
    choice.output = std::make_unique<OutputProcessor>(&request->rules, std::move(stream));
  }
  if (request->request.deadline) deadlines_.emplace(*request->request.deadline, number);
  ++num_waiting_;
  num_waiting_tokens_ += request->num_prompt();
  Request* r = request.get();
  LS_CHECK(requests_.emplace(number, std::move(request)).second);
  if (!failure_.ok()) {
    Finish(r, FinishReason::kError, failure_, AbortCause::kShutdown);
    FlushOutputs();
    return;
  }
  scheduler_->Add(std::move(sequence));
}

EngineCore::Request* EngineCore::RequestOf(SequenceId id) {
  const auto it = requests_.find(id / kSequencesPerRequest);
  return it == requests_.end() ? nullptr : it->second.get();
}

OutputQueue* EngineCore::output(RequestNumber number) const {
  const auto it = requests_.find(number);
  return it == requests_.end() ? nullptr : it->second->output.get();
}

void EngineCore::Cancel(const Cancellation& cancellation) {
  const auto it = requests_.find(cancellation.number);
  if (it == requests_.end()) return;
  now_ = clock_->Now();
  const bool deadline = cancellation.reason == FinishReason::kDeadline;
  Finish(it->second.get(), cancellation.reason,
         deadline ? absl::DeadlineExceededError("the request's deadline passed")
                  : absl::CancelledError("the request was cancelled"),
         deadline ? AbortCause::kDeadline : cancellation.cause);
  FlushOutputs();
}

void EngineCore::CancelAll(const absl::Status& status, AbortCause cause) {
  now_ = clock_->Now();
  while (!requests_.empty()) {
    Finish(requests_.begin()->second.get(), FinishReason::kError, status, cause);
  }
  FlushOutputs();
}

void EngineCore::ExpireDeadlines() {
  while (!deadlines_.empty() && deadlines_.begin()->first <= now_) {
    const RequestNumber number = deadlines_.begin()->second;
    deadlines_.erase(deadlines_.begin());
    const auto it = requests_.find(number);
    if (it == requests_.end()) continue;
    Finish(it->second.get(), FinishReason::kDeadline,
           absl::DeadlineExceededError("the request's deadline passed"), AbortCause::kDeadline);
  }
}

// A reader that lets its queue fill up holds its own sequences, and nobody else's; when it reads on
// they run on, when it does not in time they end.
void EngineCore::CheckStalledReaders() {
  for (auto it = stalled_.begin(); it != stalled_.end();) {
    const auto found = requests_.find(*it);
    if (found == requests_.end()) {
      it = stalled_.erase(it);
      continue;
    }
    Request* r = found->second.get();
    const absl::Duration waited = now_ - r->stalled_since;
    const bool drained = r->output->bytes() <= options_.max_output_queue_bytes / 2;
    if (!drained && waited < options_.slow_client_timeout) {
      ++it;
      continue;
    }
    it = stalled_.erase(it);
    observer_->ClientStalled(absl::ToDoubleSeconds(waited));
    if (drained) {
      SetStalled(r, false);
    } else {
      Finish(r, FinishReason::kCancelled,
             absl::AbortedError(StrCat("the client read nothing for ",
                                       absl::ToInt64Seconds(waited), " s while ",
                                       options_.max_output_queue_bytes, " bytes waited for it")),
             AbortCause::kSlowClient);
    }
  }
}

void EngineCore::SetStalled(Request* r, bool stalled) {
  r->stalled_since = stalled ? now_ : absl::InfiniteFuture();
  r->output->WakeOnDrain(stalled);
  for (size_t c = 0; c < r->choices.size(); ++c) {
    Sequence* s = scheduler_->Find(SequenceIdOf(r->number, static_cast<int32_t>(c)));
    if (s != nullptr) s->stalled = stalled;
  }
}

absl::Time EngineCore::NextWakeup() const {
  absl::Time next = deadlines_.empty() ? absl::InfiniteFuture() : deadlines_.begin()->first;
  for (const RequestNumber number : stalled_) {
    const auto it = requests_.find(number);
    if (it == requests_.end()) continue;
    next = std::min(next, it->second->stalled_since + options_.slow_client_timeout);
  }
  return next;
}

bool EngineCore::Step() {
  now_ = clock_->Now();
  finished_.clear();
  ExpireDeadlines();
  CheckStalledReaders();
  StepReport report;
  const int64_t start = clock_->MonotonicNanos();
  plan_ = PlanStep(scheduler_->state(), scheduler_->limits(), cost_model_.cost(), attended_keys_,
                   now_);
  const int64_t planned = clock_->MonotonicNanos();
  report.plan_ns = planned - start;
  if (plan_.empty()) {
    FlushOutputs();
    const bool news = unreported_;
    if (news) Report(&report);
    return news;
  }
  const absl::Status applied = scheduler_->Apply(plan_, now_);
  if (!applied.ok()) {
    Log(LogLevel::kError, "a step could not be set up", {{"error", applied.ToString()}});
    if (++apply_failures_ >= kMaxApplyFailures) FailStep(applied, NumbersOfRuns());
    FlushOutputs();
    return true;
  }
  apply_failures_ = 0;
  NoteAdmissions();
  NotePeaks();
  const int64_t copying = clock_->MonotonicNanos();
  const absl::Status copied = MovePages();
  const int64_t copy_ns = clock_->MonotonicNanos() - copying;
  if (!copied.ok()) {
    FailCopies(copied);
    FlushOutputs();
    return true;
  }
  BuildModelInput(scheduler_->state(), plan_.runs, &input_);
  AskForTokens();
  const int64_t ready = clock_->MonotonicNanos();
  absl::Status status = absl::OkStatus();
  if (!plan_.runs.empty()) status = executor_->Forward(input_, &output_);
  const int64_t computed = clock_->MonotonicNanos();
  report.forward_ns = computed - ready;
  now_ = clock_->Now();
  if (status.ok()) {
    HandleOutput(&report);
  } else {
    FailStep(status, NumbersOfRuns());
  }
  scheduler_->EndStep();
  FlushOutputs();
  const int64_t end = clock_->MonotonicNanos();
  report.emit_ns = (ready - planned) + (end - computed) - report.sample_ns;
  if (status.ok() && !plan_.runs.empty()) {
    // Watching is no part of the work itself.
    const int64_t shadow_ns = report.shadow ? report.shadow->nanos : 0;
    cost_model_.Observe(plan_.work, report.prefill_tokens > 0,
                        static_cast<double>(end - start - copy_ns - shadow_ns) * 1e-9);
  }
  Report(&report);
  if (options_.check_integrity && idle()) {
    const absl::Status integrity = CheckIntegrity();
    LS_CHECK_EQ(integrity.ToString(), absl::OkStatus().ToString());
  }
  return true;
}

// Pages go to host memory before their own gives room to others, and come back behind that.
absl::Status EngineCore::MovePages() {
  std::vector<model::PageCopy> copies = scheduler_->TakeCopies();
  const auto decommits = scheduler_->allocator().TakeDecommits();
  const auto back = std::stable_partition(copies.begin(), copies.end(),
                                          [](const model::PageCopy& c) { return c.to_host; });
  RETURN_IF_ERROR(CopyPages({copies.begin(), back}));
  for (size_t g = 0; g < decommits.size(); ++g) {
    if (!decommits[g].empty()) executor_->Decommit(static_cast<int32_t>(g), decommits[g]);
  }
  return CopyPages({back, copies.end()});
}

absl::Status EngineCore::CopyPages(std::span<const model::PageCopy> copies) {
  if (copies.empty()) return absl::OkStatus();
  const int64_t start = clock_->MonotonicNanos();
  RETURN_IF_ERROR(executor_->CopyPages(copies));
  int64_t bytes = 0;
  for (const model::PageCopy& copy : copies) {
    bytes += scheduler_->allocator().page_bytes(copy.group);
  }
  observer_->PagesCopied(copies.front().to_host, bytes,
                         static_cast<double>(clock_->MonotonicNanos() - start) * 1e-9);
  return absl::OkStatus();
}

// Nobody knows what the pages hold that should have come: their sequences end, the cache is emptied.
void EngineCore::FailCopies(const absl::Status& status) {
  scheduler_->FlushCache();
  std::set<RequestNumber> numbers = NumbersOfRuns();
  for (const Admission& admission : plan_.admit) {
    numbers.insert(admission.id / kSequencesPerRequest);
  }
  FailStep(status, numbers);
}

void EngineCore::NoteAdmissions() {
  for (const SequenceId id : plan_.preempt) {
    if (Request* r = RequestOf(id)) ++r->usage.preemptions;
  }
  for (const Admission& admission : plan_.admit) {
    Request* r = RequestOf(admission.id);
    if (r->admitted) continue;
    r->admitted = true;
    r->admitted_at = now_;
    --num_waiting_;
    num_waiting_tokens_ -= r->num_prompt();
    r->usage.queue_seconds = absl::ToDoubleSeconds(now_ - r->arrival);
    r->usage.cached_tokens = admission.cached_tokens;
    observer_->Admitted(r->usage.queue_seconds, r->num_prompt(), admission.cached_tokens);
    if (admission.generated_tokens > 0) observer_->GeneratedPrefixHit(admission.generated_tokens);
    const double keys =
        SumAttendedKeys(attended_keys_, admission.cached_tokens, r->num_prompt(),
                        r->num_prompt()) /
        std::max(1, r->num_prompt() - admission.cached_tokens);
    scheduler_->fair_share().Charge(
        r->client, FairShare::TokenWork(keys, false) *
                       static_cast<double>(r->num_prompt() - admission.cached_tokens));
  }
}

// Bytes of the pages that a request holds, pages that its choices share counted once.
void EngineCore::NotePeaks() {
  const std::vector<model::CacheGroup>& groups = scheduler_->state().groups;
  for (const PlannedRun& run : plan_.runs) {
    Request* r = RequestOf(run.id);
    int64_t bytes = 0;
    for (int32_t c = 0; c < r->request.num_choices; ++c) {
      const Sequence* s = scheduler_->Find(SequenceIdOf(r->number, c));
      if (s == nullptr) continue;
      for (size_t g = 0; g < groups.size(); ++g) {
        int64_t pages = std::ssize(s->pages[g]);
        if (groups[g].retention.keeps_all()) {
          if (c > 0) pages = std::max<int64_t>(0, pages - s->num_prompt / kPageTokens);
        } else {
          pages -= std::max<int64_t>(
              0, std::min<int64_t>(s->first_live[g], pages) - groups[g].retention.first_dead_page());
        }
        bytes += pages * groups[g].page_bytes;
      }
    }
    r->usage.kv_bytes_peak = std::max(r->usage.kv_bytes_peak, bytes);
  }
}

// Of every run that ends with a token to choose, but for prompts from which several choices start.
void EngineCore::AskForTokens() {
  input_.choices.clear();
  choice_of_run_.assign(plan_.runs.size(), -1);
  int32_t row = 0;
  for (size_t i = 0; i < plan_.runs.size(); ++i) {
    const PlannedRun& run = plan_.runs[i];
    row += run.num_logits;
    const Request* r = RequestOf(run.id);
    const Sequence* s = scheduler_->Find(run.id);
    if (r == nullptr || s == nullptr || run.num_logits == 0 || r->request.max_tokens == 0 ||
        s->pending_forks > 0 || run.first_position + run.num_tokens < s->num_tokens()) {
      continue;
    }
    choice_of_run_[i] = std::ssize(input_.choices);
    input_.choices.push_back({.logits_row = row - 1, .context = ContextOf(*r, *s)});
  }
}

std::set<RequestNumber> EngineCore::NumbersOfRuns() const {
  std::set<RequestNumber> numbers;
  for (const PlannedRun& run : plan_.runs) numbers.insert(run.id / kSequencesPerRequest);
  return numbers;
}

// What was computed is lost; whole pages from before the step stay good.
void EngineCore::FailStep(const absl::Status& status, const std::set<RequestNumber>& numbers) {
  const std::string id = StrCat("e-", next_error_++);
  Log(LogLevel::kError, "a step failed", {{"error_id", id}, {"error", status.ToString()}});
  for (const RequestNumber number : numbers) {
    const auto it = requests_.find(number);
    if (it == requests_.end()) continue;
    Finish(it->second.get(), FinishReason::kError,
           absl::InternalError(StrCat("the model could not compute this request; the server's log "
                                      "has the cause under error id ", id)),
           AbortCause::kNone);
  }
  if (!executor_->healthy()) {
    failure_ = absl::UnavailableError(
        StrCat("the device failed and needs a restart of the server (error id ", id, ")"));
    CancelAll(failure_, AbortCause::kShutdown);
  }
}

void EngineCore::HandleOutput(StepReport* report) {
  int64_t logit_row = 0, hidden_row = 0;
  for (size_t i = 0; i < plan_.runs.size(); ++i) {
    const PlannedRun& run = plan_.runs[i];
    const RunContext context{.run = &run,
                       .index = i,
                       .request = RequestOf(run.id),
                       .sequence = scheduler_->Find(run.id),
                       .first_logit_row = logit_row,
                       .first_hidden_row = hidden_row};
    logit_row += run.num_logits;
    if (input_.runs[i].wants_hidden) hidden_row += run.num_tokens;
    // A choice's failure ends its whole request, also runs that come later in this step.
    if (context.request == nullptr || context.sequence == nullptr) continue;
    HandleRun(context, report);
  }
  report->model = output_.times;
  report->repeatable = output_.repeatable;
  report->kernel_times = output_.kernel_times;
  report->counters = output_.counters;
  report->shadow = output_.shadow;
  report->num_sequences = static_cast<int32_t>(plan_.runs.size());
}

void EngineCore::HandleRun(const RunContext& context, StepReport* report) {
  const PlannedRun& run = *context.run;
  Request* r = context.request;
  Sequence* s = context.sequence;
  const int32_t end = run.first_position + run.num_tokens;
  if (run.decode) {
    ++report->decode_tokens;
    scheduler_->fair_share().Charge(
        r->client, FairShare::TokenWork(attended_keys_(run.first_position, run.numerics), true));
  } else {
    report->prefill_tokens += run.num_tokens;
    report->recomputed_tokens += std::max(0, std::min(end, s->high_water) - run.first_position);
  }
  for (int32_t p = std::max(run.first_position, s->high_water); p < end; ++p) {
    r->usage.kv_tokens_total += executor_->info().causal ? p + 1 : end;
    r->attended += attended_keys_(p, run.numerics);
  }
  r->usage.kv_tokens_attended = std::llround(r->attended);
  if (s->wants_prompt_logits) ScorePrompt(context);
  if (r->ended) return;
  if (s->wants_hidden) Pool(context);
  scheduler_->Complete(run);
  if (!run.decode && s->num_generated() == 0) ReportProgress(r, end);
  if (end < s->num_tokens()) return;
  if (end == s->num_prompt && s->wants_prompt_logits && s->num_generated() == 0) {
    Emit(r, {.kind = OutputEvent::Kind::kPromptLogprobs, .tokens = std::move(r->prompt_scores)});
  }
  if (r->request.max_tokens == 0) {
    FinishPrefillOnly(r);
    return;
  }
  const int64_t before = clock_->MonotonicNanos();
  SampleChoices(context, report);
  report->sample_ns += clock_->MonotonicNanos() - before;
}

void EngineCore::ReportProgress(Request* r, int32_t processed) {
  const int32_t interval = r->request.progress_interval_tokens;
  if (interval <= 0) return;
  if (processed < r->num_prompt() && processed - r->reported_progress < interval) return;
  r->reported_progress = processed;
  Emit(r, {.kind = OutputEvent::Kind::kProgress, .processed_tokens = processed, .usage = r->usage});
}

// Rows of logits at positions p score the prompt's token p + 1.
void EngineCore::ScorePrompt(const RunContext& context) {
  Request* r = context.request;
  const PlannedRun& run = *context.run;
  const std::vector<int32_t>& prompt = r->request.prompt;
  if (run.first_position >= r->num_prompt()) return;
  const auto text_of = [&](int32_t token) {
    if (r->prompt_text == nullptr) {
      r->prompt_text = text_ == nullptr
                           ? std::make_unique<NoText>()
                           : text_->NewStream(/*skip_special=*/false, /*at_text_start=*/true, {});
    }
    return r->prompt_text->Push(token);
  };
  if (r->prompt_scores.empty()) {
    r->prompt_scores.push_back({.token = prompt[0], .text = text_of(prompt[0])});
  }
  const int32_t end = run.first_position + run.num_tokens;
  for (int32_t i = 0; i < run.num_logits; ++i) {
    const int32_t position = end - run.num_logits + i;
    if (position + 1 >= r->num_prompt()) break;
    const int32_t token = prompt[static_cast<size_t>(position) + 1];
    const float* row = output_.logits.row<float>(context.first_logit_row + i);
    model::SampledToken scored = sampler_.Score(
        {row, static_cast<size_t>(output_.logits.shape[1])}, token, r->request.num_prompt_logprobs);
    if (!scored.logits_valid) {
      FailInvalidLogits(r);
      return;
    }
    r->prompt_scores.push_back({.token = token,
                                .text = text_of(token),
                                .logprob = scored.logprob,
                                .top = std::move(scored.top)});
  }
}

model::Pooling EngineCore::PoolingOf(const Request& r) const {
  return r.request.kind == RequestKind::kClassify ? executor_->info().classify_pooling
                                                  : executor_->info().embed_pooling;
}

// Sums in order of position, in double: the same whatever the chunks were.
void EngineCore::Pool(const RunContext& context) {
  Request* r = context.request;
  const PlannedRun& run = *context.run;
  const model::Pooling pooling = PoolingOf(*r);
  const auto dim = static_cast<size_t>(output_.hidden.shape[1]);
  r->pooled.resize(dim, 0.0);
  for (int32_t i = 0; i < run.num_tokens; ++i) {
    if (run.first_position + i != r->num_pooled) continue;  // pooled before a preemption
    const float* row = output_.hidden.row<float>(context.first_hidden_row + i);
    ++r->num_pooled;
    if (pooling == model::Pooling::kFirst && r->num_pooled > 1) continue;
    if (pooling == model::Pooling::kLast) r->pooled.assign(dim, 0.0);
    for (size_t d = 0; d < dim; ++d) r->pooled[d] += static_cast<double>(row[d]);
  }
}

void EngineCore::FinishPrefillOnly(Request* r) {
  if (r->request.kind != RequestKind::kGenerate) {
    const int32_t count = PoolingOf(*r) == model::Pooling::kMean ? r->num_pooled : 1;
    std::vector<float> pooled;
    for (const double sum : r->pooled) pooled.push_back(static_cast<float>(sum / count));
    Emit(r, {.kind = OutputEvent::Kind::kVector,
             .vector = r->request.kind == RequestKind::kEmbed ? executor_->Embed(pooled)
                                                              : executor_->Classify(pooled)});
  }
  for (size_t c = 0; c < r->choices.size(); ++c) {
    EndChoice(r, static_cast<int32_t>(c), {.reason = FinishReason::kLength});
  }
  Finish(r, FinishReason::kLength, absl::OkStatus(), AbortCause::kNone);
}

void EngineCore::SampleChoices(const RunContext& context, StepReport* report) {
  Request* r = context.request;
  Sequence* s = context.sequence;
  const int64_t asked = choice_of_run_[context.index];
  if (asked >= 0 && asked < std::ssize(output_.chosen) &&
      output_.chosen[static_cast<size_t>(asked)]) {
    ++report->chosen_on_device;
    TakeToken(r, s, *output_.chosen[static_cast<size_t>(asked)]);
    return;
  }
  const auto vocab = static_cast<size_t>(output_.logits.shape[1]);
  float* row = output_.logits.row<float>(context.first_logit_row + context.run->num_logits - 1);
  while (!r->ended && s->pending_forks > 0) Fork(r, s, {row, vocab});
  if (!r->ended) SampleChoice(r, s, {row, vocab});
}

// The next choice branches off: it shares the prompt's whole pages and starts from the same logits.
void EngineCore::Fork(Request* r, Sequence* parent, std::span<const float> logits) {
  const int32_t choice = r->request.num_choices - parent->pending_forks;
  auto fork = std::make_unique<Sequence>();
  fork->id = SequenceIdOf(r->number, choice);
  fork->client = parent->client;
  fork->priority = parent->priority;
  fork->arrival = parent->arrival;
  fork->rope_variant = parent->rope_variant;
  fork->use_prefix_cache = parent->use_prefix_cache;
  fork->stalled = parent->stalled;
  fork->num_prompt = parent->num_prompt;
  fork->max_tokens = parent->max_tokens;
  fork->tokens.assign(parent->tokens.begin(), parent->tokens.begin() + parent->num_prompt);
  Sequence* s = scheduler_->Fork(parent, std::move(fork));
  row_.assign(logits.begin(), logits.end());
  SampleChoice(r, s, row_);
}

model::SamplingContext EngineCore::ContextOf(const Request& r, const Sequence& s) const {
  const std::span<const int32_t> tokens(s.tokens);
  model::SamplingContext context{
      .params = &r.request.sampling,
      .prompt = tokens.first(static_cast<size_t>(s.num_prompt)),
      .generated = tokens.subspan(static_cast<size_t>(s.num_prompt)),
      .choice = static_cast<uint32_t>(s.id % kSequencesPerRequest),
      .num_logprobs = r.request.num_logprobs,
  };
  if (s.num_generated() < r.rules.min_tokens) context.banned = r.rules.stop_tokens;
  return context;
}

void EngineCore::SampleChoice(Request* r, Sequence* s, std::span<float> logits) {
  TakeToken(r, s, sampler_.Sample(logits, ContextOf(*r, *s)));
}

void EngineCore::TakeToken(Request* r, Sequence* s, const model::SampledToken& sampled) {
  const auto choice = static_cast<int32_t>(s->id % kSequencesPerRequest);
  Choice& c = r->choices[static_cast<size_t>(choice)];
  if (!sampled.logits_valid) {
    FailInvalidLogits(r);
    return;
  }
  s->tokens.push_back(sampled.token);
  ++r->usage.generated_tokens;
  ++step_generated_;
  if (r->first_token_at == absl::InfiniteFuture()) {
    r->first_token_at = now_;
    r->usage.prefill_seconds = absl::ToDoubleSeconds(now_ - r->admitted_at);
    observer_->FirstToken(absl::ToDoubleSeconds(now_ - r->arrival));
  }
  const auto ending = c.output->Push(sampled);
  EmitDelta(r, choice);
  if (!ending) return;
  r->any_stop = r->any_stop || ending->reason == FinishReason::kStop;
  EndChoice(r, choice, *ending);
  scheduler_->Remove(s->id, PageFreeCause::kFinish);
  const bool all = std::all_of(r->choices.begin(), r->choices.end(),
                               [](const Choice& other) { return other.finished; });
  if (all) {
    Finish(r, r->any_stop ? FinishReason::kStop : FinishReason::kLength, absl::OkStatus(),
           AbortCause::kNone);
  }
}

void EngineCore::FailInvalidLogits(Request* r) {
  observer_->InvalidLogits();
  Finish(r, FinishReason::kError,
         absl::InternalError("no token could be sampled or scored: the logits are not numbers, or "
                             "the request's constraints allow no token"),
         AbortCause::kNone);
}

void EngineCore::Emit(Request* r, OutputEvent event) {
  const int64_t bytes = r->output->Push(std::move(event));
  if (!r->touched) {
    r->touched = true;
    touched_.push_back(r->output);
    touched_requests_.push_back(r);
  }
  if (bytes > options_.max_output_queue_bytes && r->stalled_since == absl::InfiniteFuture() &&
      !r->ended) {
    SetStalled(r, true);
    stalled_.insert(r->number);
  }
}

void EngineCore::EmitDelta(Request* r, int32_t choice) {
  Choice& c = r->choices[static_cast<size_t>(choice)];
  OutputEvent event{.kind = OutputEvent::Kind::kDelta, .choice = choice};
  c.output->Take(&event.text, &event.tokens);
  if (event.text.empty() && event.tokens.empty()) return;
  if (c.last_emitted != absl::InfinitePast()) {
    observer_->InterToken(absl::ToDoubleSeconds(now_ - c.last_emitted));
  }
  c.last_emitted = now_;
  Emit(r, std::move(event));
}

void EngineCore::EndChoice(Request* r, int32_t choice, const OutputProcessor::Ending& ending) {
  r->choices[static_cast<size_t>(choice)].finished = true;
  Emit(r, {.kind = OutputEvent::Kind::kChoiceFinished,
           .choice = choice,
           .reason = ending.reason,
           .stop_string = ending.stop_string,
           .stop_token = ending.stop_token});
}

void EngineCore::Finish(Request* r, FinishReason reason, absl::Status status, AbortCause cause) {
  LS_CHECK(!r->ended);
  for (int32_t c = 0; c < r->request.num_choices; ++c) {
    const SequenceId id = SequenceIdOf(r->number, c);
    if (scheduler_->Find(id) != nullptr) {
      scheduler_->Remove(id, status.ok() ? PageFreeCause::kFinish : PageFreeCause::kAbort);
    }
    Choice& choice = r->choices[static_cast<size_t>(c)];
    if (choice.finished) continue;
    choice.output->Abandon();
    EmitDelta(r, c);
    EndChoice(r, c, {.reason = reason});
  }
  const absl::Time now = now_;
  RequestUsage& usage = r->usage;
  if (!r->admitted) {
    --num_waiting_;
    num_waiting_tokens_ -= r->num_prompt();
    usage.queue_seconds = absl::ToDoubleSeconds(now - r->arrival);
  } else if (r->first_token_at != absl::InfiniteFuture()) {
    usage.decode_seconds = absl::ToDoubleSeconds(now - r->first_token_at);
  } else {
    usage.prefill_seconds = absl::ToDoubleSeconds(now - r->admitted_at);
  }
  Emit(r, {.kind = OutputEvent::Kind::kFinished, .reason = reason, .status = status, .usage = usage});
  r->ended = true;
  observer_->Finished(
      {.reason = reason,
       .abort = cause,
       .usage = usage,
       .num_choices = r->request.num_choices,
       .max_tokens = r->request.max_tokens,
       .ttft_seconds = r->first_token_at == absl::InfiniteFuture()
                           ? -1
                           : absl::ToDoubleSeconds(r->first_token_at - r->arrival),
       .e2e_seconds = absl::ToDoubleSeconds(now - r->arrival),
       .kind = r->request.kind});
  unreported_ = true;
  scheduler_->fair_share().Leave(r->client);
  if (r->request.deadline) deadlines_.erase({*r->request.deadline, r->number});
  const auto it = requests_.find(r->number);
  finished_.push_back(std::move(it->second));
  requests_.erase(it);
}

void EngineCore::FlushOutputs() {
  for (Request* r : touched_requests_) r->touched = false;
  touched_requests_.clear();
  announce_(&touched_);
}

double EngineCore::kv_utilization() const {
  const PageAllocator& allocator = *scheduler_->state().allocator;
  return allocator.budget_bytes() == 0 ? 0.0
                                       : static_cast<double>(allocator.used_bytes()) /
                                             static_cast<double>(allocator.budget_bytes());
}

void EngineCore::Report(StepReport* report) {
  const SchedulerState& state = scheduler_->state();
  const PageAllocator& allocator = *state.allocator;
  unreported_ = false;
  report->generated_tokens = std::exchange(step_generated_, 0);
  report->running = num_running();
  report->waiting = num_waiting_;
  report->waiting_prompt_tokens = num_waiting_tokens_;
  const int64_t free_bytes =
      allocator.budget_bytes() - allocator.used_bytes() - allocator.cached_bytes();
  for (size_t i = 0; i < state.groups.size(); ++i) {
    const PageAllocator::Counts counts = allocator.counts(static_cast<int32_t>(i));
    const int64_t page_bytes = state.groups[i].page_bytes;
    report->groups.push_back({.free = free_bytes / page_bytes,
                              .used = counts.used,
                              .cached = counts.cached,
                              .snapshot = state.groups[i].retention.keeps_all() ? 0 : counts.cached,
                              .bytes_used = counts.used * page_bytes,
                              .in_host = state.prefix_cache == nullptr
                                             ? 0
                                             : state.prefix_cache->host_slots_used(
                                                   static_cast<int32_t>(i))});
  }
  report->kv_utilization = kv_utilization();
  observer_->StepDone(*report);
}

absl::Status EngineCore::CheckIntegrity() const {
  RETURN_IF_ERROR(scheduler_->CheckIntegrity());
  if (!idle()) return absl::OkStatus();
  if (!scheduler_->state().sequences.empty()) {
    return absl::InternalError("a sequence outlived its request");
  }
  if (scheduler_->state().allocator->used_bytes() != 0) {
    return absl::InternalError(StrCat("idle, but ", scheduler_->state().allocator->used_bytes(),
                                      " bytes of pages are in use"));
  }
  if (num_waiting_ != 0 || num_waiting_tokens_ != 0) {
    return absl::InternalError("idle, but the queue's counts are not zero");
  }
  return absl::OkStatus();
}

}  // namespace longstride::engine

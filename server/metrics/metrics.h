// Every metric of the process: observes the engine and the front ends, serialises GET /metrics.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "config/base/clock.h"
#include "model/cache_group.h"
#include "prometheus/collectable.h"
#include "server/engine/engine.h"
#include "server/engine/observer.h"
#include "server/frontend/observer.h"
#include "server/metrics/cells.h"
#include "server/metrics/metric_table.h"

namespace longstride::metrics {

// What is served; fixed once the model is loaded.
struct ModelFacts {
  std::string name;
  std::string family;
  std::string weights_type;
  std::string model_digest;
  std::string plan;
  std::string plan_digest;
  std::string device;
  bool on_gpu = false;
  std::string kv_dtype;
  int32_t max_context = 0;
  int64_t weight_bytes = 0;
  int64_t workspace_bytes = 0;
  int64_t kv_budget_bytes = 0;
  std::vector<model::CacheGroup> groups;
  std::vector<std::string> patterns;  // what PatternCounters::pattern indexes
};

// What live fidelity compares, where it is on.
struct ShadowFacts {
  // A segment of a layer's plan.
  struct Heads {
    std::string heads;  // "0-7"
    std::string pattern;
    bool measured = false;
  };
  std::string baseline_digest;
  std::string reason;  // why some heads are not measured
  std::vector<std::vector<Heads>> layers;
};

struct MetricsOptions {
  bool gateway_aliases = true;
};

// Observer calls are thread-safe, and lock-free but for CallDone and Rejected, which find their
// series by label and are never called by the engine's thread.
class Metrics final : public engine::EngineObserver, public frontend::FrontendObserver {
 public:
  explicit Metrics(const MetricsOptions& options, const Clock* clock);
  ~Metrics() override;

  // Once, before the engine starts.
  void DescribeModel(const ModelFacts& facts);
  // Once, before the engine starts, where live fidelity is on.
  void DescribeShadow(const ShadowFacts& facts);
  // The engine whose state is read at each scrape; nullptr before it is destroyed.
  void WatchEngine(const engine::Engine* engine) { engine_ = engine; }

  // Prometheus text format 0.0.4. Thread-safe.
  std::string Scrape();
  static constexpr const char* kContentType = "text/plain; version=0.0.4; charset=utf-8";

  // engine::EngineObserver
  void Submitted(const engine::GenerationRequest& request) override;
  void Rejected(std::string_view reason) override;
  void Admitted(double queue_seconds, int32_t prompt_tokens, int32_t cached_tokens) override;
  void GeneratedPrefixHit(int32_t tokens) override;
  void FirstToken(double ttft_seconds) override;
  void InterToken(double seconds) override;
  void Preempted(int32_t tokens_lost) override;
  void PagesFreed(int32_t group, engine::PageFreeCause cause, int64_t pages) override;
  void PagesCopied(bool to_host, int64_t bytes, double seconds) override;
  void ClientStalled(double seconds) override;
  void InvalidLogits() override;
  void StepDone(const engine::StepReport& report) override;
  void Finished(const engine::FinishReport& report) override;

  // frontend::FrontendObserver
  void ConnectionOpened(frontend::Transport transport) override;
  void ConnectionClosed(frontend::Transport transport) override;
  void ConnectionRefused(frontend::Transport transport) override;
  void StreamOpened(frontend::Transport transport) override;
  void StreamClosed(frontend::Transport transport) override;
  void CallDone(const frontend::CallReport& report) override;
  void StreamError(frontend::Transport transport, int32_t code) override;
  void TokensWritten(frontend::Transport transport, int64_t tokens, int64_t nanos) override;
  void Tokenized(int64_t tokens, double seconds) override;
  void AuthenticationFailed(frontend::Transport transport) override;
  void AuditCommitted(int64_t records, double seconds) override;
  void AuditFailed() override;
  void AuditPending(int64_t records) override;
  void AuditLost(int64_t records) override;

 private:
  static constexpr size_t kFreeCauses = 5;
  struct GroupCells {
    Cell* free = nullptr;
    Cell* used = nullptr;
    Cell* cached = nullptr;
    Cell* snapshot = nullptr;
    Cell* host = nullptr;  // on a GPU
    Cell* bytes = nullptr;
    std::array<Cell*, kFreeCauses> freed = {};
  };
  struct PatternCells {
    Cell* causal = nullptr;
    Cell* visible = nullptr;
    Cell* read = nullptr;
  };
  struct TransportCells {
    HistogramCell* duration = nullptr;
    Cell* received = nullptr;
    Cell* sent = nullptr;
    Cell* connections = nullptr;
    Cell* refused = nullptr;
    Cell* streams = nullptr;
    Cell* stream_errors = nullptr;
    Cell* clients_gone = nullptr;
    Cell* authentication_failures = nullptr;
    Cell* written_tokens = nullptr;
    Cell* write_seconds = nullptr;
  };
  struct AliasCells {
    Cell* running = nullptr;
    Cell* waiting = nullptr;
    Cell* kv_usage = nullptr;
  };
  struct PhaseCells {
    Cell* plan = nullptr;
    Cell* selection = nullptr;
    Cell* attention = nullptr;
    Cell* linear = nullptr;
    Cell* other = nullptr;
    Cell* sampling = nullptr;
    Cell* emit = nullptr;
  };

  Family& At(MetricId id) { return *families_[static_cast<size_t>(id)]; }
  TransportCells& Of(frontend::Transport t) { return transports_[static_cast<size_t>(t)]; }
  void MakeTransportCells();
  void MakeStepCells();
  void AddPhases(const engine::StepReport& report);
  // Reads what is not pushed: the engine's state and the process's.
  void Refresh();
  void RefreshProcess();
  void RefreshGpu();

  const MetricsOptions options_;
  std::vector<std::unique_ptr<Family>> families_;  // by MetricId
  std::atomic<const engine::Engine*> engine_{nullptr};

  // References taken once, so that no observer call looks a label up.
  std::vector<GroupCells> groups_;
  std::vector<PatternCells> patterns_;
  std::array<TransportCells, 2> transports_;
  PhaseCells phases_;
  std::array<Cell*, 3> submitted_ = {};  // by RequestKind
  std::array<Cell*, 8> finished_ = {};   // by reason
  Cell* computed_tokens_ = nullptr;
  Cell* cached_tokens_ = nullptr;
  Cell* decode_tokens_ = nullptr;
  Cell* prefill_tokens_ = nullptr;
  struct GpuCells {
    std::array<Cell*, 3> decode_steps = {};  // by StepRun
    std::array<Cell*, 2> copied_bytes = {}, copied_seconds = {};  // in, out
    Cell* on_device = nullptr;
    Cell* on_host = nullptr;
    Cell* measured = nullptr;
    Cell* attention = nullptr;
    Cell* linear = nullptr;
    Cell* other = nullptr;
    Cell* flops = nullptr;
    Cell* bytes = nullptr;
  };
  void MakeGpuCells();
  void AddGpu(const engine::StepReport& report);
  struct ShadowCells {
    HistogramCell* mass = nullptr;
    HistogramCell* error = nullptr;
    Cell* layer_mass = nullptr;
    Cell* layer_error = nullptr;
    bool seen = false;
  };
  void AddShadow(const model::ShadowReport& report);
  std::vector<std::vector<ShadowCells>> shadow_;  // [layer][segment]; engine's thread

  std::optional<GpuCells> gpu_;  // none without a GPU
  std::atomic<bool> watch_memory_{false};
  AliasCells alias_cells_;
  std::atomic<const AliasCells*> aliases_{nullptr};  // set once the model is known
};

}  // namespace longstride::metrics

// A loaded model with a running engine: what `serve` and `generate` share.
#pragma once

#include <memory>

#include "config/base/clock.h"
#include "config/server_config.h"
#include "model/fidelity/live_shadow.h"
#include "model/model.h"
#include "server/engine/engine.h"
#include "server/metrics/metrics.h"

namespace longstride::cli {

class Runtime {
 public:
  // Loads the model and starts its engine; `metrics` and `clock` must outlive the runtime. Failures
  // carry their exit status: a faulty configuration or plan 2, a checkpoint that cannot be loaded
  // 3, too little memory 5.
  static absl::StatusOr<std::unique_ptr<Runtime>> Start(const ServerConfig& config,
                                                        metrics::Metrics* metrics,
                                                        const Clock* clock);
  // Stops the engine.
  ~Runtime();

  model::Model& model() { return *model_; }
  engine::Engine& engine() { return *engine_; }

 private:
  Runtime() = default;

  metrics::Metrics* metrics_ = nullptr;
  std::unique_ptr<model::Model> model_;
  std::unique_ptr<model::fidelity::LiveShadow> shadow_;  // or null
  std::unique_ptr<engine::Executor> executor_;
  std::unique_ptr<engine::Engine> engine_;
};

// Loads what the configuration names, with the same exit statuses.
absl::StatusOr<std::unique_ptr<model::Model>> LoadModel(const ServerConfig& config);

}  // namespace longstride::cli

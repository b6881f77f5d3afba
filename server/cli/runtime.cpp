#include "server/cli/runtime.h"

#include "config/base/logging.h"
#include "config/option_value.h"
#include "model/families/family.h"
#include "model/weights/weights_file.h"
#include "server/cli/command.h"
#include "server/cli/to_options.h"
#include "server/engine/model_executor.h"

namespace longstride::cli {
namespace {

// A checkpoint that is broken, absent or unknown is the model's fault; a device that cannot be used
// (UNAVAILABLE), a plan or a context is the configuration's. A broken checkpoint and a plan or context
// that does not suit it are both INVALID_ARGUMENT: where the checkpoint by itself can be read, the
// configuration is at fault.
absl::Status WithModelExit(const absl::Status& status, const std::string& path) {
  if (status.code() == absl::StatusCode::kUnavailable) return WithExit(status, kExitUsage);
  if (status.code() == absl::StatusCode::kResourceExhausted) return WithExit(status, kExitMemory);
  if (status.code() == absl::StatusCode::kInvalidArgument) {
    const auto file = model::WeightsFile::Open(path);
    if (file.ok() && model::LoadModelSpec(**file).ok()) return WithExit(status, kExitUsage);
  }
  return WithExit(status, kExitModel);
}

absl::StatusOr<std::unique_ptr<model::fidelity::LiveShadow>> MakeShadow(model::Model* model,
                                                                        double sample_rate) {
  ASSIGN_OR_RETURN(model::SparsityPlan baseline,
                   model::SparsityPlan::Resolve(SparsityPolicy{}, model->spec(),
                                                model->options().kv_dtype, model->max_context()));
  ASSIGN_OR_RETURN(std::unique_ptr<model::fidelity::LiveShadow> shadow,
                   model::fidelity::LiveShadow::Create(&model->backend(), &model->plan(),
                                                       std::move(baseline), sample_rate));
  Log(shadow->reason().empty() ? LogLevel::kInfo : LogLevel::kWarning, "live fidelity",
      {{"sample_rate", sample_rate},
       {"layers_measured", static_cast<int64_t>(shadow->layers().size())},
       {"layers", static_cast<int64_t>(model->plan().layers.size())},
       {"not_measured_because", shadow->reason().empty() ? "-" : shadow->reason()}});
  return shadow;
}

}  // namespace

absl::StatusOr<std::unique_ptr<model::Model>> LoadModel(const ServerConfig& config) {
  ASSIGN_OR_RETURN(const model::ModelOptions options, ToModelOptions(config));
  if (const absl::Status cuda = ChooseDevice(config).cuda; !cuda.ok()) {
    Log(LogLevel::kInfo, "computing on the CPU", {{"no_cuda", ToStd(cuda.message())}});
  }
  auto loaded = model::Model::Load(options);
  if (!loaded.ok()) return WithModelExit(loaded.status(), options.path);
  return loaded;
}

absl::StatusOr<std::unique_ptr<Runtime>> Runtime::Start(const ServerConfig& config,
                                                        metrics::Metrics* metrics,
                                                        const Clock* clock) {
  std::unique_ptr<Runtime> runtime(new Runtime);
  runtime->metrics_ = metrics;
  ASSIGN_OR_RETURN(runtime->model_, LoadModel(config));
  model::Model& model = *runtime->model_;
  metrics->DescribeModel(ToModelFacts(model));
  const engine::EngineOptions options = ToEngineOptions(config, model.max_context());
  if (config.fidelity.sample_rate > 0) {
    ASSIGN_OR_RETURN(runtime->shadow_, MakeShadow(&model, config.fidelity.sample_rate));
    metrics->DescribeShadow(ToShadowFacts(model, *runtime->shadow_));
  }
  runtime->executor_ = std::make_unique<engine::ModelExecutor>(&model, runtime->shadow_.get());
  runtime->engine_ =
      engine::StartEngine(options, runtime->executor_.get(), &model.tokenizer(), metrics, clock);
  metrics->WatchEngine(runtime->engine_.get());
  Log(LogLevel::kInfo, "model loaded",
      {{"model", model.name()},
       {"family", model.spec().family},
       {"weights", model.spec().weights_type},
       {"device", model.backend().Describe()},
       {"max_context", model.max_context()},
       {"plan", model.plan().name},
       {"weight_memory", FormatBytesShort(model.weight_bytes())},
       {"kv_memory", FormatBytesShort(model.cache().options().budget_bytes)},
       {"model_digest", model.model_digest()},
       {"plan_digest", model.plan().digest},
       {"fidelity_report",
        model.plan().fidelity_report.empty() ? "none" : model.plan().fidelity_report}});
  return runtime;
}

Runtime::~Runtime() {
  if (engine_ == nullptr) return;
  engine_->Stop();
  metrics_->WatchEngine(nullptr);
}

}  // namespace longstride::cli

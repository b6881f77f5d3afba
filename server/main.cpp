// longstride: config -> model -> engine -> front ends -> signals -> drain.
#include <future>
#include <iostream>

#include "config/base/clock.h"
#include "config/base/logging.h"
#include "config/base/version.h"
#include "server/cli/commands.h"
#include "server/cli/example.h"
#include "server/cli/front_ends.h"
#include "server/cli/runtime.h"
#include "server/cli/signals.h"
#include "server/cli/to_options.h"

extern char** environ;

namespace longstride::cli {
namespace {

// How long the last bytes of finished answers may take to reach their clients.
constexpr absl::Duration kFlush = absl::Seconds(5);

// Loads on a thread of its own so that a stop signal is obeyed meanwhile. Null: told to stop.
absl::StatusOr<std::unique_ptr<Runtime>> LoadUnlessStopped(const ServerConfig& config,
                                                           metrics::Metrics* metrics) {
  auto loading = std::async(std::launch::async,
                            [&] { return Runtime::Start(config, metrics, Clock::Real()); });
  while (loading.wait_for(std::chrono::milliseconds(5)) != std::future_status::ready) {
    if (!WaitForStopSignal(absl::Milliseconds(5))) continue;
    Log(LogLevel::kInfo, "stopped while loading");
    std::_Exit(kExitOk);  // nothing has been promised to anybody yet
  }
  return loading.get();
}

// Until a stop signal (OK) or the engine's failure.
absl::Status ServeUntilStopped(const engine::Engine& engine) {
  while (!WaitForStopSignal(absl::Seconds(1))) {
    const engine::EngineStatus status = engine.Status();
    if (status.health == engine::Health::kFailed) {
      return absl::InternalError(StrCat("The engine failed: ", status.reason));
    }
  }
  return absl::OkStatus();
}

// Not ready at once, new work refused; running requests may finish until `grace` has passed. A
// second signal ends the process at once.
void Drain(absl::Duration grace, FrontEnds* front_ends, frontend::InferenceService* service,
           engine::Engine* engine) {
  const engine::EngineStatus status = engine->Status();
  Log(LogLevel::kInfo, "draining",
      {{"running", status.running_requests},
       {"waiting", status.waiting_requests},
       {"grace", absl::FormatDuration(grace)}});
  service->BeginDrain();
  engine->BeginDrain();
  front_ends->BeginDrain();
  const absl::Time end = absl::Now() + grace;
  bool idle = engine->WaitIdle(absl::ZeroDuration());
  while (!idle && absl::Now() < end) {
    if (WaitForStopSignal(absl::ZeroDuration())) {
      Log(LogLevel::kWarning, "second signal: ending at once");
      std::_Exit(kExitFailed);
    }
    idle = engine->WaitIdle(std::min(absl::Milliseconds(50), end - absl::Now()));
  }
  if (!idle) Log(LogLevel::kWarning, "grace time is over: ending what still runs");
  engine->Stop();
  front_ends->Stop(kFlush);
}

absl::StatusOr<int> Serve(const Invocation& invocation) {
  BlockStopSignals();
  const ServerConfig& config = invocation.config();
  RETURN_IF_ERROR(ToModelOptions(config).status());  // before anybody is listened to
  InitLogging(ToLogLevel(config), ToLogFormat(config));
  metrics::Metrics metrics({.gateway_aliases = config.metrics.gateway_aliases}, Clock::Real());
  std::unique_ptr<frontend::AuditLog> audit;
  if (!config.audit.file.empty()) {
    ASSIGN_OR_RETURN(audit,
                     frontend::AuditLog::Open(ToAuditOptions(config), Clock::Real(), &metrics));
  }
  frontend::InferenceService service(ToServiceOptions(config), Clock::Real(), &metrics,
                                     audit.get());
  ASSIGN_OR_RETURN(const std::unique_ptr<FrontEnds> front_ends,
                   FrontEnds::Start(config, &service, &metrics));
  Log(LogLevel::kInfo, "listening",
      {{"version", Version()},
       {"host", config.host},
       {"http_port", front_ends->http_port()},
       {"grpc_port", front_ends->grpc_port()}});

  ASSIGN_OR_RETURN(const std::unique_ptr<Runtime> runtime, LoadUnlessStopped(config, &metrics));
  service.SetModel(frontend::DescribeModel(runtime->model()), &runtime->engine());
  Log(LogLevel::kInfo, "ready");
  if (invocation.Has("--print-example")) {
    std::cerr << ExampleRequest(config, front_ends->http_port(), runtime->model());
  }

  const absl::Status ended = ServeUntilStopped(runtime->engine());
  if (ended.ok()) {
    Drain(config.drain.grace, front_ends.get(), &service, &runtime->engine());
  } else {
    front_ends->Stop(kFlush);
  }
  service.Stop();
  Log(LogLevel::kInfo, "stopped");
  RETURN_IF_ERROR(ended);
  return kExitOk;
}

Command ServeCommand() {
  return {.name = "serve",
          .arguments = "MODEL",
          .summary = "serves a model over HTTP and gRPC",
          .flags = {{"--print-example", "", "Once ready, print a request to try."}},
          .first_is_model = true,
          .run = &Serve};
}

std::vector<std::pair<std::string, std::string>> Environment() {
  std::vector<std::pair<std::string, std::string>> variables;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const size_t equals = text.find('=');
    if (equals != std::string::npos) {
      variables.emplace_back(text.substr(0, equals), text.substr(equals + 1));
    }
  }
  return variables;
}

}  // namespace
}  // namespace longstride::cli

int main(int argc, char** argv) {
  using namespace longstride::cli;  // NOLINT(google-build-using-namespace)
  const std::vector<Command> commands = {
      ServeCommand(),    InspectCommand(),  FidelityCommand(), CalibrateHeadsCommand(),
      GenerateCommand(), TokenizeCommand(), BenchCommand(),    ConfigCommand(),
      AuditCommand(),    HashKeyCommand(),  ReferenceCommand()};
  return Run(commands, {argv + 1, argv + argc}, Environment());
}

// CUDA graphs of steps that repeat: the launches of a step, recorded once and replayed as one.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "config/base/status.h"
#include "kernels/cuda/device/context.h"

namespace longstride::kernels::cuda {

// One step's graph. Owned by StepGraphs; gone when 64 others were used since.
class StepGraph {
 public:
  StepGraph() = default;
  ~StepGraph();
  StepGraph(const StepGraph&) = delete;
  StepGraph& operator=(const StepGraph&) = delete;

  bool recorded() const { return exec_ != nullptr; }
  // The first step of a key is launched, so that everything that ops allocate or look up once is
  // there; the second is recorded, unless the first showed that it must not be.
  bool launched = false;
  bool refused = false;
  int64_t status_words = 0;  // what its ops report to the host

 private:
  friend class StepGraphs;
  cudaGraphExec_t exec_ = nullptr;
  uint64_t used_ = 0;
};

// One thread.
class StepGraphs {
 public:
  explicit StepGraphs(DeviceContext& context) : context_(context) {}
  ~StepGraphs();

  // The graph of a key, made empty where there is none; valid until the next call.
  StepGraph* Find(const std::string& key);
  // From here on what is put into the context's stream is recorded, not run.
  absl::Status BeginRecording();
  // Ends the recording, keeps it as `graph`, and runs it for the first time.
  absl::Status EndRecording(StepGraph* graph);
  // Ends a recording of a step that failed.
  void Abandon();
  bool recording() const { return recording_; }
  absl::Status Launch(StepGraph* graph);

 private:
  DeviceContext& context_;
  std::map<std::string, std::unique_ptr<StepGraph>> graphs_;
  uint64_t clock_ = 0;
  bool recording_ = false;
};

}  // namespace longstride::kernels::cuda

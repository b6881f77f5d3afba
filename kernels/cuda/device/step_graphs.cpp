#include "kernels/cuda/device/step_graphs.h"

#include <algorithm>

namespace longstride::kernels::cuda {
namespace {

// A graph of an 8B model's step takes a few MB.
constexpr size_t kMostGraphs = 64;

}  // namespace

StepGraph::~StepGraph() {
  if (exec_ != nullptr) cudaGraphExecDestroy(exec_);
}

StepGraphs::~StepGraphs() {
  if (recording_) Abandon();
}

StepGraph* StepGraphs::Find(const std::string& key) {
  const auto it = graphs_.find(key);
  StepGraph* graph = it == graphs_.end() ? nullptr : it->second.get();
  if (graph == nullptr) {
    if (graphs_.size() >= kMostGraphs) {
      graphs_.erase(std::min_element(graphs_.begin(), graphs_.end(), [](const auto& a, const auto& b) {
        return a.second->used_ < b.second->used_;
      }));
    }
    graph = graphs_.emplace(key, std::make_unique<StepGraph>()).first->second.get();
  }
  graph->used_ = ++clock_;
  return graph;
}

absl::Status StepGraphs::BeginRecording() {
  // Ops may map memory meanwhile, which other modes forbid.
  RETURN_IF_ERROR(context_.Check(
      cudaStreamBeginCapture(context_.stream(), cudaStreamCaptureModeRelaxed), "recording a step"));
  recording_ = true;
  return absl::OkStatus();
}

absl::Status StepGraphs::EndRecording(StepGraph* graph) {
  recording_ = false;
  cudaGraph_t recorded = nullptr;
  RETURN_IF_ERROR(
      context_.Check(cudaStreamEndCapture(context_.stream(), &recorded), "recording a step"));
  const cudaError_t made = cudaGraphInstantiate(&graph->exec_, recorded, 0);
  cudaGraphDestroy(recorded);
  RETURN_IF_ERROR(context_.Check(made, "making a graph of a step"));
  return Launch(graph);
}

void StepGraphs::Abandon() {
  recording_ = false;
  cudaGraph_t recorded = nullptr;
  cudaStreamEndCapture(context_.stream(), &recorded);
  if (recorded != nullptr) cudaGraphDestroy(recorded);
  cudaGetLastError();
}

absl::Status StepGraphs::Launch(StepGraph* graph) {
  return context_.Check(cudaGraphLaunch(graph->exec_, context_.stream()), "replaying a step");
}

}  // namespace longstride::kernels::cuda

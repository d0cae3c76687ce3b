#include "backend/cuda/step_graphs.cuh"

namespace lola {
namespace {

constexpr size_t kMostGraphs = 64;

}  // namespace

StepGraphs::~StepGraphs() { clear(); }

void StepGraphs::clear() {
  for (const auto& [key, graph] : graphs_) {
    if (graph != nullptr) cudaGraphExecDestroy(graph);
  }
  graphs_.clear();
}

void StepGraphs::run(const std::vector<int64_t>& key,
                     const std::function<void(const Stream&)>& body) {
  if (graphs_.size() >= kMostGraphs && !graphs_.contains(key)) clear();
  if (graphs_.try_emplace(key, nullptr).second) return body(device_.stream());
  if (graphs_[key] == nullptr) {
    cudaGraphExec_t recorded = record(body);
    graphs_[key] = recorded;
  }
  cuda_check(cudaGraphLaunch(graphs_[key], device_.stream().handle), "graph launch");
}

cudaGraphExec_t StepGraphs::record(const std::function<void(const Stream&)>& body) const {
  Stream recording{nullptr, device_.stream().overlaps};
  cuda_check(cudaStreamCreateWithFlags(&recording.handle, cudaStreamNonBlocking), "stream");
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  try {
    cuda_check(cudaStreamBeginCapture(recording.handle, cudaStreamCaptureModeThreadLocal),
               "capture");
    body(recording);
    cuda_check(cudaStreamEndCapture(recording.handle, &graph), "capture");
    cuda_check(cudaGraphInstantiate(&executable, graph, 0), "graph");
  } catch (...) {
    if (graph == nullptr) cudaStreamEndCapture(recording.handle, &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    cudaStreamDestroy(recording.handle);
    throw;
  }
  cudaGraphDestroy(graph);
  cudaStreamDestroy(recording.handle);
  return executable;
}

}  // namespace lola

// Passes that were recorded, to be launched again as one CUDA graph.
#pragma once

#include <functional>
#include <map>
#include <vector>

#include "backend/cuda/cuda_device.cuh"

namespace lola {

class StepGraphs {
 public:
  explicit StepGraphs(const CudaDevice& device) : device_(device) {}
  ~StepGraphs();
  StepGraphs(const StepGraphs&) = delete;
  StepGraphs& operator=(const StepGraphs&) = delete;

  // Launches the pass of this key. The first time `body` enqueues it in the ordinary way, the
  // second time it is recorded; body(stream) enqueues to that stream.
  void run(const std::vector<int64_t>& key, const std::function<void(const Stream&)>& body);

  // Memory that was recorded is gone.
  void clear();

 private:
  cudaGraphExec_t record(const std::function<void(const Stream&)>& body) const;

  const CudaDevice& device_;
  std::map<std::vector<int64_t>, cudaGraphExec_t> graphs_;  // null: seen once
};

}  // namespace lola

// The CUDA backend is a shared library of its own, loaded when it is asked for: what has no GPU
// neither needs nor touches it.
#pragma once

#include <memory>
#include <vector>

#include "backend/backend.h"
#include "backend/gpu_info.h"

namespace lola {

// UnsupportedError where this build has no such library, DeviceError where there is no GPU.
std::shared_ptr<Backend> make_cuda_backend(const BackendOptions& options);
std::vector<GpuInfo> list_gpus();

}  // namespace lola

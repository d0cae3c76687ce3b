#pragma once

#include <memory>

#include "backend/backend.h"
#include "backend/cuda/cuda_device.cuh"

namespace lola {

std::unique_ptr<Executor> make_cuda_executor(std::shared_ptr<CudaDevice> device);

}  // namespace lola

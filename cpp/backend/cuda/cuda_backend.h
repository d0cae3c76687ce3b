// The symbols of the CUDA library (cuda_library.h loads it).
#pragma once

#include <vector>

#include "backend/backend.h"
#include "backend/gpu_info.h"

extern "C" __attribute__((visibility("default"))) lola::Backend* lola_make_cuda_backend(
    const lola::BackendOptions& options);

extern "C" __attribute__((visibility("default"))) void lola_list_gpus(
    std::vector<lola::GpuInfo>& gpus);

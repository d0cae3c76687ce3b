// The one symbol of the CUDA library (cuda_library.h loads it).
#pragma once

#include "backend/backend.h"

extern "C" __attribute__((visibility("default"))) lola::Backend* lola_make_cuda_backend(
    const lola::BackendOptions& options);

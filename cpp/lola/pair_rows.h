// Stored keys and values to float32 rows and back.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"
#include "memory/config.h"

namespace lola {

// Rounds count values (one row, or several) to the type.
void store_pairs(const Kernels& kernels, PairType type, const float* x, int64_t count,
                 uint8_t* rows);

void load_pairs(const Kernels& kernels, PairType type, const uint8_t* rows, int64_t count,
                float* out);

}  // namespace lola

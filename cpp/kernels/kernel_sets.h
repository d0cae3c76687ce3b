// The implementations of kernels.h that this build may contain; isa_table.cpp picks among them.
#pragma once

#include "kernels/kernels.h"

namespace lola {

extern const Kernels kScalarKernels;
extern const Kernels kNeonKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;

// e^x is taken as 0 below this, so that no result is subnormal; FLT_MIN is e^-87.336.
inline constexpr float kLowestExponent = -87.3f;

// The largest finite scale of a q8_0 block.
inline constexpr float kLargestHalf = 65504.0f;
inline constexpr int kQ8BlockSize = 32;
inline constexpr int kQ8BlockBytes = 34;

}  // namespace lola

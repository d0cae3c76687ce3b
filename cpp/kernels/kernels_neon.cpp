#include "kernels/kernels_simd.h"
#include "kernels/matmul_kernels.h"
#include "kernels/vec_neon.h"

namespace lola {

constinit const Kernels kNeonKernels = simd_kernels<Vec>(Isa::kNeon, "neon", &kMatmulNeon);

}  // namespace lola

#include "kernels/kernels_simd.h"
#include "kernels/matmul_kernels.h"
#include "kernels/vec_avx2.h"

namespace lola {

constinit const Kernels kAvx2Kernels = simd_kernels<Vec>(Isa::kAvx2, "avx2", &kMatmulAvx2);

}  // namespace lola

// gcc 12's own AVX-512 intrinsics set off these warnings (gcc bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include "kernels/kernels_simd.h"
#include "kernels/matmul_kernels.h"
#include "kernels/vec_avx512.h"

namespace lola {

constinit const Kernels kAvx512Kernels = simd_kernels<Vec>(Isa::kAvx512, "avx512", &kMatmulAvx512);

}  // namespace lola

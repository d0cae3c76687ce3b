#include "kernels/matmul_neon_steps.h"

namespace lola {
namespace {

struct DotBytes {
  static int32x4_t dot(int32x4_t sum, int8x16_t w, int8x16_t a) { return vdotq_s32(sum, w, a); }
};

}  // namespace

constinit const MatmulKernels kMatmulNeonDotprod = matmul_kernels<NeonOps<DotBytes>>();

}  // namespace lola

#include "kernels/matmul_neon_lanes.h"

namespace lola {
namespace {

struct DotBytes {
  template <int kWord>
  static int32x4_t dot(int32x4_t sum, int8x16_t q, int8x16_t a) {
    return vdotq_laneq_s32(sum, q, a, kWord);
  }
};

}  // namespace

constinit const MatmulKernels kMatmulNeonDotprod = neon_kernels<DotBytes>();

}  // namespace lola

#include "kernels/matmul_neon_lanes.h"

#if defined(__linux__)
#include <sys/auxv.h>
#endif

namespace lola {
namespace {

struct MultiplyBytes {
  template <int kWord>
  static int32x4_t dot(int32x4_t sum, int8x16_t q, int8x16_t a) {
    const int8x16_t four = vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(a), kWord));
    const int16x8_t low = vmull_s8(vget_low_s8(q), vget_low_s8(four));
    const int16x8_t high = vmull_s8(vget_high_s8(q), vget_high_s8(four));
    return vaddq_s32(sum, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
  }
};

bool has_dotprod() {
#if defined(__linux__)
  constexpr unsigned long kDotProduct = 1ul << 20;  // HWCAP_ASIMDDP
  return (getauxval(AT_HWCAP) & kDotProduct) != 0;
#elif defined(__APPLE__)
  return true;  // since the M1
#else
  return false;
#endif
}

void multiply_best(const MatmulTile& tile, uint8_t* scratch) {
  static const bool dotprod = has_dotprod();
  dotprod ? kMatmulNeonDotprod.multiply(tile, scratch)
          : multiply<NeonLanes<MultiplyBytes>>(tile, scratch);
}

constexpr MatmulKernels best_kernels() {
  MatmulKernels kernels = neon_kernels<MultiplyBytes>();
  kernels.multiply = multiply_best;
  return kernels;
}

}  // namespace

constinit const MatmulKernels kMatmulNeon = best_kernels();

}  // namespace lola

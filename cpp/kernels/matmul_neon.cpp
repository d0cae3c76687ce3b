#include "kernels/matmul_neon_steps.h"

#if defined(__linux__)
#include <sys/auxv.h>
#endif

namespace lola {
namespace {

struct MultiplyBytes {
  static int32x4_t dot(int32x4_t sum, int8x16_t w, int8x16_t a) {
    const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(a));
    const int16x8_t high = vmull_s8(vget_high_s8(w), vget_high_s8(a));
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
          : multiply<NeonOps<MultiplyBytes>>(tile, scratch);
}

constexpr MatmulKernels best_kernels() {
  MatmulKernels kernels = matmul_kernels<NeonOps<MultiplyBytes>>();
  kernels.multiply = multiply_best;
  return kernels;
}

}  // namespace

constinit const MatmulKernels kMatmulNeon = best_kernels();

}  // namespace lola

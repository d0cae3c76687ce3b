#include <arm_neon.h>

#include "kernels/peak_loops.h"

namespace lola {
namespace {

struct Int8 {
  using Register = int32x4_t;
  static constexpr int64_t kOperations = 2 * 16;
  static Register zero() { return vdupq_n_s32(0); }
  static int8x16_t operand() { return vdupq_n_s8(1); }
  static Register step(int8x16_t a, int8x16_t b, Register sum) {
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(sum, a, b);
#else
    asm volatile("" : "+w"(a));  // or the product, the same in every round, leaves the loop
    const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b));
    return vpadalq_s16(sum, vmlal_s8(low, vget_high_s8(a), vget_high_s8(b)));
#endif
  }
  static int32_t first(Register sum) { return vgetq_lane_s32(sum, 0); }
};

struct Float {
  using Register = float32x4_t;
  static constexpr int64_t kOperations = 2 * 4;
  static Register zero() { return vdupq_n_f32(0.0f); }
  static Register operand() { return vdupq_n_f32(0.5f); }
  static Register step(Register a, Register b, Register sum) { return vfmaq_f32(sum, a, b); }
  static float first(Register sum) { return vgetq_lane_f32(sum, 0); }
};

}  // namespace

constinit const PeakLoops kPeakNeon = {peak_loop<Int8>, peak_loop<Float>};

}  // namespace lola

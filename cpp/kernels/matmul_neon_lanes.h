// The operations of matmul_tile.h for AArch64, over how sums of four byte products are made:
//   template <int kWord> static int32x4_t Bytes::dot(int32x4_t sum, int8x16_t q, int8x16_t a)
// with word kWord of a. Only matmul_neon.cpp and matmul_dotprod_neon.cpp include this.
#pragma once

#include <arm_neon.h>

#include "kernels/matmul_tile.h"

namespace lola {
namespace {

template <typename Bytes>
struct NeonLanes {
  static constexpr int kLanes = 4;
  static constexpr int kPanels = 2;
  static constexpr int kSums = 8;  // that advance side by side
  using Words = uint32x4_t;
  using Floats = float32x4_t;

  static Words load(const void* p) {
    return vreinterpretq_u32_u8(vld1q_u8(static_cast<const uint8_t*>(p)));
  }
  static Words splat_word(uint32_t word) { return vdupq_n_u32(word); }
  static Words bit_and(Words a, Words b) { return vandq_u32(a, b); }
  static Words bit_or(Words a, Words b) { return vorrq_u32(a, b); }
  static Words bit_xor(Words a, Words b) { return veorq_u32(a, b); }
  static Words shift_left(Words a, int n) { return vshlq_u32(a, vdupq_n_s32(n)); }
  static Words shift_right(Words a, int n) { return vshlq_u32(a, vdupq_n_s32(-n)); }
  static Words shift_right_signed(Words a, int n) {
    return vreinterpretq_u32_s32(vshlq_s32(vreinterpretq_s32_u32(a), vdupq_n_s32(-n)));
  }
  static Words add_words(Words a, Words b) { return vaddq_u32(a, b); }
  static Words subtract_words(Words a, Words b) { return vsubq_u32(a, b); }
  static Words multiply_words(Words a, Words b) { return vmulq_u32(a, b); }
  // table [16], index of each byte
  static Words lookup(const int8_t* table, Words index) {
    return vreinterpretq_u32_s8(vqtbl1q_s8(vld1q_s8(table), vreinterpretq_u8_u32(index)));
  }

  static Floats as_float(Words a) { return vreinterpretq_f32_u32(a); }
  static Floats to_float(Words a) { return vcvtq_f32_s32(vreinterpretq_s32_u32(a)); }
  static Floats halves(const uint8_t* p) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))); }
  static Floats low_halves(Words a) { return vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(a))); }
  static Floats splat(float x) { return vdupq_n_f32(x); }
  static Floats load_floats(const float* p) { return vld1q_f32(p); }
  static void store_floats(Floats a, float* p) { vst1q_f32(p, a); }
  static Floats multiply(Floats a, Floats b) { return vmulq_f32(a, b); }
  static Floats subtract(Floats a, Floats b) { return vsubq_f32(a, b); }
  static Floats multiply_add(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
  static Floats subtract_product(Floats a, Floats b, Floats c) { return vfmsq_f32(c, a, b); }

  static Floats load_value(const uint8_t* p, F32) { return vreinterpretq_f32_u8(vld1q_u8(p)); }
  static Floats load_value(const uint8_t* p, F16) { return halves(p); }
  static Floats load_value(const uint8_t* p, BF16) {
    return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p)), 16));
  }

  // Both operands are signed here, so an offset is taken off at once.
  template <typename Reader>
  static constexpr int offset() {
    return 0;
  }
  template <typename Reader>
  static LOLA_INLINE void prepare(Words* q) {
    LOLA_UNROLL
    for (int i = 0; Reader::kOffset != 0 && i < Reader::kGroupSize / 4; ++i) {
      const uint8x16_t bytes = vreinterpretq_u8_u32(q[i]);
      q[i] = vreinterpretq_u32_u8(vsubq_u8(bytes, vdupq_n_u8(Reader::kOffset)));
    }
  }

  template <typename Reader, int kPanels, int kTokens>
  static LOLA_INLINE void add_dots(const GroupWeights<NeonLanes, Reader>* weights,
                                   const ActivationGroup* a, int first, Words (*sums)[kTokens]) {
    LOLA_UNROLL
    for (int i = 0; i < Reader::kGroupSize / 4; i += 4) {
      LOLA_UNROLL
      for (int t = 0; t < kTokens; ++t) {
        const int8x16_t sixteen = vld1q_s8(a[t].q + first + i * 4);
        LOLA_UNROLL
        for (int panel = 0; panel < kPanels; ++panel) {
          const Words* q = weights[panel].q + i;
          int32x4_t sum = vreinterpretq_s32_u32(sums[panel][t]);
          sum = Bytes::template dot<0>(sum, vreinterpretq_s8_u32(q[0]), sixteen);
          sum = Bytes::template dot<1>(sum, vreinterpretq_s8_u32(q[1]), sixteen);
          sum = Bytes::template dot<2>(sum, vreinterpretq_s8_u32(q[2]), sixteen);
          sum = Bytes::template dot<3>(sum, vreinterpretq_s8_u32(q[3]), sixteen);
          sums[panel][t] = vreinterpretq_u32_s32(sum);
        }
      }
    }
  }
};

template <typename Bytes>
constexpr MatmulKernels neon_kernels() {
  return {sizeof(Workspace), round_activations_plain, multiply<NeonLanes<Bytes>>};
}

}  // namespace

// The kernels for processors with the dot product extension of Armv8.2.
extern const MatmulKernels kMatmulNeonDotprod;

}  // namespace lola

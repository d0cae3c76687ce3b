// gcc 12's own AVX-512 intrinsics set off these warnings (gcc bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include "kernels/matmul_round_avx2.h"
#include "kernels/matmul_tile.h"

namespace lola {
namespace {

struct Avx512Lanes {
  static constexpr int kLanes = 16;
  static constexpr int kPanels = 2;  // whose weights stay in registers side by side
  static constexpr int kSums = 8;    // that advance side by side
  using Words = __m512i;
  using Floats = __m512;

  static Words load(const void* p) { return _mm512_loadu_si512(p); }
  static Words splat_word(uint32_t word) { return _mm512_set1_epi32(static_cast<int>(word)); }
  static Words bit_and(Words a, Words b) { return _mm512_and_si512(a, b); }
  static Words bit_or(Words a, Words b) { return _mm512_or_si512(a, b); }
  static Words bit_xor(Words a, Words b) { return _mm512_xor_si512(a, b); }
  static Words shift_left(Words a, int n) { return _mm512_sll_epi32(a, _mm_cvtsi32_si128(n)); }
  static Words shift_right(Words a, int n) { return _mm512_srl_epi32(a, _mm_cvtsi32_si128(n)); }
  static Words shift_right_signed(Words a, int n) {
    return _mm512_sra_epi32(a, _mm_cvtsi32_si128(n));
  }
  static Words add_words(Words a, Words b) { return _mm512_add_epi32(a, b); }
  static Words subtract_words(Words a, Words b) { return _mm512_sub_epi32(a, b); }
  static Words multiply_words(Words a, Words b) { return _mm512_mullo_epi32(a, b); }
  // table [16], index of each byte
  static Words lookup(const int8_t* table, Words index) {
    const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(values), index);
  }

  static Floats as_float(Words a) { return _mm512_castsi512_ps(a); }
  static Floats to_float(Words a) { return _mm512_cvtepi32_ps(a); }
  static Floats halves(const uint8_t* p) { return _mm512_cvtph_ps(load256(p)); }
  static Floats low_halves(Words a) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(a)); }
  static Floats splat(float x) { return _mm512_set1_ps(x); }
  static Floats load_floats(const float* p) { return _mm512_loadu_ps(p); }
  static void store_floats(Floats a, float* p) { _mm512_storeu_ps(p, a); }
  static Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static Floats subtract(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
  static Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static Floats subtract_product(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }

  static Floats load_value(const uint8_t* p, F32) {
    return _mm512_loadu_ps(reinterpret_cast<const float*>(p));
  }
  static Floats load_value(const uint8_t* p, F16) { return halves(p); }
  static Floats load_value(const uint8_t* p, BF16) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load256(p)), 16));
  }

  // vpdpbusd multiplies unsigned with signed bytes. Weights with an offset, and signed ones, take
  // the offset whose sums the activations hold; it is taken off again exactly.
  template <typename Reader>
  static constexpr int offset() {
    if (Reader::kMaxQ == 0) return 128;
    if (Reader::kOffset == 0) return 0;
    return Reader::kGroupSize == kGroup ? kStartOffset : kHalfStartOffset;
  }

  template <typename Reader>
  static LOLA_INLINE void prepare(Words* q) {
    constexpr int kMore = offset<Reader>() - Reader::kOffset;
    LOLA_UNROLL
    for (int i = 0; kMore != 0 && i < Reader::kGroupSize / 4; ++i) {
      q[i] = _mm512_add_epi8(q[i], _mm512_set1_epi8(static_cast<char>(kMore)));
    }
  }

  template <typename Reader, int kPanels, int kTokens>
  static LOLA_INLINE void add_dots(const GroupWeights<Avx512Lanes, Reader>* weights,
                                   const ActivationGroup* a, int first, Words (*sums)[kTokens]) {
    LOLA_UNROLL
    for (int i = 0; i < Reader::kGroupSize / 4; ++i) {
      LOLA_UNROLL
      for (int t = 0; t < kTokens; ++t) {
        int32_t four;
        std::memcpy(&four, a[t].q + first + i * 4, sizeof(four));
        LOLA_UNROLL
        for (int panel = 0; panel < kPanels; ++panel) {
          sums[panel][t] =
              _mm512_dpbusd_epi32(sums[panel][t], weights[panel].q[i], _mm512_set1_epi32(four));
        }
      }
    }
  }
};

}  // namespace

constinit const MatmulKernels kMatmulAvx512 = {sizeof(Workspace), round_activations_avx2,
                                               multiply<Avx512Lanes>};

}  // namespace lola

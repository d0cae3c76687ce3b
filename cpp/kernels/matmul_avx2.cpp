#include "kernels/matmul_round_avx2.h"
#include "kernels/matmul_tile.h"

namespace lola {
namespace {

struct Avx2Lanes {
  static constexpr int kLanes = 8;
  static constexpr int kPanels = 1;
  static constexpr int kSums = 4;  // that advance side by side
  using Words = __m256i;
  using Floats = __m256;

  static Words load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static Words splat_word(uint32_t word) { return _mm256_set1_epi32(static_cast<int>(word)); }
  static Words bit_and(Words a, Words b) { return _mm256_and_si256(a, b); }
  static Words bit_or(Words a, Words b) { return _mm256_or_si256(a, b); }
  static Words bit_xor(Words a, Words b) { return _mm256_xor_si256(a, b); }
  static Words shift_left(Words a, int n) { return _mm256_sll_epi32(a, _mm_cvtsi32_si128(n)); }
  static Words shift_right(Words a, int n) { return _mm256_srl_epi32(a, _mm_cvtsi32_si128(n)); }
  static Words shift_right_signed(Words a, int n) {
    return _mm256_sra_epi32(a, _mm_cvtsi32_si128(n));
  }
  static Words add_words(Words a, Words b) { return _mm256_add_epi32(a, b); }
  static Words subtract_words(Words a, Words b) { return _mm256_sub_epi32(a, b); }
  static Words multiply_words(Words a, Words b) { return _mm256_mullo_epi32(a, b); }
  // table [16], index of each byte
  static Words lookup(const int8_t* table, Words index) {
    const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(values), index);
  }

  static Floats as_float(Words a) { return _mm256_castsi256_ps(a); }
  static Floats to_float(Words a) { return _mm256_cvtepi32_ps(a); }
  static Floats halves(const uint8_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Floats low_halves(Words a) {
    const __m256i low = bit_and(a, splat_word(0xFFFF));
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, low), 0x08);
    return _mm256_cvtph_ps(_mm256_castsi256_si128(packed));
  }
  static Floats splat(float x) { return _mm256_set1_ps(x); }
  static Floats load_floats(const float* p) { return _mm256_loadu_ps(p); }
  static void store_floats(Floats a, float* p) { _mm256_storeu_ps(p, a); }
  static Floats multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static Floats subtract(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
  static Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
  static Floats subtract_product(Floats a, Floats b, Floats c) { return _mm256_fnmadd_ps(a, b, c); }

  static Floats load_value(const uint8_t* p, F32) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(p));
  }
  static Floats load_value(const uint8_t* p, F16) { return halves(p); }
  static Floats load_value(const uint8_t* p, BF16) {
    const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(eight), 16));
  }

  template <typename Reader>
  static constexpr int offset() {
    return Reader::kOffset;
  }
  template <typename Reader>
  static void prepare(Words*) {}

  // Sums of two byte products, in 16 bits. One operand is unsigned: q, or |q| with q's sign moved
  // to the activation.
  template <typename Reader>
  static LOLA_INLINE __m256i pairs(__m256i q, __m256i a) {
    if constexpr (Reader::kMaxQ != 0) return _mm256_maddubs_epi16(q, a);
    return _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(a, q));
  }

  // So many of those sums fit into 16 bits together.
  template <typename Reader>
  static constexpr int chain() {
    constexpr int kWords = Reader::kGroupSize / 4;
    constexpr int kFit = Reader::kMaxQ == 0 ? 1 : 32767 / (Reader::kMaxQ * 2 * 127);
    return kFit < kWords ? kFit : kWords;
  }

  template <typename Reader, int kPanels, int kTokens>
  static LOLA_INLINE void add_dots(const GroupWeights<Avx2Lanes, Reader>* weights,
                                   const ActivationGroup* a, int first, Words (*sums)[kTokens]) {
    constexpr int kChain = chain<Reader>();
    LOLA_UNROLL
    for (int t = 0; t < kTokens; ++t) {
      LOLA_UNROLL
      for (int begin = 0; begin < Reader::kGroupSize / 4; begin += kChain) {
        __m256i sum16 = _mm256_setzero_si256();
        LOLA_UNROLL
        for (int i = begin; i < begin + kChain; ++i) {
          int32_t four;
          std::memcpy(&four, a[t].q + first + i * 4, sizeof(four));
          const __m256i products = pairs<Reader>(weights->q[i], _mm256_set1_epi32(four));
          sum16 = i == begin ? products : _mm256_add_epi16(sum16, products);
        }
        sums[0][t] = _mm256_add_epi32(sums[0][t], _mm256_madd_epi16(sum16, _mm256_set1_epi16(1)));
      }
    }
  }
};

}  // namespace

constinit const MatmulKernels kMatmulAvx2 = {sizeof(Workspace), round_activations_avx2,
                                             multiply<Avx2Lanes>};

}  // namespace lola

#include <immintrin.h>

#include "kernels/peak_loops.h"

namespace lola {
namespace {

struct Int8 {
  using Register = __m256i;
  static constexpr int64_t kOperations = 2 * 32;
  static Register zero() { return _mm256_setzero_si256(); }
  static Register operand() { return _mm256_set1_epi8(1); }
  static Register step(Register a, Register b, Register sum) {
#if defined(__GNUC__)
    asm volatile("" : "+x"(a));  // or the product, the same in every round, leaves the loop
#endif
    const __m256i pairs = _mm256_maddubs_epi16(a, b);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static int32_t first(Register sum) { return _mm256_cvtsi256_si32(sum); }
};

struct Float {
  using Register = __m256;
  static constexpr int64_t kOperations = 2 * 8;
  static Register zero() { return _mm256_setzero_ps(); }
  static Register operand() { return _mm256_set1_ps(0.5f); }
  static Register step(Register a, Register b, Register sum) { return _mm256_fmadd_ps(a, b, sum); }
  static float first(Register sum) { return _mm256_cvtss_f32(sum); }
};

}  // namespace

constinit const PeakLoops kPeakAvx2 = {peak_loop<Int8>, peak_loop<Float>};

}  // namespace lola

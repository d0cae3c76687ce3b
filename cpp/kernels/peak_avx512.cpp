// gcc 12's own AVX-512 intrinsics set off these warnings (gcc bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#include "kernels/peak_loops.h"

namespace lola {
namespace {

struct Int8 {
  using Register = __m512i;
  static constexpr int64_t kOperations = 2 * 64;
  static Register zero() { return _mm512_setzero_si512(); }
  static Register operand() { return _mm512_set1_epi8(1); }
  static Register step(Register a, Register b, Register sum) {
    return _mm512_dpbusd_epi32(sum, a, b);
  }
  static int32_t first(Register sum) { return _mm512_cvtsi512_si32(sum); }
};

struct Float {
  using Register = __m512;
  static constexpr int64_t kOperations = 2 * 16;
  static Register zero() { return _mm512_setzero_ps(); }
  static Register operand() { return _mm512_set1_ps(0.5f); }
  static Register step(Register a, Register b, Register sum) { return _mm512_fmadd_ps(a, b, sum); }
  static float first(Register sum) { return _mm512_cvtss_f32(sum); }
};

}  // namespace

constinit const PeakLoops kPeakAvx512 = {peak_loop<Int8>, peak_loop<Float>};

}  // namespace lola

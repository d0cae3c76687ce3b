#include "base/prefetch.h"
#include "kernels/peak_loops.h"

namespace lola {
namespace {

template <typename T>
struct Plain {
  using Register = T;
  static constexpr int64_t kOperations = 2;
  static T zero() { return 0; }
  static T operand() {
    static volatile T one = 1;
    return one;
  }
  // Not sum + a b, which the compiler takes out of the loop; unsigned sums wrap.
  static T step(T a, T b, T sum) { return sum * a + b; }
  static T first(T sum) { return sum; }
};

}  // namespace

constinit const PeakLoops kPeakScalar = {peak_loop<Plain<uint32_t>>, peak_loop<Plain<float>>};

const PeakLoops& peak_loops(Isa isa) {
  switch (isa) {
#if defined(__x86_64__) || defined(_M_X64)
    case Isa::kAvx512:
      return kPeakAvx512;
    case Isa::kAvx2:
      return kPeakAvx2;
#elif defined(__aarch64__) || defined(_M_ARM64)
    case Isa::kNeon:
      return kPeakNeon;
#endif
    default:
      return kPeakScalar;
  }
}

uint64_t read_all(const uint64_t* words, int64_t count) {
  // Hardware stops fetching ahead at the end of a page, so a page ahead is asked for.
  constexpr int64_t kAhead = 512, kLine = 8;  // words
  uint64_t seen = 0;
  int64_t i = 0;
  for (; i + kLine <= count; i += kLine) {
    prefetch(words + i + kAhead);
    for (int64_t j = 0; j < kLine; ++j) seen |= words[i + j];
  }
  for (; i < count; ++i) seen |= words[i];
  return seen;
}

}  // namespace lola

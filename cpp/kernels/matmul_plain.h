// What every instruction set does alike in plain C++: rounding activations, storing sums.
// Everything has internal linkage, because each file compiles it for another instruction set and
// the linker must not keep one copy for all; for the same reason nothing of the standard library's
// templates is used. Only the matmul_<isa>.cpp files include this.
#pragma once

#include <cmath>
#include <cstring>

#include "kernels/matmul_kernels.h"

#if defined(__clang__)
#define LOLA_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define LOLA_UNROLL _Pragma("GCC unroll 32")
#else
#define LOLA_UNROLL
#endif

// For steps whose values should stay in registers from one to the next.
#if defined(_MSC_VER)
#define LOLA_INLINE __forceinline
#define LOLA_NOINLINE __declspec(noinline)
#else
#define LOLA_INLINE __attribute__((always_inline)) inline
#define LOLA_NOINLINE __attribute__((noinline))
#endif

namespace lola {
namespace {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// sums [rows] of one token, from `row` on, go to where the tile wants them.
inline void store(const MatmulTile& tile, int64_t row, int64_t rows, int64_t token,
                  const float* sums) {
  float* out = tile.out + token * tile.out_stride + row;
  for (int64_t i = 0; i < rows; ++i) {
    const float sum = tile.bias ? sums[i] + tile.bias[row + i] : sums[i];
    out[i] = tile.accumulate ? out[i] + sum : sum;
  }
}

inline uint32_t magnitude(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits & 0x7FFFFFFFu;
}

// Sets what follows from q and scale; halves are the sums of the first and the last 16 q.
inline void set_sums(float scale, const int32_t (&halves)[2], ActivationGroup& group) {
  group.scale = scale;
  group.minus_magic = -kMagic * scale;
  group.sum = scale * static_cast<float>(halves[0] + halves[1]);
  group.start = kMagicBits - kStartOffset * (halves[0] + halves[1]);
  for (int i = 0; i < 2; ++i) {
    group.half_sum[i] = scale * static_cast<float>(halves[i]);
    group.half_start[i] = kMagicBits - kHalfStartOffset * halves[i];
  }
}

// A group below 2^-100 is rounded to zero, since 127 / largest could overflow.
inline float group_scale(uint32_t largest, float limit) {
  if (largest >= 0x7F800000u) return NAN;
  if (limit < 0x1p-100f) return 0.0f;
  const float scale = limit / 127.0f;
  uint32_t bits;
  std::memcpy(&bits, &scale, sizeof(bits));
  bits &= ~3u;  // 22 significant bits
  float rounded;
  std::memcpy(&rounded, &bits, sizeof(rounded));
  return rounded;
}

inline void round_group(const float* x, ActivationGroup& group) {
  uint32_t largest = 0;
  for (int i = 0; i < kGroup; ++i) {
    if (magnitude(x[i]) > largest) largest = magnitude(x[i]);
  }
  float limit;
  std::memcpy(&limit, &largest, sizeof(limit));
  const float scale = group_scale(largest, limit);
  std::memset(group.q, 0, sizeof(group.q));
  int32_t halves[2] = {0, 0};
  if (scale > 0) {
    const float inverse = 127.0f / limit;
    for (int i = 0; i < kGroup; ++i) {
      const float shifted = x[i] * inverse + 0x1.8p23f;  // the FPU rounds to nearest even
      group.q[i] = static_cast<int8_t>(shifted - 0x1.8p23f);
      halves[i / 16] += group.q[i];
    }
  }
  set_sums(scale, halves, group);
}

inline void round_activations_plain(const float* x, int64_t cols, ActivationGroup* groups,
                                    int64_t stride) {
  for (int64_t col = 0; col < cols; col += kGroup, groups += stride) round_group(x + col, *groups);
}

}  // namespace
}  // namespace lola

// The kernels of kernels.h, written once over a vector type V (vec_<isa>.h). Only kernels_<isa>.cpp
// includes this, and nothing here has external linkage or calls an inline function that has: the
// linker would be free to give generic code the copy compiled for a wider instruction set.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/gemm_simd.h"
#include "kernels/kernel_sets.h"

namespace lola {
namespace {

// A whole register of x, or the values that are left at the end.
template <typename V>
struct WholePart {
  static constexpr int count() { return V::kWidth; }
  V load(const float* x) const { return V::load(x); }
  void store(float* x, V v) const { v.store(x); }
  V keep(V v) const { return v; }
};

template <typename V>
struct LastPart {
  int size;
  int count() const { return size; }
  V load(const float* x) const { return V::load(x, size); }
  void store(float* x, V v) const { v.store(x, size); }
  V keep(V v) const { return v.keep(size); }
};

// Calls step(i, part) for parts that cover [0, n).
template <typename V, typename Step>
void for_each_part(int64_t n, const Step& step) {
  int64_t i = 0;
  for (; i + V::kWidth <= n; i += V::kWidth) step(i, WholePart<V>{});
  if (i < n) step(i, LastPart<V>{static_cast<int>(n - i)});
}

// Sums term(i, part), in several registers: for speed, and because a sum of 16384 terms needs more
// than one.
template <typename V, typename Term>
float sum_of(int64_t n, const Term& term) {
  constexpr int kParts = 4;
  V sums[kParts] = {V::zero(), V::zero(), V::zero(), V::zero()};
  int64_t i = 0;
  for (; i + kParts * V::kWidth <= n; i += kParts * V::kWidth) {
    for (int j = 0; j < kParts; ++j) {
      sums[j] = sums[j] + term(i + j * V::kWidth, WholePart<V>{});
    }
  }
  for_each_part<V>(n - i, [&](int64_t j, auto part) { sums[0] = sums[0] + term(i + j, part); });
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])).sum();
}

// e^x for x = n ln 2 + r, |r| <= ln 2 / 2: 2^n e^r. Below 2 ulp; 0 below kLowestExponent, infinity
// above the range, whatever the steps in between made of such an x; and NaN for NaN.
template <typename V>
V exp(V x) {
  constexpr float kHighestExponent = 88.722832f;
  const V n = (x * V::all(1.44269504f)).round();
  // ln 2 in two parts; the first has few bits, so n times it is exact.
  const V r = V::fma(n, V::all(2.12194440e-4f), V::fma(n, V::all(-0.693359375f), x));
  // e^r = 1 + r + r^2 p(r), p fitted for the least relative error: 4e-9.
  V p = V::all(0.001381453825f);
  p = V::fma(p, r, V::all(0.008368745446f));
  p = V::fma(p, r, V::all(0.041668388993f));
  p = V::fma(p, r, V::all(0.166665211320f));
  p = V::fma(p, r, V::all(0.499999940395f));
  p = V::fma(r * r, p, r) + V::all(1.0f);
  const V y = V::if_less(x, V::all(kLowestExponent), V::zero(), p.times_power_of_two(n));
  return V::if_less(V::all(kHighestExponent), x, V::all(INFINITY), y);
}

// The largest sign * x.
template <typename V>
float largest_of(float sign, const float* x, int64_t n) {
  if (n < V::kWidth) {
    float largest = sign * x[0];
    for (int64_t i = 1; i < n; ++i) largest = largest < sign * x[i] ? sign * x[i] : largest;
    return largest;
  }
  // The last register overlaps the one before it, which does a maximum no harm.
  const V signs = V::all(sign);
  V largest = signs * V::load(x + n - V::kWidth);
  for (int64_t i = 0; i + V::kWidth <= n; i += V::kWidth) {
    largest = V::max(signs * V::load(x + i), largest);
  }
  return largest.largest();
}

template <typename V>
float max(const float* x, int64_t n) {
  return largest_of<V>(1.0f, x, n);
}

template <typename V>
float dot(const float* a, const float* b, int64_t n) {
  return sum_of<V>(n, [=](int64_t i, auto part) { return part.load(a + i) * part.load(b + i); });
}

template <typename V>
void scale(float* x, int64_t n, float factor) {
  for_each_part<V>(
      n, [=](int64_t i, auto part) { part.store(x + i, part.load(x + i) * V::all(factor)); });
}

template <typename V>
float exp_shift(float* x, int64_t n, float shift) {
  return sum_of<V>(n, [=](int64_t i, auto part) {
    const V result = exp(part.load(x + i) - V::all(shift));
    part.store(x + i, result);
    return part.keep(result);
  });
}

template <typename V, int kHalves>
void exp_halves(float* row, int64_t n, bool normalise, float least) {
  constexpr float kSigns[] = {1.0f, -1.0f};
  V shift[kHalves], sum[kHalves], factor[kHalves];
  for (int half = 0; half < kHalves; ++half) {
    shift[half] = V::all(largest_of<V>(kSigns[half], row, n));
    sum[half] = V::zero();
  }
  for_each_part<V>(n, [&](int64_t i, auto part) {
    const V x = part.load(row + i);
    for (int half = 0; half < kHalves; ++half) {
      const V power = exp(V::all(kSigns[half]) * x - shift[half]);
      part.store(row + half * n + i, power);
      sum[half] = sum[half] + part.keep(power);
    }
  });
  for (int half = 0; half < kHalves; ++half) {
    factor[half] = V::all(normalise ? 1.0f / sum[half].sum() : 1.0f);
  }
  for_each_part<V>(n, [&](int64_t i, auto part) {
    for (int half = 0; half < kHalves; ++half) {
      float* out = row + half * n + i;
      part.store(out, V::max(V::all(least), part.load(out) * factor[half]));
    }
  });
}

template <typename V>
void exp_features(float* row, int64_t n, bool both, bool normalise, float least) {
  if (both) return exp_halves<V, 2>(row, n, normalise, least);
  exp_halves<V, 1>(row, n, normalise, least);
}

template <typename V>
float squared_distance(const float* a, const float* b, int64_t n) {
  return sum_of<V>(n, [=](int64_t i, auto part) {
    const V difference = part.load(a + i) - part.load(b + i);
    return difference * difference;
  });
}

template <typename V>
void rms_norm(const float* x, const float* weight, int64_t n, float eps, float* out) {
  const V mean = V::all(dot<V>(x, x, n) / static_cast<float>(n));
  const V factor = V::all(1.0f) / (mean + V::all(eps)).square_root();
  for_each_part<V>(n, [=](int64_t i, auto part) {
    part.store(out + i, part.load(x + i) * factor * part.load(weight + i));
  });
}

template <typename V>
void silu_gate(float* gate, const float* up, int64_t n) {
  for_each_part<V>(n, [=](int64_t i, auto part) {
    const V x = part.load(gate + i);
    const V silu = x / (V::all(1.0f) + exp(V::zero() - x));
    part.store(gate + i, silu * part.load(up + i));
  });
}

template <typename V>
void add(float* x, const float* y, int64_t n) {
  for_each_part<V>(
      n, [=](int64_t i, auto part) { part.store(x + i, part.load(x + i) + part.load(y + i)); });
}

template <typename V>
void rotate(V& first, V& second, V cosine, V sine) {
  const V rotated = first * cosine - second * sine;
  second = second * cosine + first * sine;
  first = rotated;
}

template <typename V>
void rope_interleaved(float* x, const float* cosine, const float* sine, int64_t pairs) {
  int64_t i = 0;
  for (; i + V::kWidth <= pairs; i += V::kWidth) {
    V first, second;
    V::load_pairs(x + 2 * i, first, second);
    rotate(first, second, V::load(cosine + i), V::load(sine + i));
    V::store_pairs(x + 2 * i, first, second);
  }
  for (; i < pairs; ++i) rotate(x[2 * i], x[2 * i + 1], cosine[i], sine[i]);
}

template <typename V>
void rope_half(float* x, const float* cosine, const float* sine, int64_t pairs) {
  for_each_part<V>(pairs, [=](int64_t i, auto part) {
    V first = part.load(x + i);
    V second = part.load(x + pairs + i);
    rotate(first, second, part.load(cosine + i), part.load(sine + i));
    part.store(x + i, first);
    part.store(x + pairs + i, second);
  });
}

template <typename V>
void f16_to_f32(const uint16_t* x, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + V::kWidth <= n; i += V::kWidth) V::load(x + i).store(out + i);
  for (; i < n; ++i) V::all_f16(x[i]).store(out + i, 1);
}

template <typename V>
void f32_to_f16(const float* x, int64_t n, uint16_t* out) {
  int64_t i = 0;
  for (; i + V::kWidth <= n; i += V::kWidth) V::load(x + i).store_f16(out + i);
  for (; i < n; ++i) out[i] = V::to_f16(x[i]);
}

template <typename V>
void q8_0_to_f32(const uint8_t* blocks, int64_t n, float* out) {
  for (int64_t start = 0; start < n; start += kQ8BlockSize, blocks += kQ8BlockBytes) {
    uint16_t half;
    std::memcpy(&half, blocks, sizeof half);
    const V block_scale = V::all_f16(half);
    for (int i = 0; i < kQ8BlockSize; i += V::kWidth) {
      (block_scale * V::load_i8(blocks + 2 + i)).store(out + start + i);
    }
  }
}

// The scale and the rounding are those of kernels_scalar.cpp, to the bit.
template <typename V>
void f32_to_q8_0(const float* x, int64_t n, uint8_t* blocks) {
  for (int64_t start = 0; start < n; start += kQ8BlockSize, blocks += kQ8BlockBytes) {
    V largest = V::zero();
    V poison = V::zero();
    for (int i = 0; i < kQ8BlockSize; i += V::kWidth) {
      const V values = V::load(x + start + i);
      largest = V::max(values.abs(), largest);
      poison = poison + values * V::zero();
    }
    const float wanted = largest.largest() / 127.0f;
    const float kept = wanted < kLargestHalf ? wanted : kLargestHalf;
    const uint16_t half = V::to_f16(kept + poison.sum());
    std::memcpy(blocks, &half, sizeof half);
    const V inverse = half == 0 ? V::zero() : V::all(1.0f) / V::all_f16(half);
    for (int i = 0; i < kQ8BlockSize; i += V::kWidth) {
      const V level = V::load(x + start + i) * inverse;
      V::max(V::min(level, V::all(127.0f)), V::all(-127.0f)).store_i8(blocks + 2 + i);
    }
  }
}

template <typename V>
constexpr Kernels simd_kernels(Isa isa, const char* name, const MatmulKernels* matmul) {
  return {
      .isa = isa,
      .name = name,
      .matmul = matmul,
      .gemm_nt = gemm_nt<V>,
      .gemm_nn = gemm_nn<V>,
      .gemm_tn = gemm_tn<V>,
      .gemm_nt_f16 = gemm_nt_f16<V>,
      .gemm_nn_f16 = gemm_nn_f16<V>,
      .gemm_nt_q8_0 = gemm_nt_q8_0<V>,
      .gemm_nn_q8_0 = gemm_nn_q8_0<V>,
      .max = max<V>,
      .dot = dot<V>,
      .scale = scale<V>,
      .exp_shift = exp_shift<V>,
      .exp_features = exp_features<V>,
      .squared_distance = squared_distance<V>,
      .rms_norm = rms_norm<V>,
      .silu_gate = silu_gate<V>,
      .add = add<V>,
      .rope_interleaved = rope_interleaved<V>,
      .rope_half = rope_half<V>,
      .f16_to_f32 = f16_to_f32<V>,
      .f32_to_f16 = f32_to_f16<V>,
      .q8_0_to_f32 = q8_0_to_f32<V>,
      .f32_to_q8_0 = f32_to_q8_0<V>,
  };
}

}  // namespace
}  // namespace lola

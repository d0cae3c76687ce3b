// The reference: every kernel as a plain loop. The other instruction sets are tested against this
// file.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/half.h"
#include "kernels/kernel_sets.h"
#include "kernels/matmul_kernels.h"

namespace lola {
namespace {

// Values of a right operand, where B says how they are stored.
float value_at(const float* x, int64_t i) { return x[i]; }
float value_at(const uint16_t* halves, int64_t i) { return f16_to_f32(halves[i]); }
float value_at(const uint8_t* q8_0, int64_t i) {
  const uint8_t* block = q8_0 + i / kQ8BlockSize * kQ8BlockBytes;
  uint16_t half;
  std::memcpy(&half, block, sizeof half);
  const auto level = static_cast<int8_t>(block[sizeof half + i % kQ8BlockSize]);
  return f16_to_f32(half) * static_cast<float>(level);
}

template <typename B>
void gemm_nt(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const B* b, int64_t ldb,
             float* c, int64_t ldc) {
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      float sum = 0.0f;
      for (int64_t p = 0; p < k; ++p) sum += a[i * lda + p] * value_at(b, j * ldb + p);
      c[i * ldc + j] = sum;
    }
  }
}

template <typename B>
void gemm_nn(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const B* b, int64_t ldb,
             float* c, int64_t ldc) {
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t p = 0; p < k; ++p) {
      const float factor = a[i * lda + p];
      for (int64_t j = 0; j < n; ++j) c[i * ldc + j] += factor * value_at(b, p * ldb + j);
    }
  }
}

void gemm_tn(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
             int64_t ldb, float* c, int64_t ldc) {
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      float sum = 0.0f;
      for (int64_t p = 0; p < k; ++p) sum += a[p * lda + i] * b[p * ldb + j];
      c[i * ldc + j] += sum;
    }
  }
}

float max(const float* x, int64_t n) {
  float largest = x[0];
  for (int64_t i = 1; i < n; ++i) largest = std::max(largest, x[i]);
  return largest;
}

// Sums term(i) for i in [0, n). A single float32 sum of 16384 terms would lose three digits, so the
// terms are dealt out to several.
template <typename Term>
float sum_of(int64_t n, const Term& term) {
  constexpr int kParts = 16;
  float parts[kParts] = {};
  for (int64_t i = 0; i < n; ++i) parts[i % kParts] += term(i);
  float sum = 0.0f;
  for (const float part : parts) sum += part;
  return sum;
}

float dot(const float* a, const float* b, int64_t n) {
  return sum_of(n, [=](int64_t i) { return a[i] * b[i]; });
}

void scale(float* x, int64_t n, float factor) {
  for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

float exp_or_zero(float x) { return x < kLowestExponent ? 0.0f : std::exp(x); }

float exp_shift(float* x, int64_t n, float shift) {
  return sum_of(n, [=](int64_t i) { return x[i] = exp_or_zero(x[i] - shift); });
}

void exp_half(const float* x, float sign, int64_t n, bool normalise, float least, float* out) {
  float largest = sign * x[0];
  for (int64_t i = 1; i < n; ++i) largest = std::max(largest, sign * x[i]);
  const float sum = sum_of(n, [=](int64_t i) { return exp_or_zero(sign * x[i] - largest); });
  const float factor = normalise ? 1.0f / sum : 1.0f;
  for (int64_t i = 0; i < n; ++i) {
    out[i] = std::max(exp_or_zero(sign * x[i] - largest) * factor, least);
  }
}

void exp_features(float* row, int64_t n, bool both, bool normalise, float least) {
  if (both) exp_half(row, -1.0f, n, normalise, least, row + n);
  exp_half(row, 1.0f, n, normalise, least, row);
}

float squared_distance(const float* a, const float* b, int64_t n) {
  return sum_of(n, [=](int64_t i) { return (a[i] - b[i]) * (a[i] - b[i]); });
}

void rms_norm(const float* x, const float* weight, int64_t n, float eps, float* out) {
  const float mean = dot(x, x, n) / static_cast<float>(n);
  const float factor = 1.0f / std::sqrt(mean + eps);
  for (int64_t i = 0; i < n; ++i) out[i] = x[i] * factor * weight[i];
}

void silu_gate(float* gate, const float* up, int64_t n) {
  for (int64_t i = 0; i < n; ++i) gate[i] = gate[i] / (1.0f + exp_or_zero(-gate[i])) * up[i];
}

void add(float* x, const float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] += y[i];
}

void rotate(float& first, float& second, float cosine, float sine) {
  const float rotated = first * cosine - second * sine;
  second = second * cosine + first * sine;
  first = rotated;
}

void rope_interleaved(float* x, const float* cosine, const float* sine, int64_t pairs) {
  for (int64_t i = 0; i < pairs; ++i) rotate(x[2 * i], x[2 * i + 1], cosine[i], sine[i]);
}

void rope_half(float* x, const float* cosine, const float* sine, int64_t pairs) {
  for (int64_t i = 0; i < pairs; ++i) rotate(x[i], x[i + pairs], cosine[i], sine[i]);
}

void halves_to_floats(const uint16_t* x, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = f16_to_f32(x[i]);
}

void floats_to_halves(const float* x, int64_t n, uint16_t* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = f32_to_f16(x[i]);
}

void q8_0_to_f32(const uint8_t* blocks, int64_t n, float* out) {
  for (int64_t start = 0; start < n; start += kQ8BlockSize, blocks += kQ8BlockBytes) {
    uint16_t half;
    std::memcpy(&half, blocks, sizeof half);
    const float block_scale = f16_to_f32(half);
    for (int i = 0; i < kQ8BlockSize; ++i) {
      out[start + i] = block_scale * static_cast<float>(static_cast<int8_t>(blocks[2 + i]));
    }
  }
}

void f32_to_q8_0(const float* x, int64_t n, uint8_t* blocks) {
  for (int64_t start = 0; start < n; start += kQ8BlockSize, blocks += kQ8BlockBytes) {
    float largest = 0.0f;
    float poison = 0.0f;  // NaN if any value is not finite
    for (int i = 0; i < kQ8BlockSize; ++i) {
      largest = std::max(largest, std::fabs(x[start + i]));
      poison += x[start + i] * 0.0f;
    }
    const uint16_t half = f32_to_f16(std::min(largest / 127.0f, kLargestHalf) + poison);
    std::memcpy(blocks, &half, sizeof half);
    // Rounding against the scale as stored keeps every error within half a step of what will be
    // decoded.
    const float inverse = half == 0 ? 0.0f : 1.0f / f16_to_f32(half);
    for (int i = 0; i < kQ8BlockSize; ++i) {
      const float level = std::max(-127.0f, std::min(127.0f, x[start + i] * inverse));
      blocks[2 + i] = static_cast<uint8_t>(static_cast<int8_t>(std::nearbyint(level)));
    }
  }
}

}  // namespace

constinit const Kernels kScalarKernels = {
    .isa = Isa::kScalar,
    .name = "scalar",
    .matmul = &kMatmulScalar,
    .gemm_nt = gemm_nt<float>,
    .gemm_nn = gemm_nn<float>,
    .gemm_tn = gemm_tn,
    .gemm_nt_f16 = gemm_nt<uint16_t>,
    .gemm_nn_f16 = gemm_nn<uint16_t>,
    .gemm_nt_q8_0 = gemm_nt<uint8_t>,
    .gemm_nn_q8_0 = gemm_nn<uint8_t>,
    .max = max,
    .dot = dot,
    .scale = scale,
    .exp_shift = exp_shift,
    .exp_features = exp_features,
    .squared_distance = squared_distance,
    .rms_norm = rms_norm,
    .silu_gate = silu_gate,
    .add = add,
    .rope_interleaved = rope_interleaved,
    .rope_half = rope_half,
    .f16_to_f32 = halves_to_floats,
    .f32_to_f16 = floats_to_halves,
    .q8_0_to_f32 = q8_0_to_f32,
    .f32_to_q8_0 = f32_to_q8_0,
};

}  // namespace lola

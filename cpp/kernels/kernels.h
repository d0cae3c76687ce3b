// The float32 building blocks of attention, norms and feature maps, one implementation per
// instruction set. kernels_scalar.cpp is complete and is the reference. Matrix products with
// weights are in matmul.h.
#pragma once

#include <cstdint>

namespace lola {

enum class Isa { kScalar, kNeon, kAvx2, kAvx512 };

struct MatmulKernels;  // matmul.h

struct Kernels {
  Isa isa;
  const char* name;  // "scalar", "neon", "avx2", "avx512"
  const MatmulKernels* matmul;

  // Small dense products on row-major float32; ld* are row strides in floats. None needs alignment.
  // c[m, n] = a[m, k] b[n, k]'
  void (*gemm_nt)(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
                  int64_t ldb, float* c, int64_t ldc);
  // c[m, n] += a[m, k] b[k, n]
  void (*gemm_nn)(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
                  int64_t ldb, float* c, int64_t ldc);
  // c[m, n] += a[k, m]' b[k, n], each sum over k added to c once.
  void (*gemm_tn)(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
                  int64_t ldb, float* c, int64_t ldc);

  // The first two with a right operand as pairs are stored, for few rows: it is read once for every
  // few rows of a, and converted in registers. Whole blocks of q8_0 only: ldb, and k of nt or n of
  // nn, are multiples of 32.
  void (*gemm_nt_f16)(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda,
                      const uint16_t* b, int64_t ldb, float* c, int64_t ldc);
  void (*gemm_nn_f16)(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda,
                      const uint16_t* b, int64_t ldb, float* c, int64_t ldc);
  void (*gemm_nt_q8_0)(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda,
                       const uint8_t* b, int64_t ldb, float* c, int64_t ldc);
  void (*gemm_nn_q8_0)(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda,
                       const uint8_t* b, int64_t ldb, float* c, int64_t ldc);

  float (*max)(const float* x, int64_t n);  // n >= 1
  float (*dot)(const float* a, const float* b, int64_t n);
  void (*scale)(float* x, int64_t n, float factor);
  // x = exp(x - shift), at most 4 ulp off, and 0 below e^-87.3 (no subnormal results). Returns the
  // sum.
  float (*exp_shift)(float* x, int64_t n, float shift);
  // row[0, n) = exp(x - max x), and if `both`, row[n, 2 n) = exp(min x - x), of the x found in
  // row[0, n); each half divided by its sum if `normalise`; no value below `least`. n >= 1.
  void (*exp_features)(float* row, int64_t n, bool both, bool normalise, float least);
  float (*squared_distance)(const float* a, const float* b, int64_t n);

  // out = x / sqrt(mean(x^2) + eps) * weight
  void (*rms_norm)(const float* x, const float* weight, int64_t n, float eps, float* out);
  // gate = silu(gate) * up
  void (*silu_gate)(float* gate, const float* up, int64_t n);
  // x += y
  void (*add)(float* x, const float* y, int64_t n);
  // Rotates the first 2 * pairs values of one head. Interleaved pairs (2i, 2i + 1); half-split
  // pairs (i, i + pairs).
  void (*rope_interleaved)(float* x, const float* cosine, const float* sine, int64_t pairs);
  void (*rope_half)(float* x, const float* cosine, const float* sine, int64_t pairs);

  // Storage of pairs. q8_0: blocks of 32 as {f16 scale, int8 q[32]}, scale = max |x| / 127; n is a
  // multiple of 32. A block with a NaN or an infinity decodes as NaN.
  void (*f16_to_f32)(const uint16_t* x, int64_t n, float* out);
  void (*f32_to_f16)(const float* x, int64_t n, uint16_t* out);
  void (*q8_0_to_f32)(const uint8_t* blocks, int64_t n, float* out);
  void (*f32_to_q8_0)(const float* x, int64_t n, uint8_t* blocks);
};

// The best set that the CPU and the operating system support, or the one that LOLA_FORCE_ISA names.
// UnsupportedError, listing what is there, when that one is unknown or absent.
const Kernels& select_kernels();

// By name; UnsupportedError when this machine lacks it. For tests and `doctor`.
const Kernels& kernels_by_name(const char* name);
const char* const* available_isas();  // names, best first, ended by null

}  // namespace lola

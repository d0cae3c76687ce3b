// Compares every float kernel of every instruction set of this machine with the scalar one, on
// random data. A plain program, so that an emulator can run it for processors that the Python tests
// do not reach. Exit status 1 on a mismatch.
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "base/half.h"
#include "kernels/kernel_sets.h"

namespace lola {
namespace {

using Floats = std::vector<float>;

constexpr int64_t kSizes[] = {1, 3, 7, 8, 15, 16, 17, 31, 33, 64, 100, 257};
// Sums of at most 300 products of numbers near 1, in another order: a few float32 roundings of
// values up to 60.
constexpr float kSumTolerance = 1e-4f;
// exp may be 4 ulp off in either implementation, and what follows it rounds a few times.
constexpr float kExpTolerance = 1e-6f;
// Multiplications, additions and roundings in the same order: the same bits.
constexpr float kExact = 0.0f;

std::mt19937 generator(1);  // NOLINT: the same data in every run
int mismatches = 0;

Floats numbers(int64_t n, float magnitude = 1.0f) {
  std::normal_distribution<float> normal(0.0f, magnitude);
  Floats out(static_cast<size_t>(n));
  for (float& value : out) value = normal(generator);
  return out;
}

// Relative for values above 1, absolute below. NaN equals NaN.
bool close(float found, float wanted, float tolerance) {
  if (std::isnan(wanted)) return std::isnan(found);
  if (found == wanted) return true;
  return std::fabs(found - wanted) <= tolerance * std::fmax(1.0f, std::fabs(wanted));
}

void compare(const std::string& what, const Floats& found, const Floats& wanted, float tolerance) {
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (close(found[i], wanted[i], tolerance)) continue;
    std::printf("%s: [%zu] found %.9g, wanted %.9g\n", what.c_str(), i, found[i], wanted[i]);
    ++mismatches;
    return;
  }
}

void check_gemm(const Kernels& kernels, int64_t m, int64_t n, int64_t k) {
  constexpr int64_t kPadding = 3;
  const auto check = [&](const char* name, auto kernel, int64_t a_rows, int64_t a_columns,
                         int64_t b_rows, int64_t b_columns) {
    const int64_t lda = a_columns + kPadding, ldb = b_columns + kPadding, ldc = n + kPadding;
    const Floats a = numbers(a_rows * lda), b = numbers(b_rows * ldb);
    Floats found = numbers(m * ldc);
    Floats wanted = found;
    (kernels.*kernel)(m, n, k, a.data(), lda, b.data(), ldb, found.data(), ldc);
    (kScalarKernels.*kernel)(m, n, k, a.data(), lda, b.data(), ldb, wanted.data(), ldc);
    const std::string what = std::string(kernels.name) + " " + name + " " + std::to_string(m) +
                             " " + std::to_string(n) + " " + std::to_string(k);
    compare(what, found, wanted, kSumTolerance);
  };
  check("gemm_nt", &Kernels::gemm_nt, m, k, n, k);
  check("gemm_nn", &Kernels::gemm_nn, m, k, k, n);
  check("gemm_tn", &Kernels::gemm_tn, k, m, k, n);
}

// Products of `m` rows with pairs as they are stored.
void check_stored_gemms(const Kernels& kernels, int64_t m, int64_t pairs, int64_t head_dim) {
  const Floats values = numbers(pairs * head_dim);
  std::vector<uint16_t> halves(values.size());
  std::vector<uint8_t> blocks(values.size() / kQ8BlockSize * kQ8BlockBytes);
  kScalarKernels.f32_to_f16(values.data(), pairs * head_dim, halves.data());
  kScalarKernels.f32_to_q8_0(values.data(), pairs * head_dim, blocks.data());
  const auto check = [&](const char* name, auto kernel, const auto& b, int64_t n, int64_t k) {
    const Floats a = numbers(m * k);
    Floats found = numbers(m * n);
    Floats wanted = found;
    (kernels.*kernel)(m, n, k, a.data(), k, b.data(), head_dim, found.data(), n);
    (kScalarKernels.*kernel)(m, n, k, a.data(), k, b.data(), head_dim, wanted.data(), n);
    const std::string what = std::string(kernels.name) + " " + name + " " + std::to_string(m) +
                             " " + std::to_string(n) + " " + std::to_string(k);
    compare(what, found, wanted, kSumTolerance);
  };
  check("gemm_nt_f16", &Kernels::gemm_nt_f16, halves, pairs, head_dim);
  check("gemm_nn_f16", &Kernels::gemm_nn_f16, halves, head_dim, pairs);
  check("gemm_nt_q8_0", &Kernels::gemm_nt_q8_0, blocks, pairs, head_dim);
  check("gemm_nn_q8_0", &Kernels::gemm_nn_q8_0, blocks, head_dim, pairs);
}

void check_gemms(const Kernels& kernels) {
  for (const int64_t m : {1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 17}) {
    for (const int64_t n : kSizes) {
      for (const int64_t k : {1, 3, 8, 17, 33, 64, 257}) check_gemm(kernels, m, n, k);
      for (const int64_t head_dim : {32, 64, 96, 128}) check_stored_gemms(kernels, m, n, head_dim);
    }
  }
}

// Runs a kernel that changes `values` with both implementations.
template <typename Run>
void check_in_place(const Kernels& kernels, const char* name, const Floats& values, float tolerance,
                    const Run& run) {
  Floats found = values, wanted = values;
  run(kernels, found);
  run(kScalarKernels, wanted);
  compare(std::string(kernels.name) + " " + name + " " + std::to_string(values.size()), found,
          wanted, tolerance);
}

void check_reductions(const Kernels& kernels, int64_t n) {
  const Floats a = numbers(n), b = numbers(n);
  const auto check = [&](const char* name, float tolerance, const auto& reduce) {
    compare(std::string(kernels.name) + " " + name + " " + std::to_string(n), {reduce(kernels)},
            {reduce(kScalarKernels)}, tolerance);
  };
  check("max", kExact, [&](const Kernels& set) { return set.max(a.data(), n); });
  check("dot", kSumTolerance, [&](const Kernels& set) { return set.dot(a.data(), b.data(), n); });
  check("squared_distance", kSumTolerance,
        [&](const Kernels& set) { return set.squared_distance(a.data(), b.data(), n); });
  check("sum of exp_shift", kSumTolerance, [&](const Kernels& set) {
    Floats x = a;
    return set.exp_shift(x.data(), n, 1.0f);
  });
}

void check_elementwise(const Kernels& kernels, int64_t n) {
  const Floats x = numbers(n), y = numbers(n);
  check_in_place(kernels, "scale", x, kExact,
                 [&](const Kernels& set, Floats& v) { set.scale(v.data(), n, 0.7f); });
  check_in_place(kernels, "add", x, kExact,
                 [&](const Kernels& set, Floats& v) { set.add(v.data(), y.data(), n); });
  check_in_place(kernels, "rms_norm", x, kExpTolerance, [&](const Kernels& set, Floats& v) {
    set.rms_norm(x.data(), y.data(), n, 1e-5f, v.data());
  });
  check_in_place(kernels, "silu_gate", numbers(n, 20.0f), kExpTolerance,
                 [&](const Kernels& set, Floats& v) { set.silu_gate(v.data(), y.data(), n); });
  check_in_place(
      kernels, "exp_features", numbers(2 * n, 4.0f), kExpTolerance,
      [&](const Kernels& set, Floats& v) { set.exp_features(v.data(), n, true, true, 1e-12f); });
  const Floats pairs = numbers(2 * n + 1);
  check_in_place(kernels, "rope_interleaved", pairs, kExact, [&](const Kernels& set, Floats& v) {
    set.rope_interleaved(v.data(), x.data(), y.data(), n);
  });
  check_in_place(kernels, "rope_half", pairs, kExact, [&](const Kernels& set, Floats& v) {
    set.rope_half(v.data(), x.data(), y.data(), n);
  });
}

void check_exp(const Kernels& kernels) {
  Floats x = {-INFINITY, -1e30f, -104.0f, -87.4f, -87.2f, -0.0f, 88.72283f, 89.0f, INFINITY, NAN};
  for (int i = 0; i < 20000; ++i) x.push_back(-88.0f + static_cast<float>(i) * 0.00883f);
  const int64_t n = static_cast<int64_t>(x.size());
  check_in_place(kernels, "exp_shift", x, kExpTolerance,
                 [&](const Kernels& set, Floats& v) { set.exp_shift(v.data(), n, 0.0f); });
}

// Halves as floats, so that one comparison serves both; every half is a float.
Floats widened(const std::vector<uint16_t>& halves) {
  Floats out;
  for (const uint16_t half : halves) out.push_back(f16_to_f32(half));
  return out;
}

void check_halves(const Kernels& kernels) {
  constexpr int64_t kCount = 65536;
  std::vector<uint16_t> halves;
  for (int i = 0; i < kCount; ++i) halves.push_back(static_cast<uint16_t>(i));
  const Floats wanted = widened(halves);
  Floats found(kCount);
  kernels.f16_to_f32(halves.data(), kCount, found.data());
  compare(std::string(kernels.name) + " f16_to_f32", found, wanted, kExact);
  for (const float magnitude : {1e-7f, 1e-4f, 1.0f, 5e4f}) {
    const Floats x = numbers(kCount - 1, magnitude);
    std::vector<uint16_t> narrow(x.size()), reference(x.size());
    kernels.f32_to_f16(x.data(), kCount - 1, narrow.data());
    kScalarKernels.f32_to_f16(x.data(), kCount - 1, reference.data());
    compare(std::string(kernels.name) + " f32_to_f16", widened(narrow), widened(reference), kExact);
  }
}

void check_q8_0(const Kernels& kernels) {
  for (const float magnitude : {0.0f, 1e-7f, 1.0f, 1e6f}) {
    const int64_t n = 32 * 33;
    const Floats x = numbers(n, magnitude);
    check_in_place(kernels, "q8_0", x, kExact, [&](const Kernels& set, Floats& v) {
      std::vector<uint8_t> blocks(static_cast<size_t>(n / kQ8BlockSize * kQ8BlockBytes));
      set.f32_to_q8_0(x.data(), n, blocks.data());
      set.q8_0_to_f32(blocks.data(), n, v.data());
    });
  }
}

int check_all() {
  for (const char* const* name = available_isas(); *name != nullptr; ++name) {
    const Kernels& kernels = kernels_by_name(*name);
    check_gemms(kernels);
    for (const int64_t n : kSizes) {
      check_reductions(kernels, n);
      check_elementwise(kernels, n);
    }
    check_exp(kernels);
    check_halves(kernels);
    check_q8_0(kernels);
    std::printf("%s: checked\n", *name);
  }
  return mismatches == 0 ? 0 : 1;
}

}  // namespace
}  // namespace lola

int main() { return lola::check_all(); }

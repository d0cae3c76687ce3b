// gcc 12's own AVX-512 intrinsics set off these warnings (gcc bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include "kernels/matmul_avx2_steps.h"

namespace lola {
namespace {

inline __m512 load16(const uint8_t* values, F32) {
  return _mm512_loadu_ps(reinterpret_cast<const float*>(values));
}
inline __m512 load16(const uint8_t* values, F16) { return _mm512_cvtph_ps(load256(values)); }
inline __m512 load16(const uint8_t* values, BF16) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load256(values)), 16));
}

inline __m512i load512(const void* p) { return _mm512_loadu_si512(p); }

// What was just written as two registers of AVX2: a load across both stores would wait for them to
// reach the cache.
inline __m512i load_halves(const int8_t* p) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(load256(p)), load256(p + 32), 1);
}

// vpdpbusd multiplies unsigned with signed bytes. Weights are the unsigned ones, as q + 128, and
// the sums start at -128 * sum(a), which a panel finds in the activations: exact for any q.
struct Avx512Ops : Avx2Steps {
  static constexpr int kPanelRows = 32;

  struct RowSum {
    __m512 products[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(),
                          _mm512_setzero_ps()};
    __m256 mins = _mm256_setzero_ps();
  };

  // Elements of a row lie kPanelRows apart: four bytes of q + 128, or a float.
  struct Panel {
    alignas(64) float elements[kChunk * kPanelRows];
    alignas(64) float scale[16 * kPanelRows];
    alignas(64) float min[16 * kPanelRows];
  };

  template <typename Reader>
  static LOLA_INLINE void dot(const Chunk& chunk, const ActivationBlock& a, RowSum& sum) {
    constexpr bool kHalves = Reader::kGroup == 16;
    constexpr int kLanes = Reader::kGroup / 4;
    alignas(64) float scales[16];
    multiply_scales<Reader>(chunk, a, scales, sum.mins);
    __m512 all_scales = _mm512_castps256_ps512(_mm256_load_ps(scales));
    if (kHalves) all_scales = _mm512_insertf32x8(all_scales, _mm256_load_ps(scales + 8), 1);
    // Lane i of register r belongs to group i / kLanes + r * 16 / kLanes.
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i group0 = _mm512_srli_epi32(lane, kHalves ? 2 : 3);
    const __m512i offset = _mm512_set1_epi8(-128);
    LOLA_UNROLL
    for (int i = 0; i < 4; ++i) {
      const __m512i group = _mm512_add_epi32(group0, _mm512_set1_epi32(i * 16 / kLanes));
      __m512i w = load_halves(chunk.q + i * 64);
      const __m512i four = load512(a.q + i * 64);
      __m512i products = _mm512_setzero_si512();
      if (Reader::kMaxQ == 0) {  // corrected lane by lane: the float sums must not cancel
        w = _mm512_xor_si512(w, offset);
        products = _mm512_sub_epi32(products, _mm512_dpbusd_epi32(products, offset, four));
      }
      products = _mm512_dpbusd_epi32(products, w, four);
      const __m512 scale = _mm512_permutexvar_ps(group, all_scales);
      sum.products[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), scale, sum.products[i]);
    }
  }

  static float total(const RowSum& sum) {
    const __m512 low = _mm512_add_ps(sum.products[0], sum.products[1]);
    const __m512 high = _mm512_add_ps(sum.products[2], sum.products[3]);
    const __m512 all = _mm512_add_ps(low, high);
    const __m256 folded =
        _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    return sum8(_mm256_sub_ps(folded, sum.mins));
  }

  template <typename Reader>
  static void fill_panel(const Chunk* chunks, Panel& panel) {
    const __m256i offset = _mm256_set1_epi8(-128);
    for (int first = 0; first < kPanelRows; first += 8) {
      const Chunk* rows = chunks + first;
      for (int i = 0; i < kChunk; i += 32) {
        const auto load = [&](int row) {
          return _mm256_castsi256_ps(_mm256_xor_si256(load256(rows[row].q + i), offset));
        };
        transpose8(load, panel.elements + i / 4 * kPanelRows + first, kPanelRows);
      }
      transpose_scales<Reader>(rows, panel.scale + first, panel.min + first, kPanelRows);
    }
  }

  template <typename Reader, int kTokens>
  static void multiply_tokens(const Panel& panel, const ActivationBlock* a, float* sums) {
    constexpr int kGroup = Reader::kGroup;
    for (int group = 0; group < kChunk / kGroup; ++group) {
      const int first = group * kGroup;
      __m512i products[kTokens][2];
      LOLA_UNROLL
      for (int t = 0; t < kTokens; ++t) {
        const int32_t* offset = kGroup == 32 ? &a[t].offset32[group % 8] : &a[t].offset16[group];
        products[t][0] = products[t][1] = _mm512_set1_epi32(*offset);
      }
      LOLA_UNROLL
      for (int step = 0; step < kGroup / 4; ++step) {
        const float* w = panel.elements + (first / 4 + step) * kPanelRows;
        const __m512i w0 = load512(w);
        const __m512i w1 = load512(w + 16);
        LOLA_UNROLL
        for (int t = 0; t < kTokens; ++t) {
          int32_t four;
          std::memcpy(&four, a[t].q + first + step * 4, sizeof(four));
          products[t][0] = _mm512_dpbusd_epi32(products[t][0], w0, _mm512_set1_epi32(four));
          products[t][1] = _mm512_dpbusd_epi32(products[t][1], w1, _mm512_set1_epi32(four));
        }
      }
      LOLA_UNROLL
      for (int half = 0; half < 2; ++half) {
        const __m512 scale = _mm512_load_ps(panel.scale + group * kPanelRows + half * 16);
        const __m512 min = _mm512_load_ps(panel.min + group * kPanelRows + half * 16);
        LOLA_UNROLL
        for (int t = 0; t < kTokens; ++t) {
          float* to = sums + t * kPanelRows + half * 16;
          const __m512 a_scale = _mm512_set1_ps(a[t].scale[first / 32]);
          const __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(products[t][half]), a_scale);
          __m512 sum = _mm512_fmadd_ps(value, scale, _mm512_load_ps(to));
          if (Reader::kHasMin) {
            const float* a_sum = kGroup == 32 ? &a[t].sum32[group % 8] : &a[t].sum16[group];
            sum = _mm512_fnmadd_ps(min, _mm512_set1_ps(*a_sum), sum);
          }
          _mm512_store_ps(to, sum);
        }
      }
    }
  }

  template <typename Reader>
  static void multiply_panel(const Panel& panel, const ActivationBlock* a, int64_t tokens,
                             float* sums) {
    int64_t token = 0;
    for (; token + 8 <= tokens; token += 8) {
      multiply_tokens<Reader, 8>(panel, a + token, sums + token * kPanelRows);
    }
    for (; token + 2 <= tokens; token += 2) {
      multiply_tokens<Reader, 2>(panel, a + token, sums + token * kPanelRows);
    }
    if (token < tokens) multiply_tokens<Reader, 1>(panel, a + token, sums + token * kPanelRows);
  }

  template <typename Value>
  static float float_dot(const uint8_t* values, const float* x, int64_t cols) {
    __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(),
                      _mm512_setzero_ps()};
    int64_t col = 0;
    for (; col + 64 <= cols; col += 64) {
      LOLA_UNROLL
      for (int i = 0; i < 4; ++i) {
        const __m512 w = load16(values + (col + i * 16) * Value::kBytes, Value{});
        sums[i] = _mm512_fmadd_ps(w, _mm512_loadu_ps(x + col + i * 16), sums[i]);
      }
    }
    for (; col < cols; col += 16) {
      uint8_t w[16 * 4] = {};
      float a[16] = {};
      const auto count = static_cast<size_t>(smaller(16, cols - col));
      std::memcpy(w, values + col * Value::kBytes, count * Value::kBytes);
      std::memcpy(a, x + col, count * sizeof(float));
      sums[0] = _mm512_fmadd_ps(load16(w, Value{}), _mm512_loadu_ps(a), sums[0]);
    }
    RowSum all;
    for (int i = 0; i < 4; ++i) all.products[i] = sums[i];
    return total(all);
  }

  static void fill_float_panel(const float* rows, int64_t cols, Panel& panel) {
    transpose_floats(rows, kPanelRows, cols, panel.elements);
  }

  template <int kTokens>
  static void multiply_float_tokens(const Panel& panel, const float* x, int64_t x_stride,
                                    int64_t cols, float* to) {
    __m512 sums[kTokens][2];
    LOLA_UNROLL
    for (int t = 0; t < kTokens; ++t) {
      sums[t][0] = _mm512_load_ps(to + t * kPanelRows);
      sums[t][1] = _mm512_load_ps(to + t * kPanelRows + 16);
    }
    for (int64_t i = 0; i < cols; ++i) {
      const __m512 w0 = _mm512_load_ps(panel.elements + i * kPanelRows);
      const __m512 w1 = _mm512_load_ps(panel.elements + i * kPanelRows + 16);
      LOLA_UNROLL
      for (int t = 0; t < kTokens; ++t) {
        const __m512 value = _mm512_set1_ps(x[t * x_stride + i]);
        sums[t][0] = _mm512_fmadd_ps(w0, value, sums[t][0]);
        sums[t][1] = _mm512_fmadd_ps(w1, value, sums[t][1]);
      }
    }
    LOLA_UNROLL
    for (int t = 0; t < kTokens; ++t) {
      _mm512_store_ps(to + t * kPanelRows, sums[t][0]);
      _mm512_store_ps(to + t * kPanelRows + 16, sums[t][1]);
    }
  }

  static void multiply_float_panel(const Panel& panel, const float* x, int64_t x_stride,
                                   int64_t cols, int64_t tokens, float* sums) {
    int64_t token = 0;
    for (; token + 8 <= tokens; token += 8) {
      multiply_float_tokens<8>(panel, x + token * x_stride, x_stride, cols,
                               sums + token * kPanelRows);
    }
    for (; token < tokens; ++token) {
      multiply_float_tokens<1>(panel, x + token * x_stride, x_stride, cols,
                               sums + token * kPanelRows);
    }
  }
};

}  // namespace

constinit const MatmulKernels kMatmulAvx512 = matmul_kernels<Avx512Ops>();

}  // namespace lola

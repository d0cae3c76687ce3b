#include "kernels/matmul_avx2_steps.h"

namespace lola {
namespace {

struct Avx2Ops : Avx2Steps {
  static constexpr int kPanelRows = 16;

  struct RowSum {
    __m256 products[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(),
                          _mm256_setzero_ps()};
    __m256 mins = _mm256_setzero_ps();
  };

  // The 32-bit elements of a row lie kPanelRows apart: four q (as int8), two q (as int16, where q
  // times an activation may overflow the byte multiply) or a float.
  struct Panel {
    alignas(64) float elements[kChunk * kPanelRows];
    alignas(64) float scale[16 * kPanelRows];
    alignas(64) float min[16 * kPanelRows];
  };

  // Sums of four products.
  template <typename Reader>
  static __m256i byte_products(__m256i w, __m256i a) {
    const __m256i pairs = Reader::kMaxQ
                              ? _mm256_maddubs_epi16(w, a)
                              : _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  }

  template <typename Reader>
  static LOLA_INLINE void dot(const Chunk& chunk, const ActivationBlock& a, RowSum& sum) {
    constexpr bool kHalves = Reader::kGroup == 16;
    alignas(32) float scales[16];
    multiply_scales<Reader>(chunk, a, scales, sum.mins);
    LOLA_UNROLL
    for (int i = 0; i < 8; ++i) {
      const __m256i products =
          byte_products<Reader>(load256(chunk.q + i * 32), load256(a.q + i * 32));
      __m256 scale = _mm256_broadcast_ss(scales + (kHalves ? i * 2 : i));
      if (kHalves) {
        scale = _mm256_blend_ps(scale, _mm256_broadcast_ss(scales + (i * 2 + 1) % 16), 0xF0);
      }
      __m256& to = sum.products[i % 4];
      to = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products), scale, to);
    }
  }

  static float total(const RowSum& sum) {
    const __m256 low = _mm256_add_ps(sum.products[0], sum.products[1]);
    const __m256 high = _mm256_add_ps(sum.products[2], sum.products[3]);
    return sum8(_mm256_sub_ps(_mm256_add_ps(low, high), sum.mins));
  }

  template <typename Reader>
  static void fill_panel(const Chunk* chunks, Panel& panel) {
    constexpr int kValues = Reader::kMaxQ ? 32 : 16;  // of a register's eight elements
    for (int first = 0; first < kPanelRows; first += 8) {
      const Chunk* rows = chunks + first;
      for (int i = 0; i < kChunk / kValues; ++i) {
        const auto load = [&](int row) {
          const int8_t* q = rows[row].q + i * kValues;
          return _mm256_castsi256_ps(Reader::kMaxQ ? load256(q) : _mm256_cvtepi8_epi16(load128(q)));
        };
        transpose8(load, panel.elements + i * 8 * kPanelRows + first, kPanelRows);
      }
      transpose_scales<Reader>(rows, panel.scale + first, panel.min + first, kPanelRows);
    }
  }

  // products[t][half] of a group whose q are unsigned and narrow: kChain sums of two products fit
  // into 16 bits.
  template <typename Reader, int kTokens>
  static void narrow_products(const float* elements, const ActivationBlock* a, int first,
                              __m256i (&products)[kTokens][2]) {
    constexpr int kChain = Reader::kMaxQ <= 15 ? 8 : Reader::kMaxQ <= 31 ? 4 : 2;
    constexpr int kSteps = Reader::kGroup / 4;
    constexpr int kRun = kChain < kSteps ? kChain : kSteps;
    for (int t = 0; t < kTokens; ++t) products[t][0] = products[t][1] = _mm256_setzero_si256();
    LOLA_UNROLL
    for (int run = 0; run < kSteps; run += kRun) {
      __m256i pairs[kTokens][2];
      LOLA_UNROLL
      for (int step = 0; step < kRun; ++step) {
        const float* w = elements + (run + step) * kPanelRows;
        const __m256i w0 = load256(w);
        const __m256i w1 = load256(w + 8);
        LOLA_UNROLL
        for (int t = 0; t < kTokens; ++t) {
          const __m256i four = broadcast4(a[t].q + first + (run + step) * 4);
          const __m256i p0 = _mm256_maddubs_epi16(w0, four);
          const __m256i p1 = _mm256_maddubs_epi16(w1, four);
          pairs[t][0] = step ? _mm256_add_epi16(pairs[t][0], p0) : p0;
          pairs[t][1] = step ? _mm256_add_epi16(pairs[t][1], p1) : p1;
        }
      }
      const __m256i ones = _mm256_set1_epi16(1);
      LOLA_UNROLL
      for (int t = 0; t < kTokens; ++t) {
        products[t][0] = _mm256_add_epi32(products[t][0], _mm256_madd_epi16(pairs[t][0], ones));
        products[t][1] = _mm256_add_epi32(products[t][1], _mm256_madd_epi16(pairs[t][1], ones));
      }
    }
  }

  // The same for any q, as products of 16-bit numbers. a [kTokens][kChunk]
  template <typename Reader, int kTokens>
  static void wide_products(const float* elements, const int16_t (*a)[kChunk], int first,
                            __m256i (&products)[kTokens][2]) {
    for (int t = 0; t < kTokens; ++t) products[t][0] = products[t][1] = _mm256_setzero_si256();
    LOLA_UNROLL
    for (int step = 0; step < Reader::kGroup / 2; ++step) {
      const __m256i w0 = load256(elements + step * kPanelRows);
      const __m256i w1 = load256(elements + step * kPanelRows + 8);
      LOLA_UNROLL
      for (int t = 0; t < kTokens; ++t) {
        const __m256i two = broadcast4(a[t] + first + step * 2);
        products[t][0] = _mm256_add_epi32(products[t][0], _mm256_madd_epi16(w0, two));
        products[t][1] = _mm256_add_epi32(products[t][1], _mm256_madd_epi16(w1, two));
      }
    }
  }

  template <typename Reader, int kTokens>
  static void multiply_tokens(const Panel& panel, const ActivationBlock* a, float* sums) {
    constexpr int kGroup = Reader::kGroup;
    alignas(32) int16_t words[kTokens][kChunk];
    for (int t = 0; t < kTokens && Reader::kMaxQ == 0; ++t) {
      for (int i = 0; i < kChunk; i += 16) {
        const __m256i sixteen = _mm256_cvtepi8_epi16(load128(a[t].q + i));
        _mm256_store_si256(reinterpret_cast<__m256i*>(words[t] + i), sixteen);
      }
    }
    for (int group = 0; group < kChunk / kGroup; ++group) {
      const int first = group * kGroup;
      __m256i products[kTokens][2];
      if constexpr (Reader::kMaxQ != 0) {
        const float* elements = panel.elements + first / 4 * kPanelRows;
        narrow_products<Reader>(elements, a, first, products);
      } else {
        const float* elements = panel.elements + first / 2 * kPanelRows;
        wide_products<Reader>(elements, words, first, products);
      }
      LOLA_UNROLL
      for (int half = 0; half < 2; ++half) {
        const __m256 scale = _mm256_load_ps(panel.scale + group * kPanelRows + half * 8);
        const __m256 min = _mm256_load_ps(panel.min + group * kPanelRows + half * 8);
        LOLA_UNROLL
        for (int t = 0; t < kTokens; ++t) {
          float* to = sums + t * kPanelRows + half * 8;
          const __m256 a_scale = _mm256_broadcast_ss(&a[t].scale[first / 32]);
          const __m256 value = _mm256_mul_ps(_mm256_cvtepi32_ps(products[t][half]), a_scale);
          __m256 sum = _mm256_fmadd_ps(value, scale, _mm256_load_ps(to));
          if (Reader::kHasMin) {
            const float* a_sum = kGroup == 32 ? &a[t].sum32[group % 8] : &a[t].sum16[group];
            sum = _mm256_fnmadd_ps(min, _mm256_broadcast_ss(a_sum), sum);
          }
          _mm256_store_ps(to, sum);
        }
      }
    }
  }

  template <typename Reader>
  static void multiply_panel(const Panel& panel, const ActivationBlock* a, int64_t tokens,
                             float* sums) {
    int64_t token = 0;
    for (; token + 4 <= tokens; token += 4) {
      multiply_tokens<Reader, 4>(panel, a + token, sums + token * kPanelRows);
    }
    for (; token < tokens; ++token) {
      multiply_tokens<Reader, 1>(panel, a + token, sums + token * kPanelRows);
    }
  }

  template <typename Value>
  static float float_dot(const uint8_t* values, const float* x, int64_t cols) {
    __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(),
                      _mm256_setzero_ps()};
    int64_t col = 0;
    for (; col + 32 <= cols; col += 32) {
      LOLA_UNROLL
      for (int i = 0; i < 4; ++i) {
        const __m256 w = load8(values + (col + i * 8) * Value::kBytes, Value{});
        sums[i] = _mm256_fmadd_ps(w, _mm256_loadu_ps(x + col + i * 8), sums[i]);
      }
    }
    for (; col < cols; col += 8) {
      alignas(32) uint8_t w[8 * 4] = {};
      alignas(32) float a[8] = {};
      const auto count = static_cast<size_t>(smaller(8, cols - col));
      std::memcpy(w, values + col * Value::kBytes, count * Value::kBytes);
      std::memcpy(a, x + col, count * sizeof(float));
      sums[0] = _mm256_fmadd_ps(load8(w, Value{}), _mm256_load_ps(a), sums[0]);
    }
    return sum8(_mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3])));
  }

  static void fill_float_panel(const float* rows, int64_t cols, Panel& panel) {
    transpose_floats(rows, kPanelRows, cols, panel.elements);
  }

  template <int kTokens>
  static void multiply_float_tokens(const Panel& panel, const float* x, int64_t x_stride,
                                    int64_t cols, float* to) {
    __m256 sums[kTokens][2];
    LOLA_UNROLL
    for (int t = 0; t < kTokens; ++t) {
      sums[t][0] = _mm256_load_ps(to + t * kPanelRows);
      sums[t][1] = _mm256_load_ps(to + t * kPanelRows + 8);
    }
    for (int64_t i = 0; i < cols; ++i) {
      const __m256 w0 = _mm256_load_ps(panel.elements + i * kPanelRows);
      const __m256 w1 = _mm256_load_ps(panel.elements + i * kPanelRows + 8);
      LOLA_UNROLL
      for (int t = 0; t < kTokens; ++t) {
        const __m256 value = _mm256_broadcast_ss(x + t * x_stride + i);
        sums[t][0] = _mm256_fmadd_ps(w0, value, sums[t][0]);
        sums[t][1] = _mm256_fmadd_ps(w1, value, sums[t][1]);
      }
    }
    LOLA_UNROLL
    for (int t = 0; t < kTokens; ++t) {
      _mm256_store_ps(to + t * kPanelRows, sums[t][0]);
      _mm256_store_ps(to + t * kPanelRows + 8, sums[t][1]);
    }
  }

  static void multiply_float_panel(const Panel& panel, const float* x, int64_t x_stride,
                                   int64_t cols, int64_t tokens, float* sums) {
    int64_t token = 0;
    for (; token + 6 <= tokens; token += 6) {
      multiply_float_tokens<6>(panel, x + token * x_stride, x_stride, cols,
                               sums + token * kPanelRows);
    }
    for (; token < tokens; ++token) {
      multiply_float_tokens<1>(panel, x + token * x_stride, x_stride, cols,
                               sums + token * kPanelRows);
    }
  }
};

}  // namespace

constinit const MatmulKernels kMatmulAvx2 = matmul_kernels<Avx2Ops>();

}  // namespace lola

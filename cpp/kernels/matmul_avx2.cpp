#include <cmath>

#include "kernels/matmul_read_avx2.h"

namespace lola {
namespace {

inline __m256 load8(const uint8_t* values, F32) {
  return _mm256_loadu_ps(reinterpret_cast<const float*>(values));
}
inline __m256 load8(const uint8_t* values, F16) { return _mm256_cvtph_ps(load128(values)); }
inline __m256 load8(const uint8_t* values, BF16) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load128(values)), 16));
}

template <typename Pointer>
inline __m256i broadcast4(const Pointer* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof(four));
  return _mm256_set1_epi32(four);
}

inline float sum8(__m256 v) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

inline int32_t sum4(__m128i v) {
  const __m128i two = _mm_add_epi32(v, _mm_unpackhi_epi64(v, v));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}

inline int32_t max8(__m256i v) {
  const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  const __m128i two = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
  return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 1)));
}

// out[i * stride .. + 8] = element i of the eight rows; load(row) gives eight 32-bit elements.
template <typename Load>
inline void transpose8(const Load& load, float* out, int64_t stride) {
  __m256 rows[8];
  __m256 pairs[8];
  LOLA_UNROLL
  for (int i = 0; i < 8; ++i) rows[i] = load(i);
  LOLA_UNROLL
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
  }
  LOLA_UNROLL
  for (int i = 0; i < 8; i += 4) {
    rows[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    rows[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xEE);
    rows[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    rows[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xEE);
  }
  LOLA_UNROLL
  for (int i = 0; i < 4; ++i) {
    _mm256_store_ps(out + i * stride, _mm256_permute2f128_ps(rows[i], rows[i + 4], 0x20));
    _mm256_store_ps(out + (i + 4) * stride, _mm256_permute2f128_ps(rows[i], rows[i + 4], 0x31));
  }
}

struct Avx2Ops {
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

  // As PlainOps::round_group, and with the sums of its two halves.
  static void round_group(const float* x, int group, ActivationBlock& block) {
    __m256 values[4];
    __m256i largest = _mm256_setzero_si256();
    for (int i = 0; i < 4; ++i) {
      values[i] = _mm256_loadu_ps(x + i * 8);
      const __m256i size =
          _mm256_and_si256(_mm256_castps_si256(values[i]), _mm256_set1_epi32(0x7FFFFFFF));
      largest = _mm256_max_epi32(largest, size);
    }
    const int32_t bits = max8(largest);
    const float limit = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(bits)));
    const bool finite = bits < 0x7F800000;
    const bool zero = limit < 0x1p-100f;
    const float scale = !finite ? NAN : zero ? 0.0f : limit / 127.0f;
    __m256i q[4] = {};
    if (finite && !zero) {
      const __m256 inverse = _mm256_set1_ps(127.0f / limit);
      for (int i = 0; i < 4; ++i) q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(values[i], inverse));
    }
    // The packs work on 128-bit halves; the permutation puts the groups of four in order.
    const __m256i packed = _mm256_permutevar8x32_epi32(
        _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3])),
        _mm256_set_epi32(7, 3, 6, 2, 5, 1, 4, 0));
    store256(block.q + group * 32, packed);
    const __m256i low = _mm256_add_epi32(q[0], q[1]);
    const __m256i high = _mm256_add_epi32(q[2], q[3]);
    const int32_t sum0 =
        sum4(_mm_add_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1)));
    const int32_t sum1 =
        sum4(_mm_add_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1)));
    block.scale[group] = scale;
    block.sum16[group * 2] = scale * static_cast<float>(sum0);
    block.sum16[group * 2 + 1] = scale * static_cast<float>(sum1);
    block.sum32[group] = scale * static_cast<float>(sum0 + sum1);
    block.offset16[group * 2] = -128 * sum0;
    block.offset16[group * 2 + 1] = -128 * sum1;
    block.offset32[group] = -128 * (sum0 + sum1);
  }

  static void round_activations(const float* x, int64_t cols, ActivationBlock* blocks,
                                int64_t block_stride) {
    for (int64_t col = 0; col < cols; col += kChunk, blocks += block_stride) {
      const int64_t groups = smaller(8, (cols - col) / 32);
      if (groups < 8) std::memset(blocks, 0, sizeof(*blocks));
      for (int64_t group = 0; group < groups; ++group) {
        round_group(x + col + group * 32, static_cast<int>(group), *blocks);
      }
    }
  }

  template <typename Body>
  static void with_reader(const QuantFormat& format, const Body& body) {
    with_simd_reader(format, body);
  }

  // Sums of four products.
  template <typename Reader>
  static __m256i byte_products(__m256i w, __m256i a) {
    const __m256i pairs = Reader::kMaxQ
                              ? _mm256_maddubs_epi16(w, a)
                              : _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  }

  template <typename Reader>
  static void dot(const Chunk& chunk, const ActivationBlock& a, RowSum& sum) {
    constexpr bool kHalves = Reader::kGroup == 16;
    alignas(32) float scales[16];
    const __m256 a_scale = _mm256_load_ps(a.scale);
    for (int half = 0; half < (kHalves ? 2 : 1); ++half) {
      __m256 twice = a_scale;
      if (kHalves) {
        const __m256i index = half ? _mm256_set_epi32(7, 7, 6, 6, 5, 5, 4, 4)
                                   : _mm256_set_epi32(3, 3, 2, 2, 1, 1, 0, 0);
        twice = _mm256_permutevar8x32_ps(a_scale, index);
      }
      const __m256 scale = _mm256_mul_ps(_mm256_load_ps(chunk.scale + half * 8), twice);
      _mm256_store_ps(scales + half * 8, scale);
      if (!Reader::kHasMin) continue;
      const float* a_sum = kHalves ? a.sum16 + half * 8 : a.sum32;
      sum.mins = _mm256_fmadd_ps(_mm256_load_ps(chunk.min + half * 8), _mm256_load_ps(a_sum),
                                 sum.mins);
    }
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
          return _mm256_castsi256_ps(Reader::kMaxQ ? load256(q)
                                                   : _mm256_cvtepi8_epi16(load128(q)));
        };
        transpose8(load, panel.elements + i * 8 * kPanelRows + first, kPanelRows);
      }
      for (int group = 0; group < kChunk / Reader::kGroup; group += 8) {
        const auto scale = [&](int row) { return _mm256_load_ps(rows[row].scale + group); };
        transpose8(scale, panel.scale + group * kPanelRows + first, kPanelRows);
        if (!Reader::kHasMin) continue;
        const auto min = [&](int row) { return _mm256_load_ps(rows[row].min + group); };
        transpose8(min, panel.min + group * kPanelRows + first, kPanelRows);
      }
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

  // Writes whole registers: up to seven values past the end.
  template <typename Value>
  static void to_floats(const uint8_t* values, int64_t count, float* out) {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) _mm256_store_ps(out + i, load8(values + i * Value::kBytes, Value{}));
    if (i == count) return;
    uint8_t rest[8 * 4] = {};
    std::memcpy(rest, values + i * Value::kBytes, static_cast<size_t>(count - i) * Value::kBytes);
    _mm256_store_ps(out + i, load8(rest, Value{}));
  }

  static void fill_float_panel(const float* rows, int64_t cols, Panel& panel) {
    for (int first = 0; first < kPanelRows; first += 8) {
      for (int64_t col = 0; col < cols; col += 8) {
        const auto load = [&](int row) {
          return _mm256_load_ps(rows + (first + row) * kChunk + col);
        };
        transpose8(load, panel.elements + col * kPanelRows + first, kPanelRows);
      }
    }
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

const MatmulKernels kMatmulAvx2 = matmul_kernels<Avx2Ops>();

}  // namespace lola

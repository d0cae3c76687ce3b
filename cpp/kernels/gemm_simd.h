// Small dense products written once over a vector type V (vec_<isa>.h), for kernels_simd.h. The
// right operand's values are at a B: const float*, const uint16_t* (halves) or Q8Values.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/kernel_sets.h"

namespace lola {
namespace {

// A left operand: element (i, p) is data[i * row + p * step]. So a matrix and its transpose are the
// same code.
struct LeftOperand {
  const float* data;
  int64_t row;
  int64_t step;

  LeftOperand rows_from(int64_t i) const { return {data + i * row, row, step}; }
  LeftOperand steps_from(int64_t p) const { return {data + p * step, row, step}; }
};

// Value `index` of blocks of q8_0.
struct Q8Values {
  const uint8_t* blocks;
  uint64_t index;

  Q8Values operator+(int64_t n) const { return {blocks, index + static_cast<uint64_t>(n)}; }
  void operator+=(int64_t n) { index += static_cast<uint64_t>(n); }
};

template <typename V, typename T>
V load(const T* x) {
  return V::load(x);
}
template <typename V, typename T>
V load(const T* x, int count) {
  return V::load(x, count);
}
template <typename V>
V load(Q8Values x) {
  const uint8_t* block = x.blocks + x.index / kQ8BlockSize * kQ8BlockBytes;
  uint16_t half;
  std::memcpy(&half, block, sizeof half);
  return V::all_f16(half) * V::load_i8(block + sizeof half + x.index % kQ8BlockSize);
}
template <typename V>
V load(Q8Values x, int count) {
  return load<V>(x).keep(count);
}

constexpr int kMaxBlockRows = 6;

// Vectors per row of a tile: as many as the registers hold, and 8 hide the latency of one row's
// sums.
template <typename V, int kRows>
constexpr int kTileVectors = V::kAccumulators / kRows < 8 ? V::kAccumulators / kRows : 8;

template <typename V>
constexpr int kPanelWidth = V::kWidth* kTileVectors<V, kMaxBlockRows>;

// What becomes of c: the product is added to it, or takes its place.
enum class Into { kAdd, kReplace };

// c[kRows, kVectors * V::kWidth] (+)= a b, the sums in registers.
template <typename V, int kRows, int kVectors, typename B>
void multiply_tile(Into into, int64_t k, LeftOperand a, B b, int64_t ldb, float* c, int64_t ldc) {
  V sums[kRows][kVectors];
  for (auto& row : sums) {
    for (V& sum : row) sum = V::zero();
  }
  const float* column = a.data;
  for (int64_t p = 0; p < k; ++p, b += ldb, column += a.step) {
    V right[kVectors];
    for (int j = 0; j < kVectors; ++j) right[j] = load<V>(b + j * V::kWidth);
    for (int i = 0; i < kRows; ++i) {
      const V left = V::all(column[i * a.row]);
      for (int j = 0; j < kVectors; ++j) sums[i][j] = V::fma(left, right[j], sums[i][j]);
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kVectors; ++j) {
      float* out = c + i * ldc + j * V::kWidth;
      (into == Into::kAdd ? V::load(out) + sums[i][j] : sums[i][j]).store(out);
    }
  }
}

// The same for the last columns, fewer than V::kWidth.
template <typename V, int kRows, typename B>
void multiply_narrow_tile(Into into, int columns, int64_t k, LeftOperand a, B b, int64_t ldb,
                          float* c, int64_t ldc) {
  V sums[kRows];
  for (V& sum : sums) sum = V::zero();
  const float* column = a.data;
  for (int64_t p = 0; p < k; ++p, b += ldb, column += a.step) {
    const V right = load<V>(b, columns);
    for (int i = 0; i < kRows; ++i) sums[i] = V::fma(V::all(column[i * a.row]), right, sums[i]);
  }
  for (int i = 0; i < kRows; ++i) {
    float* out = c + i * ldc;
    (into == Into::kAdd ? V::load(out, columns) + sums[i] : sums[i]).store(out, columns);
  }
}

// c[kRows, n] (+)= a b, in tiles that get narrower towards the end.
template <typename V, int kRows, int kVectors, typename B>
void multiply_row_block(Into into, int64_t n, int64_t k, LeftOperand a, B b, int64_t ldb, float* c,
                        int64_t ldc) {
  constexpr int kWidth = kVectors * V::kWidth;
  for (; n >= kWidth; n -= kWidth, b += kWidth, c += kWidth) {
    multiply_tile<V, kRows, kVectors>(into, k, a, b, ldb, c, ldc);
  }
  if constexpr (kVectors > 1) {
    multiply_row_block<V, kRows, kVectors - 1, B>(into, n, k, a, b, ldb, c, ldc);
  } else if (n > 0) {
    multiply_narrow_tile<V, kRows>(into, static_cast<int>(n), k, a, b, ldb, c, ldc);
  }
}

// Calls block(rows, first row) for blocks of nearly equal size that cover [0, m).
template <int kMaxRows, typename Block>
void for_each_row_block(int64_t m, const Block& block) {
  const int64_t blocks = (m + kMaxRows - 1) / kMaxRows;
  for (int64_t i = 0, index = 0; index < blocks; ++index) {
    const int64_t rows = (m - i + blocks - index - 1) / (blocks - index);
    block(static_cast<int>(rows), i);
    i += rows;
  }
}

// c[m, n] (+)= a b
template <typename V, typename B>
void multiply_panel(Into into, int64_t m, int64_t n, int64_t k, LeftOperand a, B b, int64_t ldb,
                    float* c, int64_t ldc) {
  for_each_row_block<kMaxBlockRows>(m, [&](int rows, int64_t i) {
    const auto run = [&](auto block) {
      block(into, n, k, a.rows_from(i), b, ldb, c + i * ldc, ldc);
    };
    switch (rows) {
      case 1:
        return run(multiply_row_block<V, 1, kTileVectors<V, 1>, B>);
      case 2:
        return run(multiply_row_block<V, 2, kTileVectors<V, 2>, B>);
      case 3:
        return run(multiply_row_block<V, 3, kTileVectors<V, 3>, B>);
      case 4:
        return run(multiply_row_block<V, 4, kTileVectors<V, 4>, B>);
      case 5:
        return run(multiply_row_block<V, 5, kTileVectors<V, 5>, B>);
      default:
        return run(multiply_row_block<V, 6, kTileVectors<V, 6>, B>);
    }
  });
}

// c[m, n] += a b. For many rows panel after panel of b's columns, so that a panel stays in the L1
// cache for all rows; for few, tiles may be as wide as they like.
template <typename V, typename B>
void multiply_add(int64_t m, int64_t n, int64_t k, LeftOperand a, B b, int64_t ldb, float* c,
                  int64_t ldc) {
  const int64_t width = m <= 2 * kMaxBlockRows ? n : kPanelWidth<V>;
  for (int64_t j = 0; j < n; j += width) {
    const int64_t columns = n - j < width ? n - j : width;
    multiply_panel<V>(Into::kAdd, m, columns, k, a, b + j, ldb, c + j, ldc);
  }
}

// panel[k, kPanelWidth] = b[n, k]', n <= kPanelWidth. Columns from n on are not written.
template <typename V>
void transpose_into_panel(int64_t n, int64_t k, const float* b, int64_t ldb, float* panel) {
  constexpr int64_t kWidth = kPanelWidth<V>;
  const int64_t whole_rows = n / V::kWidth * V::kWidth;
  const int64_t whole_steps = k / 4 * 4;
  for (int64_t j = 0; j < whole_rows; j += V::kWidth) {
    for (int64_t p = 0; p < whole_steps; p += 4) {
      V quads[4];
      for (int i = 0; i < 4; ++i) quads[i] = V::load_quads(b + (j + i) * ldb + p, 4 * ldb);
      V::transpose_quads(quads);
      for (int i = 0; i < 4; ++i) quads[i].store(panel + (p + i) * kWidth + j);
    }
    for (int64_t p = whole_steps; p < k; ++p) {
      for (int64_t i = j; i < j + V::kWidth; ++i) panel[p * kWidth + i] = b[i * ldb + p];
    }
  }
  for (int64_t j = whole_rows; j < n; ++j) {
    for (int64_t p = 0; p < k; ++p) panel[p * kWidth + j] = b[j * ldb + p];
  }
}

// c[m, n] = a b': for many rows, where transposing b once is cheaper than summing across registers
// per result.
template <typename V>
void multiply_transposed(int64_t m, int64_t n, int64_t k, LeftOperand a, const float* b,
                         int64_t ldb, float* c, int64_t ldc) {
  constexpr int64_t kDepth = 128;
  constexpr int64_t kWidth = kPanelWidth<V>;
  alignas(64) float panel[kDepth * kWidth];
  for (int64_t p = 0; p == 0 || p < k; p += kDepth) {
    const Into into = p == 0 ? Into::kReplace : Into::kAdd;
    const int64_t depth = k - p < kDepth ? k - p : kDepth;
    for (int64_t j = 0; j < n; j += kWidth) {
      const int64_t columns = n - j < kWidth ? n - j : kWidth;
      transpose_into_panel<V>(columns, depth, b + j * ldb + p, ldb, panel);
      multiply_panel<V>(into, m, columns, depth, a.steps_from(p), panel, kWidth, c + j, ldc);
    }
  }
}

// c[kRows, kColumns] = a b', each result the sum across a register.
template <typename V, int kRows, int kColumns, typename B>
void dot_tile(int64_t k, const float* a, int64_t lda, B b, int64_t ldb, float* c, int64_t ldc) {
  V sums[kRows][kColumns];
  for (auto& row : sums) {
    for (V& sum : row) sum = V::zero();
  }
  const auto accumulate = [&](const auto& load_at) {
    V left[kRows];
    for (int i = 0; i < kRows; ++i) left[i] = load_at(a + i * lda);
    for (int j = 0; j < kColumns; ++j) {
      const V right = load_at(b + j * ldb);
      for (int i = 0; i < kRows; ++i) sums[i][j] = V::fma(left[i], right, sums[i][j]);
    }
  };
  int64_t p = 0;
  for (; p + V::kWidth <= k; p += V::kWidth) {
    accumulate([&](auto x) { return load<V>(x + p); });
  }
  if (p < k) accumulate([&](auto x) { return load<V>(x + p, static_cast<int>(k - p)); });

  for (int i = 0; i < kRows; ++i) {
    if constexpr (kColumns % 4 == 0) {
      for (int j = 0; j < kColumns; j += 4) {
        V quads[4] = {sums[i][j], sums[i][j + 1], sums[i][j + 2], sums[i][j + 3]};
        V::transpose_quads(quads);
        ((quads[0] + quads[1]) + (quads[2] + quads[3])).store_quad_sum(c + i * ldc + j);
      }
    } else {
      for (int j = 0; j < kColumns; ++j) c[i * ldc + j] = sums[i][j].sum();
    }
  }
}

// c[kRows, n] = a b'
template <typename V, int kRows, typename B>
void dot_row_block(int64_t n, int64_t k, const float* a, int64_t lda, B b, int64_t ldb, float* c,
                   int64_t ldc) {
  constexpr int kColumns = kRows == 1 ? 8 : 4;
  int64_t j = 0;
  for (; j + kColumns <= n; j += kColumns) {
    dot_tile<V, kRows, kColumns>(k, a, lda, b + j * ldb, ldb, c + j, ldc);
  }
  for (; j < n; ++j) dot_tile<V, kRows, 1>(k, a, lda, b + j * ldb, ldb, c + j, ldc);
}

// c[m, n] = a b', for few rows.
template <typename V, typename B>
void multiply_by_dots(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, B b,
                      int64_t ldb, float* c, int64_t ldc) {
  constexpr int kMaxDotRows = V::kAccumulators >= 16 ? 4 : 3;
  for_each_row_block<kMaxDotRows>(m, [&](int rows, int64_t i) {
    const auto run = [&](auto block) { block(n, k, a + i * lda, lda, b, ldb, c + i * ldc, ldc); };
    switch (rows) {
      case 1:
        return run(dot_row_block<V, 1, B>);
      case 2:
        return run(dot_row_block<V, 2, B>);
      case 3:
        return run(dot_row_block<V, 3, B>);
      default:
        return run(dot_row_block<V, kMaxDotRows, B>);
    }
  });
}

template <typename V>
void gemm_nt(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
             int64_t ldb, float* c, int64_t ldc) {
  constexpr int64_t kFewRows = 12;
  if (m > kFewRows) return multiply_transposed<V>(m, n, k, {a, lda, 1}, b, ldb, c, ldc);
  multiply_by_dots<V>(m, n, k, a, lda, b, ldb, c, ldc);
}

template <typename V>
void gemm_nn(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
             int64_t ldb, float* c, int64_t ldc) {
  multiply_add<V>(m, n, k, {a, lda, 1}, b, ldb, c, ldc);
}

template <typename V>
void gemm_tn(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
             int64_t ldb, float* c, int64_t ldc) {
  multiply_add<V>(m, n, k, {a, 1, lda}, b, ldb, c, ldc);
}

template <typename V>
void gemm_nt_f16(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const uint16_t* b,
                 int64_t ldb, float* c, int64_t ldc) {
  multiply_by_dots<V>(m, n, k, a, lda, b, ldb, c, ldc);
}

template <typename V>
void gemm_nn_f16(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const uint16_t* b,
                 int64_t ldb, float* c, int64_t ldc) {
  multiply_add<V>(m, n, k, {a, lda, 1}, b, ldb, c, ldc);
}

template <typename V>
void gemm_nt_q8_0(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const uint8_t* b,
                  int64_t ldb, float* c, int64_t ldc) {
  multiply_by_dots<V>(m, n, k, a, lda, Q8Values{b, 0}, ldb, c, ldc);
}

template <typename V>
void gemm_nn_q8_0(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const uint8_t* b,
                  int64_t ldb, float* c, int64_t ldc) {
  multiply_add<V>(m, n, k, {a, lda, 1}, Q8Values{b, 0}, ldb, c, ldc);
}

}  // namespace
}  // namespace lola

// The loops of a matrix product that the vector instruction sets share, over a struct V with their
// operations on V::kLanes rows at once. Only the matmul_<isa>.cpp files include this.
//
// A thread takes kPanelRows rows at a time, keeps the weights of one group of columns in registers
// and multiplies them with one token after the other. Each (row, token) is summed group after group
// in float32, whatever the other tokens are: neither the split into tiles nor the batch changes a
// bit.
#pragma once

#include <bit>

#include "kernels/matmul_read.h"

namespace lola {
namespace {

constexpr int kTogether = 4;  // tokens whose sums advance side by side

struct Workspace {
  UnpackedPanel unpacked;
  alignas(64) float sums[kMaxTilePanels][kMaxRunTokens][kPanelRows];
};

// The rows of one panel and the tokens that they are multiplied with.
struct PanelRun {
  const MatmulTile& tile;
  const PanelLayout& layout;
  int64_t index;  // of the panel
  int64_t first_token;
  int64_t tokens;
  float (*sums)[kPanelRows];  // [tokens, kPanelRows]

  const uint8_t* panel() const { return tile.weight->data + index * layout.bytes; }
  const ActivationGroup* activations(int64_t group) const {
    return tile.groups + group * tile.tokens + first_token;
  }
};

// What the integer sums of a group start at: what the weights' offset adds, taken off again.
template <typename V, typename Reader>
LOLA_INLINE typename V::Words start(const ActivationGroup& a, int half) {
  constexpr bool kWhole = Reader::kGroupSize == kGroup;
  constexpr int kStored = kWhole ? kStartOffset : kHalfStartOffset;
  constexpr int kOffset = V::template offset<Reader>();
  if constexpr (kOffset == 0) return V::splat_word(kMagicBits);
  const auto stored = V::splat_word(static_cast<uint32_t>(kWhole ? a.start : a.half_start[half]));
  if constexpr (kOffset == kStored) return stored;
  const auto magic = V::splat_word(kMagicBits);
  const auto minus = V::subtract_words(stored, magic);  // -kStored * sum of q
  return V::add_words(
      magic, V::multiply_words(V::shift_right_signed(minus, std::countr_zero(unsigned{kStored})),
                               V::splat_word(kOffset)));
}

// sums += the products of one group of kLanes rows with kTokens tokens. half: which 16 of the
// activations, where the group has 16.
template <typename V, typename Reader, int kTokens>
LOLA_INLINE void add_products(const typename V::Words* q, typename V::Floats scale,
                              typename V::Floats min, const ActivationGroup* a, int half,
                              float (*sums)[kPanelRows]) {
  typename V::Words products[kTokens];
  LOLA_UNROLL
  for (int t = 0; t < kTokens; ++t) products[t] = start<V, Reader>(a[t], half);
  V::template add_dots<Reader, kTokens>(q, a, half * 16, products);
  LOLA_UNROLL
  for (int t = 0; t < kTokens; ++t) {
    const auto value =
        V::multiply_add(V::as_float(products[t]), V::splat(a[t].scale), V::splat(a[t].minus_magic));
    auto sum = V::multiply_add(value, scale, V::load_floats(sums[t]));
    if constexpr (Reader::kHasMin) {
      const float a_sum = Reader::kGroupSize == kGroup ? a[t].sum : a[t].half_sum[half];
      sum = V::subtract_product(min, V::splat(a_sum), sum);
    }
    V::store_floats(sum, sums[t]);
  }
}

// Group g of a block for kLanes rows and all tokens of the run.
template <typename V, typename Reader, bool kOneToken>
LOLA_INLINE void multiply_group(const Reader& reader, int g, const PanelRun& run,
                                int64_t first_group, int row) {
  typename V::Words q[Reader::kGroupSize / 4];
  reader.quants(g, q);
  V::template prepare<Reader>(q);
  const typename V::Floats scale = reader.scale(g);
  typename V::Floats min{};
  if constexpr (Reader::kHasMin) min = reader.min(g);
  const int column = g * Reader::kGroupSize;
  const ActivationGroup* a = run.activations(first_group + column / kGroup);
  const int half = column % kGroup / 16;
  const auto sums = reinterpret_cast<float(*)[kPanelRows]>(run.sums[0] + row);
  if constexpr (kOneToken) return add_products<V, Reader, 1>(q, scale, min, a, half, sums);
  int64_t t = 0;
  for (; t + kTogether <= run.tokens; t += kTogether) {
    add_products<V, Reader, kTogether>(q, scale, min, a + t, half, sums + t);
  }
  for (; t < run.tokens; ++t) add_products<V, Reader, 1>(q, scale, min, a + t, half, sums + t);
}

// All groups of a block. With one token the weights are read only once, and their unpacking counts:
// unrolled, its shifts are constants.
template <typename V, typename Reader, bool kOneToken>
LOLA_INLINE void multiply_block(const Reader& reader, const PanelRun& run, int64_t first_group,
                                int groups, int row) {
  if constexpr (kOneToken) {
    LOLA_UNROLL
    for (int g = 0; g < Reader::kGroups; ++g) {
      multiply_group<V, Reader, true>(reader, g, run, first_group, row);
    }
  } else {
    for (int g = 0; g < groups; ++g) {
      multiply_group<V, Reader, false>(reader, g, run, first_group, row);
    }
  }
}

// The groups of columns [begin, end) of a format with a reader of its own.
template <typename V, typename Reader, bool kOneToken>
LOLA_NOINLINE void multiply_blocks(const PanelRun& run, int64_t begin, int64_t end) {
  constexpr int64_t kBlockGroups = Reader::kGroups * Reader::kGroupSize / kGroup;
  for (int64_t group = begin; group < end; group += kBlockGroups) {
    const uint8_t* odd = run.panel() + run.layout.odd_at(group / kBlockGroups);
    const uint8_t* words = run.panel() + run.layout.words_at(group / kBlockGroups);
    // Memory is read fastest in order, and formats with groups of 16 are not unpacked in order.
    if constexpr (kOneToken && Reader::kGroupSize == 16) {
      for (int64_t i = 0; i < run.layout.words; ++i) __builtin_prefetch(words + i * kLineBytes);
    }
    for (int row = 0; row < kPanelRows; row += V::kLanes) {
      const Reader reader{{{odd + row * run.layout.odd_bytes, words + row * 4}}};
      multiply_block<V, Reader, kOneToken>(reader, run, group, Reader::kGroups, row);
    }
  }
}

template <typename V, typename Reader>
void multiply_packed(const PanelRun& run, int64_t begin, int64_t end) {
  run.tokens == 1 ? multiply_blocks<V, Reader, true>(run, begin, end)
                  : multiply_blocks<V, Reader, false>(run, begin, end);
}

// Columns [first_col, first_col + cols) of a panel.
inline void unpack(const WeightMatrix& weight, int64_t panel, int64_t first_col, int64_t cols,
                   UnpackedPanel& out) {
  const QuantFormat& format = *weight.format;
  uint8_t blocks[UnpackedPanel::kColumns * 2];
  int8_t q[UnpackedPanel::kColumns];
  float scale[16];
  float min[16] = {};
  const int64_t count = cols / format.block_size;
  for (int64_t row = 0; row < kPanelRows; ++row) {
    read_blocks(weight, panel * kPanelRows + row, first_col / format.block_size, count, blocks);
    format.unpack(blocks, count, q, scale, min);
    for (int64_t i = 0; i < cols / 4; ++i) std::memcpy(out.words[i][row], q + i * 4, 4);
    for (int64_t g = 0; g < cols / format.group_size; ++g) {
      out.scale[g][row] = scale[g];
      out.min[g][row] = min[g];
    }
  }
}

// The same of any other format.
template <typename V, int kSize, bool kMin>
LOLA_NOINLINE void multiply_unpacked(const PanelRun& run, UnpackedPanel& panel, int64_t begin,
                                     int64_t end) {
  constexpr int64_t kStep = UnpackedPanel::kColumns / kGroup;
  for (int64_t group = begin; group < end; group += kStep) {
    const int64_t cols = smaller(kStep, end - group) * kGroup;
    unpack(*run.tile.weight, run.index, group * kGroup, cols, panel);
    for (int row = 0; row < kPanelRows; row += V::kLanes) {
      const ReadUnpacked<V, kSize, kMin> reader{{}, &panel, row};
      multiply_block<V, ReadUnpacked<V, kSize, kMin>, false>(reader, run, group,
                                                             static_cast<int>(cols / kSize), row);
    }
  }
}

template <typename V>
void multiply_groups(const PanelRun& run, UnpackedPanel& panel, int64_t begin, int64_t end) {
  const QuantFormat& format = *run.tile.weight->format;
  switch (format.type) {
    case QuantType::kQ4_0:
      return multiply_packed<V, ReadQ4_0<V>>(run, begin, end);
    case QuantType::kQ4_1:
      return multiply_packed<V, ReadQ4_1<V>>(run, begin, end);
    case QuantType::kQ5_0:
      return multiply_packed<V, ReadQ5_0<V>>(run, begin, end);
    case QuantType::kQ8_0:
      return multiply_packed<V, ReadQ8_0<V>>(run, begin, end);
    case QuantType::kQ2_K:
      return multiply_packed<V, ReadQ2_K<V>>(run, begin, end);
    case QuantType::kQ3_K:
      return multiply_packed<V, ReadQ3_K<V>>(run, begin, end);
    case QuantType::kQ4_K:
      return multiply_packed<V, ReadQ4_K<V>>(run, begin, end);
    case QuantType::kQ5_K:
      return multiply_packed<V, ReadQ5_K<V>>(run, begin, end);
    case QuantType::kQ6_K:
      return multiply_packed<V, ReadQ6_K<V>>(run, begin, end);
    case QuantType::kIQ4_NL:
      return multiply_packed<V, ReadIQ4_NL<V>>(run, begin, end);
    case QuantType::kIQ4_XS:
      return multiply_packed<V, ReadIQ4_XS<V>>(run, begin, end);
    default:
      if (format.group_size == 16) {
        return format.has_min ? multiply_unpacked<V, 16, true>(run, panel, begin, end)
                              : multiply_unpacked<V, 16, false>(run, panel, begin, end);
      }
      return format.has_min ? multiply_unpacked<V, 32, true>(run, panel, begin, end)
                            : multiply_unpacked<V, 32, false>(run, panel, begin, end);
  }
}

// The three float formats, by how an element is stored.
struct F32 {
  static constexpr int kBytes = 4;
};
struct F16 {
  static constexpr int kBytes = 2;
};
struct BF16 {
  static constexpr int kBytes = 2;
};

// sums += the products of columns [begin, end) with kTokens tokens, a column after the other.
// The rows of a column lie side by side in the panel: a float is one block.
template <typename V, typename Value, int kTokens>
LOLA_INLINE void add_float_products(const uint8_t* column, const float* x, int64_t x_stride,
                                    int64_t cols, float (*sums)[kPanelRows]) {
  typename V::Floats sum[kTokens];
  LOLA_UNROLL
  for (int t = 0; t < kTokens; ++t) sum[t] = V::load_floats(sums[t]);
  for (int64_t i = 0; i < cols; ++i) {
    const auto w = V::load_value(column + i * kPanelRows * Value::kBytes, Value{});
    LOLA_UNROLL
    for (int t = 0; t < kTokens; ++t) {
      sum[t] = V::multiply_add(w, V::splat(x[t * x_stride + i]), sum[t]);
    }
  }
  LOLA_UNROLL
  for (int t = 0; t < kTokens; ++t) V::store_floats(sum[t], sums[t]);
}

template <typename V, typename Value>
LOLA_NOINLINE void multiply_floats(const PanelRun& run, int64_t begin, int64_t end) {
  const float* x = run.tile.x + run.first_token * run.tile.x_stride + begin;
  const int64_t stride = run.tile.x_stride;
  for (int row = 0; row < kPanelRows; row += V::kLanes) {
    const uint8_t* column = run.panel() + (begin * kPanelRows + row) * Value::kBytes;
    const auto sums = reinterpret_cast<float(*)[kPanelRows]>(run.sums[0] + row);
    int64_t t = 0;
    for (; t + kTogether <= run.tokens; t += kTogether) {
      add_float_products<V, Value, kTogether>(column, x + t * stride, stride, end - begin,
                                              sums + t);
    }
    for (; t < run.tokens; ++t) {
      add_float_products<V, Value, 1>(column, x + t * stride, stride, end - begin, sums + t);
    }
  }
}

template <typename V>
void multiply_columns(const PanelRun& run, UnpackedPanel& panel, int64_t begin, int64_t end) {
  switch (run.tile.weight->format->type) {
    case QuantType::kF32:
      return multiply_floats<V, F32>(run, begin, end);
    case QuantType::kF16:
      return multiply_floats<V, F16>(run, begin, end);
    case QuantType::kBF16:
      return multiply_floats<V, BF16>(run, begin, end);
    default:
      return multiply_groups<V>(run, panel, begin / kGroup, (end + kGroup - 1) / kGroup);
  }
}

// Columns whose activations, of so many tokens, stay in a near cache while several panels read
// them.
inline int64_t columns_together(int64_t tokens, int64_t cols) {
  constexpr int64_t kNearBytes = 128 * 1024;
  constexpr int64_t kStep = UnpackedPanel::kColumns;
  const int64_t fitting = kNearBytes / (tokens * 4) / kStep * kStep;
  return fitting < kStep ? kStep : smaller(fitting, cols);
}

template <typename V>
void multiply_run(const MatmulTile& tile, int64_t first_panel, int64_t panels, int64_t first_token,
                  int64_t tokens, Workspace& space) {
  const PanelLayout layout(*tile.weight);
  const int64_t cols = tile.weight->cols;
  const int64_t step = columns_together(tokens, cols);
  for (int64_t i = 0; i < panels; ++i) {
    std::memset(space.sums[i], 0, static_cast<size_t>(tokens) * sizeof(space.sums[i][0]));
  }
  for (int64_t col = 0; col < cols; col += step) {
    for (int64_t i = 0; i < panels; ++i) {
      const PanelRun run{tile, layout, first_panel + i, first_token, tokens, space.sums[i]};
      multiply_columns<V>(run, space.unpacked, col, smaller(cols, col + step));
    }
  }
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < panels * kPanelRows; ++i) {
      const int64_t row = first_panel * kPanelRows + i;
      if (row >= tile.row_end) break;
      store(tile, row, first_token + t, space.sums[i / kPanelRows][t][i % kPanelRows]);
    }
  }
}

template <typename V>
void multiply(const MatmulTile& tile, uint8_t* scratch) {
  auto& space = *reinterpret_cast<Workspace*>(scratch);
  const int64_t end = (tile.row_end + kPanelRows - 1) / kPanelRows;
  for (int64_t panel = tile.row_begin / kPanelRows; panel < end; panel += kMaxTilePanels) {
    for (int64_t token = 0; token < tile.tokens; token += kMaxRunTokens) {
      multiply_run<V>(tile, panel, smaller(kMaxTilePanels, end - panel), token,
                      smaller(kMaxRunTokens, tile.tokens - token), space);
    }
  }
}

}  // namespace
}  // namespace lola

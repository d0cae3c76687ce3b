// The loops of a matrix product that the vector instruction sets share, over a struct V with their
// operations on V::kLanes rows at once. Only the matmul_<isa>.cpp files include this.
//
// A thread takes kPanelRows rows at a time, keeps the weights of one group of columns in registers
// and multiplies them with one token after the other. Each (row, token) is summed group after group
// in float32, whatever the other tokens are: neither the split into tiles nor the batch changes a
// bit.
#pragma once

#include <bit>

#include "base/prefetch.h"
#include "kernels/matmul_floats.h"

namespace lola {
namespace {

// The weights of one group of V::kLanes rows.
template <typename V, typename Reader>
struct GroupWeights {
  static constexpr int kWords = Reader::kGroupSize / 4;

  typename V::Words q[kWords];
  typename V::Floats scale;
  typename V::Floats min;
};

template <typename V, typename Reader>
LOLA_INLINE void read_group(const Reader& reader, int g, GroupWeights<V, Reader>& weights) {
  reader.quants(g, weights.q);
  V::template prepare<Reader>(weights.q);
  weights.scale = reader.scale(g);
  if constexpr (Reader::kHasMin) weights.min = reader.min(g);
}

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

// Where the sums of some panels and tokens are kept between groups.
template <typename V>
struct SumsInMemory {
  const PanelRun& run;
  int64_t token;
  int row;

  typename V::Floats get(int panel, int t) const {
    return V::load_floats(run.sum(panel, token + t, row));
  }
  void set(int panel, int t, typename V::Floats sum) const {
    V::store_floats(sum, run.sum(panel, token + t, row));
  }
};

template <typename V>
struct SumInRegister {
  typename V::Floats sum;

  typename V::Floats get(int, int) const { return sum; }
  void set(int, int, typename V::Floats gained) { sum = gained; }
};

// sums += the products of one group of kLanes rows of each panel with kTokens tokens. half: which
// 16 of the activations, where the group has 16.
template <typename V, typename Reader, int kPanels, int kTokens, typename Sums>
LOLA_INLINE void add_products(const GroupWeights<V, Reader>* weights, const ActivationGroup* a,
                              int half, Sums& sums) {
  typename V::Words products[kPanels][kTokens];
  LOLA_UNROLL
  for (int t = 0; t < kTokens; ++t) {
    const auto begin = start<V, Reader>(a[t], half);
    for (int i = 0; i < kPanels; ++i) products[i][t] = begin;
  }
  V::template add_dots<Reader, kPanels, kTokens>(weights, a, half * 16, products);
  LOLA_UNROLL
  for (int t = 0; t < kTokens; ++t) {
    const auto scale = V::splat(a[t].scale), minus_magic = V::splat(a[t].minus_magic);
    const auto a_sum = V::splat(Reader::kGroupSize == kGroup ? a[t].sum : a[t].half_sum[half]);
    LOLA_UNROLL
    for (int i = 0; i < kPanels; ++i) {
      const auto value = V::multiply_add(V::as_float(products[i][t]), scale, minus_magic);
      auto sum = V::multiply_add(value, weights[i].scale, sums.get(i, t));
      if constexpr (Reader::kHasMin) sum = V::subtract_product(weights[i].min, a_sum, sum);
      sums.set(i, t, sum);
    }
  }
}

// Where group g of a block is among the activations.
struct GroupPlace {
  int64_t group;
  int half;
};

template <typename Reader>
LOLA_INLINE GroupPlace place_of(int g, int64_t first_group) {
  const int column = g * Reader::kGroupSize;
  return {first_group + column / kGroup, column % kGroup / 16};
}

// Some groups of a block for kLanes rows of each panel and all tokens of the run.
template <typename V, typename Reader, int kPanels>
LOLA_INLINE void multiply_block(const Reader* readers, const PanelRun& run, int64_t first_group,
                                int groups, int row) {
  constexpr int kSide = V::kSums / kPanels;  // tokens
  for (int g = 0; g < groups; ++g) {
    GroupWeights<V, Reader> weights[kPanels];
    LOLA_UNROLL
    for (int i = 0; i < kPanels; ++i) read_group<V>(readers[i], g, weights[i]);
    const GroupPlace place = place_of<Reader>(g, first_group);
    const ActivationGroup* a = run.activations(place.group);
    int64_t t = 0;
    for (; t + kSide <= run.tokens; t += kSide) {
      const SumsInMemory<V> sums{run, t, row};
      add_products<V, Reader, kPanels, kSide>(weights, a + t, place.half, sums);
    }
    for (; t < run.tokens; ++t) {
      const SumsInMemory<V> sums{run, t, row};
      add_products<V, Reader, kPanels, 1>(weights, a + t, place.half, sums);
    }
  }
}

// All groups of a block for kLanes rows and one token. The weights are read only once, and their
// unpacking counts: unrolled, its shifts are constants, and with the sum in a register nothing that
// several groups need is read twice.
template <typename V, typename Reader>
LOLA_INLINE void multiply_block_once(const Reader& reader, const PanelRun& run, int64_t first_group,
                                     int row) {
  SumInRegister<V> sum{V::load_floats(run.sum(0, 0, row))};
  LOLA_UNROLL
  for (int g = 0; g < Reader::kGroups; ++g) {
    GroupWeights<V, Reader> weights;
    read_group<V>(reader, g, weights);
    const GroupPlace place = place_of<Reader>(g, first_group);
    add_products<V, Reader, 1, 1>(&weights, run.activations(place.group), place.half, sum);
  }
  V::store_floats(sum.sum, run.sum(0, 0, row));
}

// Stands on a block of some rows of a panel.
template <typename Reader>
LOLA_INLINE Reader reader_at(const PanelRun& run, int64_t panel, int64_t block, int row) {
  const uint8_t* odd = run.panel(panel) + run.layout.odd_at(block);
  const uint8_t* words = run.panel(panel) + run.layout.words_at(block);
  return Reader{{{odd + row * run.layout.odd_bytes, words + row * 4}}};
}

// The groups of columns [begin, end) of a format with a reader of its own. The run is a copy, whose
// fields no store to a sum can change.
template <typename V, typename Reader, int kPanels>
LOLA_NOINLINE void multiply_blocks(const PanelRun run, int64_t begin, int64_t end) {
  constexpr int64_t kBlockGroups = Reader::kGroups * Reader::kGroupSize / kGroup;
  for (int64_t group = begin; group < end; group += kBlockGroups) {
    for (int row = 0; row < kPanelRows; row += V::kLanes) {
      Reader readers[kPanels];
      for (int i = 0; i < kPanels; ++i) {
        readers[i] = reader_at<Reader>(run, i, group / kBlockGroups, row);
      }
      multiply_block<V, Reader, kPanels>(readers, run, group, Reader::kGroups, row);
    }
  }
}

template <typename V, typename Reader>
LOLA_NOINLINE void multiply_blocks_once(const PanelRun run, int64_t begin, int64_t end) {
  constexpr int64_t kBlockGroups = Reader::kGroups * Reader::kGroupSize / kGroup;
  for (int64_t group = begin; group < end; group += kBlockGroups) {
    const int64_t block = group / kBlockGroups;
    // Memory is read fastest in order, and formats with groups of 16 are not unpacked in order.
    if constexpr (Reader::kGroupSize == 16) {
      const uint8_t* words = run.panel(0) + run.layout.words_at(block);
      for (int64_t i = 0; i < run.layout.words; ++i) prefetch(words + i * kLineBytes);
    }
    for (int row = 0; row < kPanelRows; row += V::kLanes) {
      multiply_block_once<V>(reader_at<Reader>(run, 0, block, row), run, group, row);
    }
  }
}

template <typename V, typename Reader>
void multiply_packed(const PanelRun& run, int64_t begin, int64_t end) {
  if constexpr (V::kPanels == kTwoPanels) {
    if (run.panels == kTwoPanels && run.tokens > 1) {
      return multiply_blocks<V, Reader, kTwoPanels>(run, begin, end);
    }
  }
  for (int64_t i = 0; i < run.panels; ++i) {
    run.tokens == 1 ? multiply_blocks_once<V, Reader>(run.only(i), begin, end)
                    : multiply_blocks<V, Reader, 1>(run.only(i), begin, end);
  }
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
  using Reader = ReadUnpacked<V, kSize, kMin>;
  constexpr int64_t kStep = UnpackedPanel::kColumns / kGroup;
  for (int64_t i = 0; i < run.panels; ++i) {
    for (int64_t group = begin; group < end; group += kStep) {
      const int64_t cols = smaller(kStep, end - group) * kGroup;
      unpack(*run.tile.weight, run.first_panel + i, group * kGroup, cols, panel);
      for (int row = 0; row < kPanelRows; row += V::kLanes) {
        const Reader reader{{}, &panel, row};
        multiply_block<V, Reader, 1>(&reader, run.only(i), group, static_cast<int>(cols / kSize),
                                     row);
      }
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
    for (int64_t i = 0; i < panels; i += kTwoPanels) {
      const PanelRun run{tile,        layout, first_panel + i, smaller(kTwoPanels, panels - i),
                         first_token, tokens, space.sums + i};
      multiply_columns<V>(run, space.unpacked, col, smaller(cols, col + step));
    }
  }
  for (int64_t i = 0; i < panels; ++i) {
    const int64_t row = (first_panel + i) * kPanelRows;
    const int64_t rows = smaller(kPanelRows, tile.row_end - row);
    for (int64_t t = 0; t < tokens; ++t) {
      store(tile, row, rows, first_token + t, space.sums[i][t]);
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

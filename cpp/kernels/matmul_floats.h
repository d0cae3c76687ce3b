// Products with weights in F32, F16 and BF16, and what matmul_tile.h shares with them. Only
// matmul_tile.h includes this.
#pragma once

#include "kernels/matmul_read.h"

namespace lola {
namespace {

constexpr int kTwoPanels = 2;  // at most so many panels share what is read of the activations

struct Workspace {
  UnpackedPanel unpacked;
  alignas(64) float sums[kMaxTilePanels][kMaxRunTokens][kPanelRows];
};

// The rows of one or two panels and the tokens that they are multiplied with.
struct PanelRun {
  const MatmulTile& tile;
  const PanelLayout& layout;
  int64_t first_panel;
  int64_t panels;
  int64_t first_token;
  int64_t tokens;
  float (*sums)[kMaxRunTokens][kPanelRows];  // [panels]

  PanelRun only(int64_t i) const {
    return {tile, layout, first_panel + i, 1, first_token, tokens, sums + i};
  }
  const uint8_t* panel(int64_t i) const {
    return tile.weight->data + (first_panel + i) * layout.bytes;
  }
  float* sum(int64_t i, int64_t token, int row) const { return sums[i][token] + row; }
  const ActivationGroup* activations(int64_t group) const {
    return tile.groups + group * tile.tokens + first_token;
  }
};

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

// Sums += the products of columns [begin, end) of the panels with kTokens tokens, a column after
// the other. The rows of a column lie side by side in the panel: a float is one block.
template <typename V, typename Value, int kPanels, int kTokens>
LOLA_INLINE void add_float_products(const PanelRun& run, int64_t begin, int64_t end,
                                    int64_t token) {
  constexpr int kParts = kPanelRows / V::kLanes;
  constexpr int64_t kColumnBytes = kPanelRows * Value::kBytes;
  const float* x = run.tile.x + (run.first_token + token) * run.tile.x_stride;
  const uint8_t* panels[kPanels];
  typename V::Floats sums[kPanels * kParts][kTokens];
  const auto each_sum = [&](const auto& visit) {
    LOLA_UNROLL
    for (int i = 0; i < kPanels * kParts; ++i) {
      LOLA_UNROLL
      for (int t = 0; t < kTokens; ++t) {
        visit(sums[i][t], run.sum(i / kParts, token + t, i % kParts * V::kLanes));
      }
    }
  };
  each_sum([](auto& sum, const float* at) { sum = V::load_floats(at); });
  for (int i = 0; i < kPanels; ++i) panels[i] = run.panel(i);
  for (int64_t col = begin; col < end; ++col) {
    LOLA_UNROLL
    for (int i = 0; i < kPanels * kParts; ++i) {
      const uint8_t* rows = panels[i / kParts] + i % kParts * V::kLanes * Value::kBytes;
      const auto w = V::load_value(rows + col * kColumnBytes, Value{});
      LOLA_UNROLL
      for (int t = 0; t < kTokens; ++t) {
        sums[i][t] = V::multiply_add(w, V::splat(x[t * run.tile.x_stride + col]), sums[i][t]);
      }
    }
  }
  each_sum([](auto& sum, float* at) { V::store_floats(sum, at); });
}

template <typename V, typename Value, int kPanels>
LOLA_NOINLINE void multiply_floats(const PanelRun& run, int64_t begin, int64_t end) {
  constexpr int kSide = V::kLanes * 4 / kPanelRows;  // tokens; as many sums as registers hold
  int64_t t = 0;
  for (; t + kSide <= run.tokens; t += kSide) {
    add_float_products<V, Value, kPanels, kSide>(run, begin, end, t);
  }
  for (; t < run.tokens; ++t) add_float_products<V, Value, kPanels, 1>(run, begin, end, t);
}

template <typename V, typename Value>
void multiply_floats(const PanelRun& run, int64_t begin, int64_t end) {
  run.panels == kTwoPanels ? multiply_floats<V, Value, kTwoPanels>(run, begin, end)
                           : multiply_floats<V, Value, 1>(run, begin, end);
}

}  // namespace
}  // namespace lola

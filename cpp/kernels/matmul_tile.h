// The loops that every instruction set shares, over a struct Ops with its innermost steps.
// Only the matmul_<isa>.cpp files include this. Everything here has internal linkage, because each
// of them compiles it for another instruction set and the linker must not keep one copy for all;
// for the same reason nothing of the standard library's templates is used.
//
// Few tokens: each row is read once, chunk by chunk, and multiplied with every token at once, at
// the speed of memory. Many tokens: the rows of a panel are decoded once per chunk into a layout
// with a row per SIMD lane, and the panel is multiplied with all tokens from the nearest cache.
// Each (row, token) is summed on its own, chunk after chunk, so that neither the split into tiles
// nor the other tokens of the same path change a bit of it; between the two paths the order of the
// float32 sums differs, and the integer part is equal.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/matmul_kernels.h"

#if defined(__clang__)
#define LOLA_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define LOLA_UNROLL _Pragma("GCC unroll 32")
#else
#define LOLA_UNROLL
#endif

// For steps whose values should stay in registers from one to the next.
#if defined(_MSC_VER)
#define LOLA_INLINE __forceinline
#else
#define LOLA_INLINE __attribute__((always_inline)) inline
#endif

namespace lola {
namespace {

// 256 weights of one row in integer form: scale * q - min per group of the reader.
struct alignas(64) Chunk {
  int8_t q[kChunk];
  float scale[kChunk / 16];
  float min[kChunk / 16];
};

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Reads any quantized format through the table.
template <int kGroupSize, bool kMin>
struct TableReader {
  static constexpr int kGroup = kGroupSize;
  static constexpr bool kHasMin = kMin;
  static constexpr int kMaxQ = 0;  // q may be any int8

  const QuantFormat* format;

  void load(const uint8_t* blocks, Chunk& chunk) const {
    format->unpack(blocks, kChunk / format->block_size, chunk.q, chunk.scale, chunk.min);
  }
};

// Calls body with the table reader that fits the format.
template <typename Body>
void with_table_reader(const QuantFormat& format, const Body& body) {
  if (format.group_size == 16) {
    format.has_min ? body(TableReader<16, true>{&format}) : body(TableReader<16, false>{&format});
  } else {
    format.has_min ? body(TableReader<32, true>{&format}) : body(TableReader<32, false>{&format});
  }
}

// A chunk at the end of a row may lack blocks; blocks of zero bytes, which all formats read as
// finite numbers, stand for them, and the activations there are zero.
template <typename Reader>
void load_partial_chunk(const Reader& reader, const uint8_t* blocks, int64_t bytes, Chunk& chunk) {
  uint8_t padded[kChunk * 2] = {};
  std::memcpy(padded, blocks, static_cast<size_t>(bytes));
  reader.load(padded, chunk);
}

inline int64_t chunk_bytes(const QuantFormat& format) {
  return kChunk / format.block_size * format.block_bytes;
}

inline void store(const MatmulTile& tile, int64_t row, int64_t token, float sum) {
  if (tile.bias) sum += tile.bias[row];
  float& out = tile.out[token * tile.out_stride + row];
  out = tile.accumulate ? out + sum : sum;
}

template <typename Ops, int kTokens, typename Reader>
void quantized_rows(const MatmulTile& tile, int64_t first_token, const Reader& reader) {
  const int64_t row_bytes = tile.weight->row_bytes();
  const int64_t step = chunk_bytes(*tile.weight->format);
  for (int64_t row = tile.row_begin; row < tile.row_end; ++row) {
    const uint8_t* bytes = tile.weight->data + row * row_bytes;
    const uint8_t* end = bytes + row_bytes;
    const ActivationBlock* blocks = tile.blocks + first_token;
    typename Ops::RowSum sums[kTokens];
    for (; end - bytes >= step; bytes += step, blocks += tile.tokens) {
      Chunk chunk;
      reader.load(bytes, chunk);
      LOLA_UNROLL
      for (int t = 0; t < kTokens; ++t) Ops::template dot<Reader>(chunk, blocks[t], sums[t]);
    }
    if (bytes < end) {
      Chunk chunk;
      load_partial_chunk(reader, bytes, end - bytes, chunk);
      for (int t = 0; t < kTokens; ++t) Ops::template dot<Reader>(chunk, blocks[t], sums[t]);
    }
    for (int t = 0; t < kTokens; ++t) store(tile, row, first_token + t, Ops::total(sums[t]));
  }
}

template <typename Ops, typename Reader>
void quantized_few(const MatmulTile& tile, const Reader& reader) {
  int64_t token = 0;
  for (; token + 4 <= tile.tokens; token += 4) quantized_rows<Ops, 4>(tile, token, reader);
  for (; token + 2 <= tile.tokens; token += 2) quantized_rows<Ops, 2>(tile, token, reader);
  if (token < tile.tokens) quantized_rows<Ops, 1>(tile, token, reader);
}

// What a thread keeps while it multiplies panels with many tokens.
template <typename Ops>
struct Workspace {
  typename Ops::Panel panel;
  union {
    Chunk chunks[Ops::kPanelRows];
    alignas(64) float floats[Ops::kPanelRows * kChunk];
  };
  alignas(64) float sums[kMaxTileRows * kMaxTileTokens];  // [panels, tokens, kPanelRows]
};

// Calls multiply(first_row, first_col, sums [tokens, kPanelRows]) for each panel and chunk, and
// then writes the sums out.
template <typename Ops, typename Multiply>
void sum_panels(const MatmulTile& tile, int64_t first_token, int64_t tokens, float* sums,
                const Multiply& multiply) {
  constexpr int64_t kRows = Ops::kPanelRows;
  const int64_t panels = (tile.row_end - tile.row_begin + kRows - 1) / kRows;
  std::memset(sums, 0, static_cast<size_t>(panels * kRows * tokens) * sizeof(float));
  for (int64_t col = 0; col < tile.weight->cols; col += kChunk) {
    for (int64_t panel = 0; panel < panels; ++panel) {
      multiply(tile.row_begin + panel * kRows, col, sums + panel * kRows * tokens);
    }
  }
  for (int64_t token = 0; token < tokens; ++token) {
    for (int64_t row = tile.row_begin; row < tile.row_end; ++row) {
      const int64_t panel = (row - tile.row_begin) / kRows;
      const int64_t lane = (row - tile.row_begin) % kRows;
      store(tile, row, first_token + token, sums[(panel * tokens + token) * kRows + lane]);
    }
  }
}

// Splits the tokens evenly into runs of at most kMaxTileTokens.
template <typename Body>
void for_token_runs(int64_t tokens, const Body& body) {
  const int64_t runs = (tokens + kMaxTileTokens - 1) / kMaxTileTokens;
  const int64_t length = (tokens + runs - 1) / runs;
  for (int64_t first = 0; first < tokens; first += length) {
    body(first, smaller(length, tokens - first));
  }
}

template <typename Ops, typename Reader>
void quantized_panels(const MatmulTile& tile, const Reader& reader, Workspace<Ops>& space) {
  const int64_t row_bytes = tile.weight->row_bytes();
  const int64_t step = chunk_bytes(*tile.weight->format);
  for_token_runs(tile.tokens, [&](int64_t first_token, int64_t tokens) {
    sum_panels<Ops>(tile, first_token, tokens, space.sums,
                    [&](int64_t first_row, int64_t first_col, float* sums) {
                      const int64_t first_byte = first_col / kChunk * step;
                      const int64_t bytes = smaller(step, row_bytes - first_byte);
                      for (int64_t lane = 0; lane < Ops::kPanelRows; ++lane) {
                        const int64_t row =
                            smaller(first_row + lane, tile.row_end - 1);  // spare lanes repeat one
                        const uint8_t* blocks = tile.weight->data + row * row_bytes + first_byte;
                        if (bytes == step) {
                          reader.load(blocks, space.chunks[lane]);
                        } else {
                          load_partial_chunk(reader, blocks, bytes, space.chunks[lane]);
                        }
                      }
                      Ops::template fill_panel<Reader>(space.chunks, space.panel);
                      const ActivationBlock* blocks =
                          tile.blocks + first_col / kChunk * tile.tokens + first_token;
                      Ops::template multiply_panel<Reader>(space.panel, blocks, tokens, sums);
                    });
  });
}

template <typename Ops, typename Value>
void float_rows(const MatmulTile& tile) {
  const WeightMatrix& weight = *tile.weight;
  for (int64_t row = tile.row_begin; row < tile.row_end; ++row) {
    const uint8_t* values = weight.data + row * weight.row_bytes();
    for (int64_t token = 0; token < tile.tokens; ++token) {
      const float* x = tile.x + token * tile.x_stride;
      store(tile, row, token, Ops::template float_dot<Value>(values, x, weight.cols));
    }
  }
}

template <typename Ops, typename Value>
void float_panels(const MatmulTile& tile, Workspace<Ops>& space) {
  const WeightMatrix& weight = *tile.weight;
  for_token_runs(tile.tokens, [&](int64_t first_token, int64_t tokens) {
    sum_panels<Ops>(tile, first_token, tokens, space.sums,
                    [&](int64_t first_row, int64_t first_col, float* sums) {
                      const int64_t cols = smaller(kChunk, weight.cols - first_col);
                      for (int64_t lane = 0; lane < Ops::kPanelRows; ++lane) {
                        const int64_t row = smaller(first_row + lane, tile.row_end - 1);
                        const uint8_t* values =
                            weight.data + row * weight.row_bytes() + first_col * Value::kBytes;
                        Ops::template to_floats<Value>(values, cols, space.floats + lane * kChunk);
                      }
                      Ops::fill_float_panel(space.floats, cols, space.panel);
                      const float* x = tile.x + first_token * tile.x_stride + first_col;
                      Ops::multiply_float_panel(space.panel, x, tile.x_stride, cols, tokens, sums);
                    });
  });
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

template <typename Ops>
void multiply(const MatmulTile& tile, uint8_t* scratch) {
  if (tile.row_begin >= tile.row_end) return;
  auto& space = *reinterpret_cast<Workspace<Ops>*>(scratch);
  const bool few = tile.tokens <= kFewTokens;
  const QuantFormat& format = *tile.weight->format;
  switch (format.type) {
    case QuantType::kF32:
      return few ? float_rows<Ops, F32>(tile) : float_panels<Ops, F32>(tile, space);
    case QuantType::kF16:
      return few ? float_rows<Ops, F16>(tile) : float_panels<Ops, F16>(tile, space);
    case QuantType::kBF16:
      return few ? float_rows<Ops, BF16>(tile) : float_panels<Ops, BF16>(tile, space);
    default:
      Ops::with_reader(format, [&](const auto& reader) {
        few ? quantized_few<Ops>(tile, reader) : quantized_panels<Ops>(tile, reader, space);
      });
  }
}

template <typename Ops>
constexpr MatmulKernels matmul_kernels() {
  return {Ops::kPanelRows, sizeof(Workspace<Ops>), Ops::round_activations, multiply<Ops>};
}

}  // namespace
}  // namespace lola

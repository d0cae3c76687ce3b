// How weights lie in device memory.
//
// A piece is 32 consecutive weights of one row; 16 rows by 128 columns, 64 pieces, are a slab, what
// a warp multiplies at a time. The parts of a piece (codes, high bits, scales) lie in planes of
// their own, slab by slab, so that the lanes of a warp read neighbouring 16 bytes. Rows and columns
// are padded to whole slabs with zero weights.
//
// Floats lie row by row, for cuBLAS: F16 with the columns of a slab in the order of column_place(),
// in which 16 bytes of each of its four pieces are neighbours.
//
// Formats without a row in the table of weight_layout.cpp are stored in their integer form, 8-bit
// numbers and float32 scales: 12 bits a weight, exact.
#pragma once

#include <cstdint>

#include "quant/quant_table.h"

namespace lola {

enum class Encoding : int32_t {
  kQ4_0,
  kIQ4_NL,
  kMXFP4,
  kIQ4_XS,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kQ8_0,
  kInteger,  // any quantized format
  kF16,      // F16, and BF16 that fits; row by row
  kF32,      // row-major, as in the file
};

constexpr int64_t kPieceWeights = 32;
constexpr int64_t kSlabRows = 16;
constexpr int64_t kSlabPieces = 4;  // along a row
constexpr int64_t kSlabPlaces = kSlabRows * kSlabPieces;

// Where column i of a row of float16 lies: within 128 columns the chunks of 8 stand in the order
// 0, 4, 8, 12, 1, 5, and so on. Activations have the same order; products do not see it.
constexpr int column_place(int i) {
  constexpr int kPieces = kSlabPieces, kPiece = kPieceWeights, kColumns = kPieces * kPiece;
  constexpr int kChunk = 8;
  return i - i % kColumns + (i % kPiece / kChunk * kPieces + i % kColumns / kPiece) * kChunk +
         i % kChunk;
}

// Offsets of the planes from the start of a stored matrix, and its size; in bytes.
struct WeightLayout {
  Encoding encoding;
  int64_t row_tiles;  // of kSlabRows
  int64_t steps;      // slabs along a row
  int64_t blocks;     // of 256 weights along a row, where scales have two levels
  int64_t high;       // the fifth, or the fifth and sixth, bit of every code
  int64_t scales;     // of every piece
  int64_t supers;     // d and dmin of every 256 weights: float16 pairs
  int64_t bytes;
};

WeightLayout weight_layout(QuantType type, int64_t rows, int64_t cols);

// Stores the rows [begin, end), begin a multiple of kSlabRows, in `stored`, which stands for the
// whole matrix and was zero. `data` is the whole matrix in its file format. UnsupportedError where
// a BF16 value is too large for float16.
void store_weights(const QuantFormat& format, const WeightLayout& layout, const uint8_t* data,
                   int64_t rows, int64_t cols, int64_t begin, int64_t end, uint8_t* stored);

}  // namespace lola

// How weights lie in memory for products: in panels of 16 rows, so that one vector register holds
// the same four bytes of each row and no row has to be summed across lanes.
//
// A block of B bytes is B / 4 words and, where B is no multiple of 4, up to three odd bytes. A
// panel goes through the columns in runs of four blocks, in lines of 64 bytes:
//   odd    [4 blocks, 16 rows, odd bytes], which are as many lines as there are odd bytes
//   words  [4 blocks, words of a block, 16 rows, 4 bytes]; the last run may have fewer blocks
// The bytes are the file's, only in another order. Rows that fill up the last panel are zero.
#pragma once

#include <cstdint>

#include "quant/quant_table.h"

namespace lola {

inline constexpr int kPanelRows = 16;
inline constexpr int kLineBytes = 64;  // one word of every row of a panel

// A weight, row r of it giving output r.
struct WeightMatrix {
  const QuantFormat* format = nullptr;
  const uint8_t* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  bool panels = false;  // laid out as above; else row by row, as in the file

  int64_t row_blocks() const { return cols / format->block_size; }
  int64_t row_bytes() const { return row_blocks() * format->block_bytes; }
};

// Where the parts of a panel lie.
struct PanelLayout {
  explicit PanelLayout(const WeightMatrix& weight);

  int64_t odd_bytes;   // of a block
  int64_t odd_offset;  // in a block of the file
  int64_t words;       // of a block
  int64_t bytes;       // of a panel

  int64_t words_offset() const { return odd_offset == 0 ? odd_bytes : 0; }  // likewise

  // Offsets in a panel of what belongs to a block of its first row.
  int64_t odd_at(int64_t block) const {
    return block / kRunBlocks * run_bytes() + block % kRunBlocks * kPanelRows * odd_bytes;
  }
  int64_t words_at(int64_t block) const {
    return block / kRunBlocks * run_bytes() + (odd_bytes + block % kRunBlocks * words) * kLineBytes;
  }

 private:
  static constexpr int64_t kRunBlocks = 4;

  int64_t run_bytes() const { return (odd_bytes + kRunBlocks * words) * kLineBytes; }
};

// Bytes of all panels; row-wise weights of the same shape take at most a few lines less.
int64_t panel_bytes(const WeightMatrix& weight);

// Writes panel `index` of the row-wise `weight` to `out`, where all panels begin. out is aligned to
// kLineBytes.
void write_panel(const WeightMatrix& weight, int64_t index, uint8_t* out);

// blocks [count * block_bytes] = `count` blocks of a row of `weight` from `first` on, as in the
// file.
void read_blocks(const WeightMatrix& weight, int64_t row, int64_t first, int64_t count,
                 uint8_t* blocks);

// out [cols] = row of the weight, decoded. For embeddings.
void decode_row(const WeightMatrix& weight, int64_t row, float* out);

}  // namespace lola

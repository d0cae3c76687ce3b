#include "kernels/weight_layout.h"

#include <algorithm>
#include <cstring>

namespace lola {
namespace {

constexpr int64_t kWordBytes = 4;

// Words must not straddle the numbers that kernels take from them: d stands behind them in these.
bool odd_bytes_stand_last(QuantType type) {
  return type == QuantType::kQ3_K || type == QuantType::kQ6_K;
}

// copy(place in the panel, place in the block, bytes) for the parts of one block of a panel's row.
template <typename Byte, typename PanelByte, typename Copy>
void each_part(const PanelLayout& layout, Byte* block, PanelByte* panel, int64_t index,
               int64_t lane, const Copy& copy) {
  copy(panel + layout.odd_at(index) + lane * layout.odd_bytes, block + layout.odd_offset,
       static_cast<size_t>(layout.odd_bytes));
  PanelByte* word = panel + layout.words_at(index) + lane * kWordBytes;
  for (int64_t i = 0; i < layout.words; ++i) {
    copy(word + i * kLineBytes, block + layout.words_offset() + i * kWordBytes, kWordBytes);
  }
}

}  // namespace

PanelLayout::PanelLayout(const WeightMatrix& weight)
    : odd_bytes(weight.format->block_bytes % kWordBytes),
      odd_offset(odd_bytes_stand_last(weight.format->type) ? weight.format->block_bytes - odd_bytes
                                                           : 0),
      words(weight.format->block_bytes / kWordBytes) {
  const int64_t blocks = weight.row_blocks();
  const int64_t rest = blocks % kRunBlocks;
  bytes = blocks / kRunBlocks * run_bytes();
  if (rest != 0) bytes += (odd_bytes + rest * words) * kLineBytes;
}

int64_t panel_bytes(const WeightMatrix& weight) {
  return (weight.rows + kPanelRows - 1) / kPanelRows * PanelLayout(weight).bytes;
}

void write_panel(const WeightMatrix& weight, int64_t index, uint8_t* out) {
  const PanelLayout layout(weight);
  uint8_t* panel = out + index * layout.bytes;
  const int64_t first_row = index * kPanelRows;
  const int64_t rows = std::min<int64_t>(kPanelRows, weight.rows - first_row);
  if (rows < kPanelRows) std::memset(panel, 0, static_cast<size_t>(layout.bytes));
  for (int64_t row = 0; row < rows; ++row) {
    const uint8_t* block = weight.data + (first_row + row) * weight.row_bytes();
    for (int64_t i = 0; i < weight.row_blocks(); ++i, block += weight.format->block_bytes) {
      each_part(layout, block, panel, i, row, [](uint8_t* to, const uint8_t* from, size_t bytes) {
        std::memcpy(to, from, bytes);
      });
    }
  }
}

void read_blocks(const WeightMatrix& weight, int64_t row, int64_t first, int64_t count,
                 uint8_t* blocks) {
  const int64_t block_bytes = weight.format->block_bytes;
  if (!weight.panels) {
    std::memcpy(blocks, weight.data + row * weight.row_bytes() + first * block_bytes,
                static_cast<size_t>(count * block_bytes));
    return;
  }
  const PanelLayout layout(weight);
  const uint8_t* panel = weight.data + row / kPanelRows * layout.bytes;
  for (int64_t i = first; i < first + count; ++i, blocks += block_bytes) {
    each_part(layout, blocks, panel, i, row % kPanelRows,
              [](const uint8_t* from, uint8_t* to, size_t bytes) { std::memcpy(to, from, bytes); });
  }
}

void decode_row(const WeightMatrix& weight, int64_t row, float* out) {
  constexpr int64_t kColumns = 256;  // at a time
  uint8_t blocks[kColumns * sizeof(float)];
  const int64_t run = kColumns / weight.format->block_size;
  for (int64_t first = 0; first < weight.row_blocks(); first += run) {
    const int64_t count = std::min(run, weight.row_blocks() - first);
    read_blocks(weight, row, first, count, blocks);
    weight.format->decode(blocks, count, out + first * weight.format->block_size);
  }
}

}  // namespace lola

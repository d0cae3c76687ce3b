#include "backend/cuda/weight_layout.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "base/half.h"
#include "quant/iq4_xs.h"
#include "quant/mxfp4.h"
#include "quant/q4_0.h"
#include "quant/q5_k.h"
#include "quant/q6_k.h"
#include "quant/q8_0.h"

namespace lola {
namespace {

constexpr int64_t kPlaneAlignment = 256;
constexpr int kPiece = static_cast<int>(kPieceWeights);

// One piece, before it is packed.
struct PieceCodes {
  uint8_t code[kPiece];  // 4, 5, 6 or 8 bits
  uint8_t scale[16];     // as many bytes as the encoding's scale plane has
};

// Bytes that a piece takes in each plane.
struct PieceBytes {
  int64_t codes;
  int64_t high;
  int64_t scale;
  bool two_levels;  // d and dmin of every 256 weights stand in the plane of supers
};

PieceBytes piece_bytes(Encoding encoding) {
  switch (encoding) {
    case Encoding::kQ4_0:
    case Encoding::kIQ4_NL:
    case Encoding::kMXFP4:
      return {16, 0, 2, false};
    case Encoding::kIQ4_XS:
    case Encoding::kQ4_K:
      return {16, 0, 2, true};
    case Encoding::kQ5_K:
      return {16, 4, 2, true};
    case Encoding::kQ6_K:
      return {16, 8, 2, true};
    case Encoding::kQ8_0:
      return {32, 0, 2, false};
    case Encoding::kInteger:
      return {32, 0, 16, false};
    case Encoding::kF16:
      return {64, 0, 0, false};
    case Encoding::kF32:
      break;
  }
  return {128, 0, 0, false};
}

Encoding encoding_of(QuantType type) {
  switch (type) {
    case QuantType::kQ4_0:
      return Encoding::kQ4_0;
    case QuantType::kIQ4_NL:
      return Encoding::kIQ4_NL;
    case QuantType::kMXFP4:
      return Encoding::kMXFP4;
    case QuantType::kIQ4_XS:
      return Encoding::kIQ4_XS;
    case QuantType::kQ4_K:
      return Encoding::kQ4_K;
    case QuantType::kQ5_K:
      return Encoding::kQ5_K;
    case QuantType::kQ6_K:
      return Encoding::kQ6_K;
    case QuantType::kQ8_0:
      return Encoding::kQ8_0;
    case QuantType::kF16:
    case QuantType::kBF16:
      return Encoding::kF16;
    case QuantType::kF32:
      return Encoding::kF32;
    default:
      return Encoding::kInteger;
  }
}

int64_t up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

void put_u32(uint32_t value, uint8_t* out) { std::memcpy(out, &value, sizeof value); }

// Weights 2i and 2i + 1 of eight go to the nibbles i and i + 4: the halves of a register, once it
// is shifted and masked.
void pack_nibbles(const uint8_t* code, uint8_t* out) {
  for (int word = 0; word < 4; ++word) {
    uint32_t bits = 0;
    for (int i = 0; i < 8; ++i) {
      const uint32_t nibble = code[word * 8 + i] & 0x0Fu;
      bits |= nibble << 4 * (i % 2 * 4 + i / 2);
    }
    put_u32(bits, out + word * 4);
  }
}

// Bits above the fourth, `width` of them: of the weights 2i and 2i + 1 to the lower and upper half
// of a word, from bit width * i on.
void pack_high(const uint8_t* code, int width, uint8_t* out) {
  const int weights = 32 / width;  // of a word
  for (int word = 0; word < width; ++word) {
    uint32_t bits = 0;
    for (int i = 0; i < weights; ++i) {
      const uint32_t high = code[word * weights + i] >> 4;
      bits |= high << (i % 2 * 16 + i / 2 * width);
    }
    put_u32(bits, out + word * 4);
  }
}

void take_nibbles(const uint8_t* qs, uint8_t* code) {
  for (int i = 0; i < 16; ++i) {
    code[i] = qs[i] & 0x0F;
    code[16 + i] = qs[i] >> 4;
  }
}

// Each reads one block of the file into its pieces and, where scales have two levels, returns the
// bits of d (low) and dmin (high).

uint32_t read_q4_0(const uint8_t* block, PieceCodes* out) {
  std::memcpy(out->scale, block, 2);
  take_nibbles(block + 2, out->code);
  return 0;
}

uint32_t read_mxfp4(const uint8_t* block, PieceCodes* out) {
  const uint16_t scale = f32_to_f16(half_of_e8m0(block[0]));
  std::memcpy(out->scale, &scale, 2);
  take_nibbles(block + 1, out->code);
  return 0;
}

uint32_t read_iq4_xs(const uint8_t* bytes, PieceCodes* out) {
  BlockIQ4_XS block;
  std::memcpy(&block, bytes, sizeof block);
  for (int group = 0; group < 8; ++group) {
    const int low = block.scales_l[group / 2] >> group % 2 * 4 & 0x0F;
    const int high = load_u16(block.scales_h) >> group * 2 & 3;
    out[group].scale[0] = static_cast<uint8_t>(low + high * 16 - 32);
    out[group].scale[1] = 0;
    take_nibbles(block.qs + group * 16, out[group].code);
  }
  return load_u16(block.d);
}

// The six-bit s and m of Q4_K and Q5_K, by the rule of unpack_scales_k.
void take_scales_k(const uint8_t* scales, PieceCodes* out) {
  for (int i = 0; i < 4; ++i) {
    out[i].scale[0] = scales[i] & 0x3F;
    out[i].scale[1] = scales[4 + i] & 0x3F;
    out[4 + i].scale[0] = static_cast<uint8_t>((scales[8 + i] & 0x0F) | (scales[i] >> 6) << 4);
    out[4 + i].scale[1] = static_cast<uint8_t>(scales[8 + i] >> 4 | (scales[4 + i] >> 6) << 4);
  }
}

template <typename Block>
uint32_t read_k(const uint8_t* bytes, PieceCodes* out) {
  Block block;
  std::memcpy(&block, bytes, sizeof block);
  int8_t q[Block::kWeights];
  float scale[Block::kWeights / Block::kGroup], min[Block::kWeights / Block::kGroup];
  unpack(block, q, scale, min);
  for (int group = 0; group < 8; ++group) std::memcpy(out[group].code, q + group * kPiece, kPiece);
  take_scales_k(block.scales, out);
  return load_u16(block.d) | static_cast<uint32_t>(load_u16(block.dmin)) << 16;
}

uint32_t read_q6_k(const uint8_t* bytes, PieceCodes* out) {
  BlockQ6_K block;
  std::memcpy(&block, bytes, sizeof block);
  int8_t q[BlockQ6_K::kWeights];
  float scale[BlockQ6_K::kWeights / BlockQ6_K::kGroup];
  unpack(block, q, scale);
  for (int group = 0; group < 8; ++group) {
    for (int i = 0; i < kPiece; ++i) {
      out[group].code[i] = static_cast<uint8_t>(q[group * kPiece + i] + 32);
    }
    std::memcpy(out[group].scale, block.scales + group * 2, 2);
  }
  return load_u16(block.d);
}

uint32_t read_q8_0(const uint8_t* block, PieceCodes* out) {
  std::memcpy(out->scale, block, 2);
  std::memcpy(out->code, block + 2, kPiece);
  return 0;
}

using ReadBlock = uint32_t (*)(const uint8_t* block, PieceCodes* out);

// Null for the encodings that are not read block by block.
ReadBlock reader_of(Encoding encoding) {
  switch (encoding) {
    case Encoding::kQ4_0:
    case Encoding::kIQ4_NL:
      return read_q4_0;  // the same fields
    case Encoding::kMXFP4:
      return read_mxfp4;
    case Encoding::kIQ4_XS:
      return read_iq4_xs;
    case Encoding::kQ4_K:
      return read_k<BlockQ4_K>;
    case Encoding::kQ5_K:
      return read_k<BlockQ5_K>;
    case Encoding::kQ6_K:
      return read_q6_k;
    case Encoding::kQ8_0:
      return read_q8_0;
    default:
      return nullptr;
  }
}

class Store {
 public:
  Store(const QuantFormat& format, const WeightLayout& layout, int64_t cols, uint8_t* stored)
      : format_(format),
        layout_(layout),
        bytes_(piece_bytes(layout.encoding)),
        cols_(cols),
        stored_(stored) {}

  void row(const uint8_t* data, int64_t row) {
    if (const ReadBlock read = reader_of(layout_.encoding)) {
      for (int64_t block = 0; block < cols_ / format_.block_size; ++block) {
        put_block(read, data + block * format_.block_bytes, row, block);
      }
    } else if (layout_.encoding == Encoding::kF16) {
      put_halves(data, row);
    } else {
      put_integers(data, row);
    }
  }

 private:
  int64_t slab(int64_t row, int64_t piece) const {
    return row / kSlabRows * layout_.steps + piece / kSlabPieces;
  }
  static int64_t place(int64_t row, int64_t piece) {
    return row % kSlabRows * kSlabPieces + piece % kSlabPieces;
  }

  // Of eight weights of 8 bits 0, 4, 1, 5 are one word, 2, 6, 3, 7 the other: what masking a word
  // of nibbles gives too, once with and once without a shift.
  void put_bytes(int64_t row, int64_t piece, const uint8_t* codes) {
    uint8_t ordered[kPiece];
    for (int i = 0; i < kPiece; ++i) ordered[i / 8 * 8 + i % 4 * 2 + i / 4 % 2] = codes[i];
    put_codes(row, piece, ordered);
  }

  // Codes are cut into vectors of 16 bytes, each in a sub-plane of the slab.
  void put_codes(int64_t row, int64_t piece, const uint8_t* codes) {
    const int64_t vectors = bytes_.codes / 16;
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t at = (slab(row, piece) * vectors + v) * kSlabPlaces + place(row, piece);
      std::memcpy(stored_ + at * 16, codes + v * 16, 16);
    }
  }

  uint8_t* plane(int64_t offset, int64_t bytes, int64_t row, int64_t piece) {
    return stored_ + offset + (slab(row, piece) * kSlabPlaces + place(row, piece)) * bytes;
  }

  void put_block(ReadBlock read, const uint8_t* data, int64_t row, int64_t block) {
    PieceCodes codes[8];
    const uint32_t super = read(data, codes);
    const int64_t pieces = format_.block_size / kPieceWeights;
    for (int64_t i = 0; i < pieces; ++i) put_piece(codes[i], row, block * pieces + i);
    if (bytes_.two_levels) {
      const int64_t at = (row / kSlabRows * layout_.blocks + block) * kSlabRows + row % kSlabRows;
      put_u32(super, stored_ + layout_.supers + at * 4);
    }
  }

  void put_piece(const PieceCodes& codes, int64_t row, int64_t piece) {
    if (bytes_.codes == 16) {
      uint8_t packed[16];
      pack_nibbles(codes.code, packed);
      put_codes(row, piece, packed);
    } else {
      put_bytes(row, piece, codes.code);
    }
    if (bytes_.high > 0) {
      pack_high(codes.code, static_cast<int>(bytes_.high / 4),
                plane(layout_.high, bytes_.high, row, piece));
    }
    std::memcpy(plane(layout_.scales, 2, row, piece), codes.scale, 2);
  }

  void put_halves(const uint8_t* data, int64_t row) {
    uint8_t* out = stored_ + row * layout_.steps * kSlabPieces * kPieceWeights * 2;
    for (int i = 0; i < cols_; ++i) {
      const uint16_t half = half_bits(load_u16(data + 2 * i));
      std::memcpy(out + 2 * column_place(i), &half, sizeof half);
    }
  }

  uint16_t half_bits(uint16_t bits) const {
    if (format_.type == QuantType::kF16) return bits;
    const float value = bf16_to_f32(bits);
    const uint16_t half = f32_to_f16(value);
    if (std::isfinite(value) && (half & 0x7FFF) == 0x7C00) {
      throw UnsupportedError(message("a BF16 weight of ", value,
                                     ": wanted at most 65504, products on a GPU are of float16"));
    }
    return half;
  }

  void put_integers(const uint8_t* data, int64_t row) {
    const int64_t groups = cols_ / format_.group_size;
    std::vector<int8_t> q(static_cast<size_t>(cols_));
    std::vector<float> scale(static_cast<size_t>(groups)), min(static_cast<size_t>(groups));
    format_.unpack(data, cols_ / format_.block_size, q.data(), scale.data(), min.data());
    for (int64_t piece = 0; piece < cols_ / kPieceWeights; ++piece) {
      const int64_t begin = piece * kPieceWeights;
      put_bytes(row, piece, reinterpret_cast<const uint8_t*>(q.data() + begin));
      const auto first = static_cast<size_t>(begin / format_.group_size);
      const auto second = static_cast<size_t>((begin + kPieceWeights / 2) / format_.group_size);
      const float factors[4] = {scale[first], scale[second], min[first], min[second]};
      std::memcpy(plane(layout_.scales, sizeof factors, row, piece), factors, sizeof factors);
    }
  }

  const QuantFormat& format_;
  const WeightLayout& layout_;
  PieceBytes bytes_;
  int64_t cols_;
  uint8_t* stored_;
};

}  // namespace

WeightLayout weight_layout(QuantType type, int64_t rows, int64_t cols) {
  WeightLayout layout{};
  layout.encoding = encoding_of(type);
  if (layout.encoding == Encoding::kF32) {
    layout.bytes = rows * cols * 4;
    return layout;
  }
  const PieceBytes bytes = piece_bytes(layout.encoding);
  layout.row_tiles = up(rows, kSlabRows) / kSlabRows;
  layout.steps = up(cols, kPieceWeights * kSlabPieces) / (kPieceWeights * kSlabPieces);
  const int64_t pieces = layout.row_tiles * layout.steps * kSlabPlaces;
  layout.high = up(pieces * bytes.codes, kPlaneAlignment);
  layout.scales = layout.high + up(pieces * bytes.high, kPlaneAlignment);
  layout.supers = layout.scales + up(pieces * bytes.scale, kPlaneAlignment);
  layout.blocks = bytes.two_levels ? cols / 256 : 0;
  layout.bytes = layout.supers + layout.row_tiles * layout.blocks * kSlabRows * 4;
  return layout;
}

void store_weights(const QuantFormat& format, const WeightLayout& layout, const uint8_t* data,
                   int64_t rows, int64_t cols, int64_t begin, int64_t end, uint8_t* stored) {
  const int64_t row_bytes = cols / format.block_size * format.block_bytes;
  if (layout.encoding == Encoding::kF32) {
    std::memcpy(stored + begin * row_bytes, data + begin * row_bytes,
                static_cast<size_t>((std::min(end, rows) - begin) * row_bytes));
    return;
  }
  Store store(format, layout, cols, stored);
  for (int64_t row = begin; row < std::min(end, rows); ++row)
    store.row(data + row * row_bytes, row);
}

}  // namespace lola

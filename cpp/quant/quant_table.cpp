#include "quant/quant_table.h"

#include "base/error.h"
#include "base/text.h"
#include "quant/encode/encode_blocks.h"
#include "quant/encode/encode_super_blocks.h"
#include "quant/iq1_m.h"
#include "quant/iq1_s.h"
#include "quant/iq2_s.h"
#include "quant/iq2_xs.h"
#include "quant/iq2_xxs.h"
#include "quant/iq3_s.h"
#include "quant/iq3_xxs.h"
#include "quant/iq4_nl.h"
#include "quant/iq4_xs.h"
#include "quant/mxfp4.h"
#include "quant/nvfp4.h"
#include "quant/plain.h"
#include "quant/q2_k.h"
#include "quant/q3_k.h"
#include "quant/q4_0.h"
#include "quant/q4_1.h"
#include "quant/q4_k.h"
#include "quant/q5_0.h"
#include "quant/q5_1.h"
#include "quant/q5_k.h"
#include "quant/q6_k.h"
#include "quant/q8_0.h"
#include "quant/tq1_0.h"
#include "quant/tq2_0.h"

namespace lola {
namespace {

using EncodeBlocks = decltype(QuantFormat::encode);

template <typename Block>
constexpr QuantFormat block_format(QuantType type, const char* name,
                                   EncodeBlocks encode = nullptr) {
  return {type,          name,           Block::kWeights,      static_cast<int32_t>(sizeof(Block)),
          Block::kGroup, Block::kHasMin, decode_blocks<Block>, unpack_blocks<Block>,
          encode};
}

template <typename Block>
constexpr EncodeBlocks encoder() {
  if constexpr (Block::kWeights > 32)
    return encode_each<Block, encode_super_block<Block>>;
  else if constexpr (Block::kHasMin)
    return encode_each<Block, encode_block_with_min<Block>>;
  else
    return encode_each<Block, encode_block<Block>>;
}

constexpr QuantFormat kFormats[] = {
    {QuantType::kF32, "F32", 1, 4, 0, false, decode_f32, nullptr, encode_f32},
    {QuantType::kF16, "F16", 1, 2, 0, false, decode_f16, nullptr, encode_f16},
    block_format<BlockQ4_0>(QuantType::kQ4_0, "Q4_0", encoder<BlockQ4_0>()),
    block_format<BlockQ4_1>(QuantType::kQ4_1, "Q4_1", encoder<BlockQ4_1>()),
    block_format<BlockQ5_0>(QuantType::kQ5_0, "Q5_0", encoder<BlockQ5_0>()),
    block_format<BlockQ5_1>(QuantType::kQ5_1, "Q5_1", encoder<BlockQ5_1>()),
    block_format<BlockQ8_0>(QuantType::kQ8_0, "Q8_0", encoder<BlockQ8_0>()),
    block_format<BlockQ2_K>(QuantType::kQ2_K, "Q2_K", encoder<BlockQ2_K>()),
    block_format<BlockQ3_K>(QuantType::kQ3_K, "Q3_K", encoder<BlockQ3_K>()),
    block_format<BlockQ4_K>(QuantType::kQ4_K, "Q4_K", encoder<BlockQ4_K>()),
    block_format<BlockQ5_K>(QuantType::kQ5_K, "Q5_K", encoder<BlockQ5_K>()),
    block_format<BlockQ6_K>(QuantType::kQ6_K, "Q6_K", encoder<BlockQ6_K>()),
    block_format<BlockIQ2_XXS>(QuantType::kIQ2_XXS, "IQ2_XXS"),
    block_format<BlockIQ2_XS>(QuantType::kIQ2_XS, "IQ2_XS"),
    block_format<BlockIQ3_XXS>(QuantType::kIQ3_XXS, "IQ3_XXS"),
    block_format<BlockIQ1_S>(QuantType::kIQ1_S, "IQ1_S"),
    block_format<BlockIQ4_NL>(QuantType::kIQ4_NL, "IQ4_NL"),
    block_format<BlockIQ3_S>(QuantType::kIQ3_S, "IQ3_S"),
    block_format<BlockIQ2_S>(QuantType::kIQ2_S, "IQ2_S"),
    block_format<BlockIQ4_XS>(QuantType::kIQ4_XS, "IQ4_XS"),
    block_format<BlockIQ1_M>(QuantType::kIQ1_M, "IQ1_M"),
    {QuantType::kBF16, "BF16", 1, 2, 0, false, decode_bf16, nullptr, encode_bf16},
    block_format<BlockTQ1_0>(QuantType::kTQ1_0, "TQ1_0"),
    block_format<BlockTQ2_0>(QuantType::kTQ2_0, "TQ2_0"),
    block_format<BlockMXFP4>(QuantType::kMXFP4, "MXFP4"),
    block_format<BlockNVFP4>(QuantType::kNVFP4, "NVFP4"),
};

}  // namespace

std::span<const QuantFormat> quant_formats() { return kFormats; }

const QuantFormat* find_quant_format(uint32_t type) {
  for (const QuantFormat& format : kFormats) {
    if (static_cast<uint32_t>(format.type) == type) return &format;
  }
  return nullptr;
}

const QuantFormat& quant_format(QuantType type) {
  const uint32_t number = static_cast<uint32_t>(type);
  const QuantFormat* format = find_quant_format(number);
  if (format == nullptr) {
    throw UnsupportedError(
        message("tensor type ", number, " is not a weight format of this build"));
  }
  return *format;
}

const QuantFormat& quant_format(const std::string& name) {
  std::string names;
  for (const QuantFormat& format : kFormats) {
    if (name == format.name) return format;
    names += (names.empty() ? "" : ", ") + std::string(format.name);
  }
  throw UsageError(message("tensor format: found ", quote(name), ", wanted one of ", names));
}

}  // namespace lola

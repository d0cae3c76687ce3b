// Weights from outside into a format: what cannot be encoded is refused by the name of its tensor.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "base/thread_pool.h"
#include "quant/quant_table.h"

namespace lola {

// UnsupportedError where the format can only be read; FormatError where rows of `cols` weights are
// no whole blocks.
void check_encodes(const QuantFormat& format, const std::string& tensor, int64_t cols);

// weights [cols] -> out, one row in the format. importance [cols], or empty: all columns alike.
// FormatError, naming tensor and column, for a weight that is not finite or that the format cannot
// hold.
void encode_row(const QuantFormat& format, const std::string& tensor,
                std::span<const float> weights, std::span<const float> importance, uint8_t* out);

// FormatError for an importance that is negative or not finite, or not one for each column.
void check_importance(std::span<const float> importance, const std::string& tensor, int64_t cols);

// Bytes of a row of `cols` weights, which are whole blocks.
int64_t row_bytes(const QuantFormat& format, int64_t cols);

}  // namespace lola

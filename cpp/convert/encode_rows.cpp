#include "convert/encode_rows.h"

#include <cmath>

#include "base/error.h"
#include "base/text.h"

namespace lola {
namespace {

constexpr float kMaxF16 = 65504.0f;

// The largest weight that the scales of a format can reach.
float largest_weight(const QuantFormat& format) {
  const bool as_f32 = format.type == QuantType::kF32 || format.type == QuantType::kBF16;
  return as_f32 ? HUGE_VALF : kMaxF16;
}

}  // namespace

void check_encodes(const QuantFormat& format, const std::string& tensor, int64_t cols) {
  if (format.encode == nullptr) {
    throw UnsupportedError(message("tensor ", quote(tensor), ": this build reads ", format.name,
                                   ", but cannot write it"));
  }
  if (cols % format.block_size != 0) {
    throw FormatError(message("tensor ", quote(tensor), ": found rows of ", cols,
                              " weights, wanted a multiple of ", format.block_size, " for ",
                              format.name));
  }
}

void encode_row(const QuantFormat& format, const std::string& tensor,
                std::span<const float> weights, std::span<const float> importance, uint8_t* out) {
  const float limit = largest_weight(format);
  for (size_t i = 0; i < weights.size(); ++i) {
    if (std::isfinite(weights[i]) && std::fabs(weights[i]) <= limit) continue;
    const std::string wanted =
        std::isfinite(weights[i])
            ? message("at most ", kMaxF16, ", what ", format.name, " can hold: BF16 holds more")
            : "a finite number";
    throw FormatError(message("tensor ", quote(tensor), ": found ", weights[i], " in column ", i,
                              ", wanted ", wanted));
  }
  const int64_t blocks = static_cast<int64_t>(weights.size()) / format.block_size;
  format.encode(weights.data(), importance.empty() ? nullptr : importance.data(), blocks, out);
}

void check_importance(std::span<const float> importance, const std::string& tensor, int64_t cols) {
  if (importance.empty()) return;
  if (static_cast<int64_t>(importance.size()) != cols) {
    throw FormatError(message("importance of tensor ", quote(tensor), ": found ", importance.size(),
                              " numbers, wanted ", cols, ", one for each column"));
  }
  for (const float value : importance) {
    if (!std::isfinite(value) || value < 0.0f) {
      throw FormatError(message("importance of tensor ", quote(tensor), ": found ", value,
                                ", wanted finite numbers of 0 or more"));
    }
  }
}

int64_t row_bytes(const QuantFormat& format, int64_t cols) {
  return cols / format.block_size * format.block_bytes;
}

}  // namespace lola

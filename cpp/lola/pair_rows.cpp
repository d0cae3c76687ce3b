#include "lola/pair_rows.h"

#include <cstring>

namespace lola {

void store_pairs(const Kernels& kernels, PairType type, const float* x, int64_t count,
                 uint8_t* rows) {
  switch (type) {
    case PairType::kF32:
      std::memcpy(rows, x, static_cast<size_t>(count) * sizeof(float));
      return;
    case PairType::kF16:
      kernels.f32_to_f16(x, count, reinterpret_cast<uint16_t*>(rows));
      return;
    case PairType::kQ8_0:
      kernels.f32_to_q8_0(x, count, rows);
      return;
  }
}

void load_pairs(const Kernels& kernels, PairType type, const uint8_t* rows, int64_t count,
                float* out) {
  switch (type) {
    case PairType::kF32:
      std::memcpy(out, rows, static_cast<size_t>(count) * sizeof(float));
      return;
    case PairType::kF16:
      kernels.f16_to_f32(reinterpret_cast<const uint16_t*>(rows), count, out);
      return;
    case PairType::kQ8_0:
      kernels.q8_0_to_f32(rows, count, out);
      return;
  }
}

}  // namespace lola

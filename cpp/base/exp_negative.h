// An exponential that gives the same bits on every machine, which the math library's does not.
#pragma once

#include <bit>
#include <cstdint>

#include "base/host_device.h"

namespace lola {
namespace {  // each file has its own, compiled for the file's instruction set

// exp(x) for x <= 0 with a relative error below 2e-7; 0 below -87.7. Free of branches, so that
// loops over it become vector code.
LOLA_HOST_DEVICE inline float exp_negative(float x) {
  // exp(x) = 2^n exp(r), |r| <= ln(2) / 2. Adding kRound leaves n = round(x / ln 2) in the low
  // bits.
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23
  // The smallest x: n is -127 there, and the bits of 2^n come out as those of 0. The bits of
  // negative floats grow with their magnitude; compilers make no vector code of a float comparison
  // here.
  constexpr uint32_t kSmallest = std::bit_cast<uint32_t>(-88.0f);
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const float bounded = std::bit_cast<float>(bits < kSmallest ? bits : kSmallest);
  const float shifted = bounded * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (bounded - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) << 23) + 0x3F800000u);
}

}  // namespace
}  // namespace lola

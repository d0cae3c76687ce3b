// The loops of logit_scans.h, which a compiler turns into vector code of the including file's
// instruction set. Everything is local to that file.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "base/exp_negative.h"
#include "kernels/logit_scans.h"

namespace lola {
namespace {

// Turns the sign and magnitude of a float into an integer of the same order, and back: compilers
// make vector code of an integer maximum, and not of one that must mind NaN.
int32_t ordered_bits(int32_t bits) { return bits ^ ((bits >> 31) & 0x7FFFFFFF); }
int32_t ordered(float value) { return ordered_bits(std::bit_cast<int32_t>(value)); }

bool block_maxima(const float* logits, int64_t n, float* out) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  int32_t most = std::numeric_limits<int32_t>::min(), least = std::numeric_limits<int32_t>::max();
  for (int64_t begin = 0; begin < n; begin += kLogitBlock) {
    const int64_t end = std::min(n, begin + kLogitBlock);
    int32_t block = std::numeric_limits<int32_t>::min();
    for (int64_t i = begin; i < end; ++i) {
      const int32_t key = ordered(logits[i]);
      block = key > block ? key : block;
      least = key < least ? key : least;
    }
    most = block > most ? block : most;
    *out++ = std::bit_cast<float>(ordered_bits(block));
  }
  // A NaN lies above +infinity or, with its sign bit set, below -infinity.
  return most < ordered(kInfinity) && least >= ordered(-kInfinity);
}

double exp_sum(const float* logits, int64_t n, float max) {
  constexpr int64_t kBlock = 1024;  // the terms of one pairwise sum in float
  std::array<float, kBlock> terms;
  double sum = 0.0;
  for (int64_t start = 0; start < n; start += kBlock) {
    const int64_t count = std::min(kBlock, n - start);
    for (int64_t i = 0; i < count; ++i) {
      terms[static_cast<size_t>(i)] = exp_negative(logits[start + i] - max);
    }
    std::fill(terms.begin() + count, terms.end(), 0.0f);
    // Halves are added pairwise: the order is fixed, and each addition is that of two vectors.
    for (size_t width = kBlock / 2; width > 0; width /= 2) {
      for (size_t i = 0; i < width; ++i) terms[i] += terms[i + width];
    }
    sum += terms[0];
  }
  return sum;
}

// Several plain loops, and comparisons of bits as in exp_negative: compilers make no vector code of
// one loop that does it all.
void weights(float* x, int64_t n, float max, double temperature, float min_p) {
  constexpr int64_t kBlock = 256;
  constexpr uint64_t kNothing = std::bit_cast<uint64_t>(-1000.0);  // e^-1000 is 0 as a float
  const int32_t least = std::bit_cast<int32_t>(min_p + 0.0f);
  std::array<double, kBlock> scaled;
  std::array<int32_t, kBlock> kept;
  for (; n > 0; n -= kBlock, x += kBlock) {
    const size_t count = static_cast<size_t>(std::min(n, kBlock));
    for (size_t i = 0; i < count; ++i) scaled[i] = (static_cast<double>(x[i]) - max) / temperature;
    for (size_t i = 0; i < count; ++i) {
      kept[i] = -static_cast<int32_t>(std::bit_cast<int32_t>(exp_negative(x[i] - max)) >= least);
    }
    for (size_t i = 0; i < count; ++i) {
      const uint64_t bits = std::bit_cast<uint64_t>(scaled[i]);
      x[i] = static_cast<float>(std::bit_cast<double>(bits < kNothing ? bits : kNothing));
    }
    for (size_t i = 0; i < count; ++i) {
      x[i] = std::bit_cast<float>(std::bit_cast<int32_t>(exp_negative(x[i])) & kept[i]);
    }
  }
}

}  // namespace
}  // namespace lola

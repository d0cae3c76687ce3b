// The loops of peak.h over the registers of one instruction set. Everything is local to the file
// that includes this.
#pragma once

#include <cstdint>

#include "kernels/peak.h"

namespace lola {
namespace {

// Independent sums, so that no instruction waits for the one before it.
constexpr int kChains = 12;

// Keeps a value from being optimised away.
template <typename T>
void keep(T value) {
  volatile T sink = value;
  (void)sink;
}

// Ops: Register, kOperations of one step, zero(), step(a, b, sum), first(sum).
template <typename Ops>
int64_t peak_loop(int64_t rounds) {
  typename Ops::Register sums[kChains];
  for (auto& sum : sums) sum = Ops::zero();
  const auto a = Ops::operand(), b = Ops::operand();
  for (int64_t round = 0; round < rounds; ++round) {
    for (auto& sum : sums) sum = Ops::step(a, b, sum);
  }
  for (auto& sum : sums) keep(Ops::first(sum));
  return rounds * kChains * Ops::kOperations;
}

}  // namespace
}  // namespace lola

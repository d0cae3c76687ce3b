// The most that a core does in a second, by loops that do nothing else. tools/bench sets measured
// speeds against it.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"

namespace lola {

struct PeakLoops {
  // Arithmetic on registers alone; they return the operations done, a multiplication and an
  // addition being two.
  int64_t (*int8_dot)(int64_t rounds);   // products of int8 summed exactly in int32
  int64_t (*float_fma)(int64_t rounds);  // float32
};

// Of a set of kernels that runs here (kernels_by_name).
const PeakLoops& peak_loops(Isa isa);

// Reads every byte once; the result depends on all of them.
uint64_t read_all(const uint64_t* words, int64_t count);

extern const PeakLoops kPeakScalar;
extern const PeakLoops kPeakNeon;
extern const PeakLoops kPeakAvx2;
extern const PeakLoops kPeakAvx512;

}  // namespace lola

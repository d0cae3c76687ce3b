// Passes over the logits of a whole vocabulary. Every instruction set gives the same bits: a
// sampled token must not depend on the machine.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"

namespace lola {

inline constexpr int64_t kLogitBlock = 64;

struct LogitScans {
  // out[i] = the greatest of logits[i kLogitBlock ..], for each block that n logits begin. False
  // when one of them is NaN or +infinity; out then means nothing.
  bool (*block_maxima)(const float* logits, int64_t n, float* out);
  // Sum of exp(logit - max), max being the greatest logit.
  double (*exp_sum)(const float* logits, int64_t n, float max);
  // x = exp((x - max) / temperature), or 0 where exp(x - max) < min_p, for n logits x.
  void (*weights)(float* x, int64_t n, float max, double temperature, float min_p);
};

const LogitScans& logit_scans(Isa isa);

extern const LogitScans kLogitScansPlain;
extern const LogitScans kLogitScansAvx2;
extern const LogitScans kLogitScansAvx512;

}  // namespace lola

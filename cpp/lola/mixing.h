// How the exact pairs weigh against the linear term.
#pragma once

#include <cmath>

#include "base/host_device.h"
#include "memory/config.h"

namespace lola {

struct MixingWeights {
  float exact;   // of the exact pairs' sums, which are relative to their maximum
  float linear;  // of the linear term
};

// The table "The output of a query" of the design: soft weights and linear factor b, scaled so that
// nothing overflows. max: of the exact pairs' logits.
LOLA_HOST_DEVICE inline MixingWeights mixing_weights(Mixing mixing, bool affine, float gate,
                                                     float max) {
  const float safe_max = max > 0.0f ? max : 0.0f;
  switch (mixing) {
    case Mixing::kLolcats:
      return {gate, affine ? 1.0f - gate : 1.0f};
    case Mixing::kGated:
      if (gate == 0.0f) return {0.0f, 1.0f};  // both weights could underflow otherwise
      return {gate * std::exp(max - safe_max), (1.0f - gate) * std::exp(-safe_max)};
    case Mixing::kNatural:
      break;
  }
  return {std::exp(max - safe_max), std::exp(-safe_max)};
}

}  // namespace lola

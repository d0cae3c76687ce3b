#include "kernels/logit_scans.h"

#include "kernels/logit_scans_loops.h"

namespace lola {

constinit const LogitScans kLogitScansPlain = {block_maxima, exp_sum, weights};

const LogitScans& logit_scans(Isa isa) {
#if defined(__x86_64__) || defined(_M_X64)
  if (isa == Isa::kAvx512) return kLogitScansAvx512;
  if (isa == Isa::kAvx2) return kLogitScansAvx2;
#endif
  (void)isa;
  return kLogitScansPlain;  // NEON is part of every arm64, and the compiler uses it
}

}  // namespace lola

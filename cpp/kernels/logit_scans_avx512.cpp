#include "kernels/logit_scans_loops.h"

namespace lola {

constinit const LogitScans kLogitScansAvx512 = {block_maxima, exp_sum, weights};

}  // namespace lola

#include "kernels/logit_scans_loops.h"

namespace lola {

constinit const LogitScans kLogitScansAvx2 = {block_maxima, exp_sum, weights};

}  // namespace lola

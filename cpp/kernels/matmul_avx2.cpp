#include "kernels/matmul_plain.h"

namespace lola {

const MatmulKernels kMatmulAvx2 = matmul_kernels<PlainOps>();

}  // namespace lola

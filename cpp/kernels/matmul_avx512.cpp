#include "kernels/matmul_plain.h"

namespace lola {

const MatmulKernels kMatmulAvx512 = matmul_kernels<PlainOps>();

}  // namespace lola

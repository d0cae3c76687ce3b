#include "kernels/matmul_plain.h"

namespace lola {

const MatmulKernels kMatmulScalar = matmul_kernels<PlainOps>();

}  // namespace lola

#include "kernels/matmul_plain.h"

namespace lola {

constinit const MatmulKernels kMatmulScalar = matmul_kernels<PlainOps>();

}  // namespace lola

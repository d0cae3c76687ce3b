#include "kernels/matmul_plain.h"

namespace lola {

const MatmulKernels kMatmulNeon = matmul_kernels<PlainOps>();

}  // namespace lola

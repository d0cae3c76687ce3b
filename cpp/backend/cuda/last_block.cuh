// Blocks of a kernel of which the last does what needs the work of all.
#pragma once

#include "backend/cuda/cuda_check.cuh"

namespace lola {

// Whether this block is the last of `blocks` to come here; what the others wrote is then there to
// be read, past the first-level cache, and what they read may change. The counter is zero between
// kernels.
__device__ inline bool is_last_block(unsigned* counter, unsigned blocks) {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    // Of what all threads of the block did before they met.
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
    last = atomicAdd(counter, 1u) + 1 == blocks;
    if (last) *counter = 0;
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
  }
  __syncthreads();
  return last;
}

}  // namespace lola

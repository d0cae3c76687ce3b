// Blocks that share a result: the last of them to come finishes it.
#pragma once

namespace lola {

// Whether this block is the last of `blocks` that come here; what the others wrote before is then
// there to be read. The counter is zero again after the last.
__device__ inline bool is_last(unsigned* counter, int blocks) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(counter, 1u) + 1 == static_cast<unsigned>(blocks);
    if (last) *counter = 0;
  }
  __syncthreads();
  __threadfence();
  return last;
}

}  // namespace lola

// Marks small functions that the CPU and the CUDA kernels share, so that there is one definition of
// each.
#pragma once

#if defined(__CUDACC__)
#define LOLA_HOST_DEVICE __host__ __device__
#else
#define LOLA_HOST_DEVICE
#endif

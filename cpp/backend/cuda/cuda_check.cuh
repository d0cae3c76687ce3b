// Checks of CUDA calls, and kernel launches that may overlap the end of the kernel before them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

#include "base/error.h"

namespace lola {

inline void cuda_check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    cudaGetLastError();
    throw DeviceError(message("cuda: ", what, ": ", cudaGetErrorString(status)));
  }
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Priority of streams whose kernels others wait for.
constexpr int kUrgent = -1;

// Where kernels go. From compute capability 9.0 on, a kernel may start while the one before it ends
// (programmatic dependent launch).
struct Stream {
  cudaStream_t handle;
  bool overlaps;
};

// Every kernel calls this before it touches memory that another kernel writes or reads. What comes
// before it (weights read into registers) overlaps the end of the kernel before. The next kernel
// may start after it, so at most two kernels run at a time.
__device__ inline void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// With the first `used` attributes.
template <size_t count, typename... Parameters, typename... Arguments>
void launch_with(cudaLaunchAttribute (&attributes)[count], unsigned used, const Stream& stream,
                 void (*kernel)(Parameters...), dim3 grid, int threads, int64_t shared_bytes,
                 Arguments&&... arguments) {
  constexpr int64_t kDefaultShared = 48 * 1024;
  if (shared_bytes > kDefaultShared) {
    cuda_check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                    cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)),
               "shared memory of a kernel");
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream.handle;
  config.attrs = attributes;
  config.numAttrs = used;
  cuda_check(cudaLaunchKernelEx(&config, kernel, Parameters(std::forward<Arguments>(arguments))...),
             "kernel launch");
}

// cluster: blocks along x that share their memories, on GPUs that have clusters; 1 elsewhere.
template <typename... Parameters, typename... Arguments>
void launch_cluster(const Stream& stream, void (*kernel)(Parameters...), dim3 grid, int threads,
                    int64_t shared_bytes, int cluster, Arguments&&... arguments) {
  cudaLaunchAttribute attributes[2] = {};
  unsigned used = 0;
  if (stream.overlaps) {
    attributes[used].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[used++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 1) {
    attributes[used].id = cudaLaunchAttributeClusterDimension;
    attributes[used++].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  }
  launch_with(attributes, used, stream, kernel, grid, threads, shared_bytes,
              std::forward<Arguments>(arguments)...);
}

// All blocks run at the same time, so that they may wait for each other; the caller knows that they
// fit.
template <typename... Parameters, typename... Arguments>
void launch_together(const Stream& stream, void (*kernel)(Parameters...), dim3 grid, int threads,
                     int64_t shared_bytes, Arguments&&... arguments) {
  cudaLaunchAttribute attributes[1] = {};
  attributes[0].id = cudaLaunchAttributeCooperative;
  attributes[0].val.cooperative = 1;
  launch_with(attributes, 1, stream, kernel, grid, threads, shared_bytes,
              std::forward<Arguments>(arguments)...);
}

template <typename... Parameters, typename... Arguments>
void launch(const Stream& stream, void (*kernel)(Parameters...), dim3 grid, int threads,
            int64_t shared_bytes, Arguments&&... arguments) {
  launch_cluster(stream, kernel, grid, threads, shared_bytes, 1,
                 std::forward<Arguments>(arguments)...);
}

// Clusters of so many blocks that run at a time; 0 where none does.
template <typename Kernel>
int most_clusters(Kernel* kernel, int threads, int64_t shared_bytes, int cluster) {
  const void* of = reinterpret_cast<const void*>(kernel);
  cuda_check(cudaFuncSetAttribute(of, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(shared_bytes)),
             "shared memory of a kernel");
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(cluster));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  if (cudaOccupancyMaxActiveClusters(&clusters, of, &config) == cudaSuccess) return clusters;
  cudaGetLastError();  // so large a cluster is none to this GPU
  return 0;
}

inline dim3 grid_of(int64_t x, int64_t y = 1, int64_t z = 1) {
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z));
}

}  // namespace lola

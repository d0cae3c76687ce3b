#include <algorithm>

#include "backend/cuda/cuda_device.cuh"

namespace lola {
namespace {

constexpr int kDevice = 0;  // CUDA_VISIBLE_DEVICES chooses another

int device_count() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    cudaGetLastError();
    throw DeviceError(message("device cuda: found no usable GPU (",
                              status == cudaSuccess ? "none is there" : cudaGetErrorString(status),
                              "), wanted an NVIDIA GPU and its driver"));
  }
  return count;
}

__global__ void probe_kernel() {}

// Whether the code that runs here is of compute capability 9.0 or later: a build for older GPUs
// runs on newer ones, without what these add.
bool has_code_for_9_0() {
  cudaFuncAttributes attributes{};
  cuda_check(cudaFuncGetAttributes(&attributes, probe_kernel), "attributes of a kernel");
  return attributes.binaryVersion >= 90 && attributes.ptxVersion >= 90;
}

}  // namespace

std::vector<GpuInfo> list_gpus() {
  std::vector<GpuInfo> gpus(static_cast<size_t>(device_count()));
  for (size_t i = 0; i < gpus.size(); ++i) {
    cudaDeviceProp properties{};
    cuda_check(cudaGetDeviceProperties(&properties, static_cast<int>(i)), "properties of a GPU");
    cuda_check(cudaSetDevice(static_cast<int>(i)), "a GPU");
    size_t free = 0, total = 0;
    cuda_check(cudaMemGetInfo(&free, &total), "free memory");
    gpus[i] = {properties.name, properties.major, properties.minor, static_cast<int64_t>(free),
               static_cast<int64_t>(total)};
  }
  cuda_check(cudaSetDevice(kDevice), "a GPU");
  return gpus;
}

CudaDevice::CudaDevice() {
  device_count();
  cudaDeviceProp properties{};
  cuda_check(cudaGetDeviceProperties(&properties, kDevice), "properties of the GPU");
  name_ = properties.name;
  multiprocessors_ = properties.multiProcessorCount;
  if (properties.major < 8) {
    throw DeviceError(message("device cuda: found ", name_, " of compute capability ",
                              properties.major, ".", properties.minor, ", wanted 8.0 or newer"));
  }
  stream_.overlaps = has_code_for_9_0();
  has_wgmma_ = properties.major == 9 && properties.minor == 0;
  cuda_check(cudaStreamCreateWithPriority(&stream_.handle, cudaStreamNonBlocking, kUrgent),
             "stream");
  cudaMemPoolProps pool{};
  pool.allocType = cudaMemAllocationTypePinned;
  pool.location = {cudaMemLocationTypeDevice, kDevice};
  cuda_check(cudaMemPoolCreate(&pool_, &pool), "memory pool");
  uint64_t keep = UINT64_MAX;
  cuda_check(cudaMemPoolSetAttribute(pool_, cudaMemPoolAttrReleaseThreshold, &keep), "memory pool");
}

CudaDevice::~CudaDevice() {
  cudaStreamSynchronize(stream_.handle);
  cudaMemPoolDestroy(pool_);
  cudaStreamDestroy(stream_.handle);
}

std::string CudaDevice::describe() const { return "cuda, " + name_; }

Buffer CudaDevice::allocate(int64_t bytes, const std::string& what, Fill fill) const {
  void* data = nullptr;
  const int64_t taken = std::max<int64_t>(bytes, 1);
  const cudaError_t status =
      cudaMallocFromPoolAsync(&data, static_cast<size_t>(taken), pool_, stream_.handle);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw DeviceError(message(what, ": needs ", bytes, " bytes on the GPU, ", name_, " has ",
                              free_bytes(), " free"));
  }
  cuda_check(status, what.c_str());
  Buffer buffer(data, bytes, [device = shared_from_this()](void* freed) {
    if (freed != nullptr) cudaFreeAsync(freed, device->stream_.handle);
  });
  if (fill == Fill::kZeros) {
    cuda_check(cudaMemsetAsync(data, 0, static_cast<size_t>(taken), stream_.handle), what.c_str());
  }
  return buffer;
}

int64_t CudaDevice::free_bytes() const {
  size_t free = 0, total = 0;
  uint64_t reserved = 0, used = 0;
  cuda_check(cudaMemGetInfo(&free, &total), "free memory");
  cuda_check(cudaMemPoolGetAttribute(pool_, cudaMemPoolAttrReservedMemCurrent, &reserved),
             "memory pool");
  cuda_check(cudaMemPoolGetAttribute(pool_, cudaMemPoolAttrUsedMemCurrent, &used), "memory pool");
  return static_cast<int64_t>(free + reserved - used);
}

}  // namespace lola

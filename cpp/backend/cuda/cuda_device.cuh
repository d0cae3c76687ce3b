// The GPU that a backend runs on: its stream, and a pool of its memory.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/cuda/cuda_check.cuh"
#include "backend/gpu_info.h"
#include "base/buffer.h"

namespace lola {

// DeviceError where there is no driver or no GPU.
std::vector<GpuInfo> list_gpus();

// Everything of one backend goes through one stream, so that what is enqueued first is done first.
class CudaDevice : public std::enable_shared_from_this<CudaDevice> {
 public:
  // DeviceError where there is no driver or no GPU that this build has code for.
  CudaDevice();
  ~CudaDevice();
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;

  const Stream& stream() const { return stream_; }
  int multiprocessors() const { return multiprocessors_; }
  bool has_wgmma() const { return has_wgmma_; }  // warpgroup products: compute capability 9.0
  std::string describe() const;

  // From the pool; goes back to it, in the order of the stream.
  Buffer allocate(int64_t bytes, const std::string& what, Fill fill = Fill::kZeros) const;
  // What the pool could still give: what it holds unused, and what the GPU has free.
  int64_t free_bytes() const;

 private:
  Stream stream_{};
  cudaMemPool_t pool_ = nullptr;
  int multiprocessors_ = 0;
  bool has_wgmma_ = false;
  std::string name_;
};

// Device memory that grows and is used again. What it holds does not outlive its growing.
class DeviceScratch {
 public:
  explicit DeviceScratch(const CudaDevice& device) : device_(device) {}

  // grown: set where the memory is not where it was.
  template <typename T>
  T* get(int64_t count, bool& grown) {
    const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
    if (bytes > buffer_.bytes()) {
      buffer_ = Buffer();
      buffer_ = device_.allocate(bytes + bytes / 4, "scratch of the GPU");
      grown = true;
    }
    return buffer_.as<T>();
  }

 private:
  const CudaDevice& device_;
  Buffer buffer_;
};

}  // namespace lola

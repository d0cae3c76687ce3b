// Large products through cuBLAS, where its library is found at run time.
#pragma once

#include <memory>

#include "backend/cuda/cuda_device.cuh"
#include "backend/cuda/matmul.cuh"

namespace lola {

class Cublas {
 public:
  // Null where there is no library.
  static std::unique_ptr<Cublas> find(const CudaDevice& device);
  ~Cublas();
  Cublas(const Cublas&) = delete;
  Cublas& operator=(const Cublas&) = delete;

  // out = x W' of the job; weight: as F16 is stored.
  void multiply(const Stream& stream, const DeviceJob& job, const __half* weight,
                const HalfRows& x);

 private:
  struct Library;
  Cublas(const Library& library, const CudaDevice& device);

  std::unique_ptr<const Library> library_;
  void* handle_ = nullptr;
  Buffer workspace_;
};

}  // namespace lola

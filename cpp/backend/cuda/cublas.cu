#include <dlfcn.h>

#include "backend/cuda/cublas.cuh"

namespace lola {
namespace {

constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;
constexpr int kTransposed = 1, kAsIs = 0;                // CUBLAS_OP_T, CUBLAS_OP_N
constexpr int kFloat16 = 2, kFloat32 = 0;                // CUDA_R_16F, CUDA_R_32F
constexpr int kComputeFloat32 = 68, kAnyAlgorithm = -1;  // CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT

void check(int status, const char* what) {
  if (status != 0) throw DeviceError(message("cublas: ", what, ": status ", status));
}

__global__ void bias_kernel(const __grid_constant__ DeviceJob job) {
  wait_for_previous_kernel();
  const int row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row < job.matrix.rows) {
    job.out[static_cast<int64_t>(blockIdx.y) * job.out_stride + row] += job.bias[row];
  }
}

}  // namespace

// The functions that are used, as cublas_api.h declares them.
struct Cublas::Library {
  int (*create)(void** handle);
  int (*destroy)(void* handle);
  int (*set_stream)(void* handle, cudaStream_t stream);
  int (*set_workspace)(void* handle, void* workspace, size_t bytes);
  int (*gemm)(void* handle, int a_form, int b_form, int m, int n, int k, const void* alpha,
              const void* a, int a_type, int lda, const void* b, int b_type, int ldb,
              const void* beta, void* c, int c_type, int ldc, int compute_type, int algorithm);
};

std::unique_ptr<Cublas> Cublas::find(const CudaDevice& device) {
  void* library = nullptr;
  for (const char* name : {"libcublas.so.13", "libcublas.so.12", "libcublas.so"}) {
    if (library == nullptr) library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  }
  if (library == nullptr) return nullptr;
  Library found{};
  const auto take = [library](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    return function != nullptr;
  };
  const bool complete =
      take(found.create, "cublasCreate_v2") && take(found.destroy, "cublasDestroy_v2") &&
      take(found.set_stream, "cublasSetStream_v2") &&
      take(found.set_workspace, "cublasSetWorkspace_v2") && take(found.gemm, "cublasGemmEx");
  return complete ? std::unique_ptr<Cublas>(new Cublas(found, device)) : nullptr;
}

Cublas::Cublas(const Library& library, const CudaDevice& device)
    : library_(std::make_unique<const Library>(library)),
      workspace_(device.allocate(kWorkspaceBytes, "workspace of cublas")) {
  check(library_->create(&handle_), "create");
}

Cublas::~Cublas() { library_->destroy(handle_); }

void Cublas::multiply(const Stream& stream, const DeviceJob& job, const __half* weight,
                      const HalfRows& x) {
  // The order of columns is that of the activations.
  const int cols = job.matrix.steps * static_cast<int>(kSlabPieces * kPieceWeights);
  const float alpha = 1.0f / kActivationScale, beta = job.accumulate ? 1.0f : 0.0f;
  check(library_->set_stream(handle_, stream.handle), "stream");
  check(library_->set_workspace(handle_, workspace_.as<void>(), kWorkspaceBytes), "workspace");
  check(library_->gemm(handle_, kTransposed, kAsIs, job.matrix.rows, x.tokens, cols, &alpha, weight,
                       kFloat16, cols, x.data, kFloat16, x.stride, &beta, job.out, kFloat32,
                       job.out_stride, kComputeFloat32, kAnyAlgorithm),
        "product");
  if (job.bias == nullptr) return;
  launch(stream, bias_kernel, grid_of(ceil_div(job.matrix.rows, 256), x.tokens), 256, 0, job);
}

}  // namespace lola

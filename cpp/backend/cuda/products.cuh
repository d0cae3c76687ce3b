// Matrix products of a pass, with the norms and gates before and after them: of one row these are
// part of the products' own kernels.
#pragma once

#include <functional>
#include <memory>
#include <span>

#include "backend/cuda/cublas.cuh"
#include "backend/cuda/cuda_device.cuh"
#include "backend/cuda/elementwise.cuh"
#include "backend/cuda/matmul.cuh"

namespace lola {

class Products {
 public:
  // grown: called where scratch memory is not where it was.
  Products(const CudaDevice& device, std::function<void()> grown);
  ~Products();
  Products(const Products&) = delete;
  Products& operator=(const Products&) = delete;

  // What waits goes to the stream. To be called before anything else that the stream gets.
  void flush(const Stream& stream);
  // The floats of all that was computed are written too.
  void complete(const Stream& stream);
  // The copies are forgotten.
  void forget();

  void norm(const Stream& stream, const float* x, int64_t rows, int64_t dim, const float* weight,
            float eps, float* out);
  void multiply(const Stream& stream, const float* x, int64_t tokens,
                std::span<const MatmulJob> jobs);
  void gate(const Stream& stream, float* gate, const float* up, int64_t rows, int64_t width);

  // Decodes weights of a long pass beside what the stream does until it multiplies with them.
  void decode_ahead(const Stream& stream, int64_t tokens,
                    std::span<const WeightMatrix* const> weights);

  // Where the copies of `of` [rows, width] go, which the caller computes; without rounded ones
  // unless `rounds`.
  ProductCopy copy_of(const float* of, int64_t rows, int64_t width, bool rounds);

 private:
  // An activation, and in which forms it is there.
  struct Activation {
    const float* of = nullptr;
    ProductCopy copy{};
    bool floats = false, halves = false, rounded = false;
    RowFactor factor{};  // of halves and the rounded form, where the floats are not there
  };
  // A norm whose floats nobody wrote.
  struct OpenNorm {
    const float *x, *weight;
    float* out;
    int64_t dim;
    float eps;
  };

  // A weight that is decoded, or will be once ahead_done_ is reached.
  struct Decoded {
    explicit Decoded(const CudaDevice& device) : memory(device) {}
    DeviceScratch memory;
    DeviceMatrix of{};
    __half* weight = nullptr;
  };

  template <typename T>
  T* get(DeviceScratch& scratch, int64_t count);
  const __half* decoded(const Stream& stream, const DeviceMatrix& matrix);
  bool goes_to_cublas(Encoding encoding, int64_t tokens) const;
  bool goes_wide(int64_t tokens) const;
  void materialize(const Stream& stream);
  void copy(const Stream& stream, const float* x, int64_t tokens, int64_t cols);
  void multiply_stored(const Stream& stream, std::span<const DeviceJob> jobs, int64_t tokens);
  void multiply_one(const Stream& stream, std::span<const DeviceJob> jobs);
  void multiply_many(const Stream& stream, const DeviceJob& job, const HalfRows& x);
  void run_one(const Stream& stream, const DeviceJobs& jobs, const OneRow& x,
               const OneEnding& ending);
  void run_waiting(const Stream& stream, OneEnding ending);
  bool may_wait(std::span<const DeviceJob> jobs) const;

  const CudaDevice& device_;
  std::function<void()> grown_;
  std::unique_ptr<Cublas> cublas_ = Cublas::find(device_);
  // There is one copy in each form: what is multiplied next is what was computed last. Single rows
  // take turns, so that one can be read while the next is written.
  DeviceScratch halves_[2] = {DeviceScratch(device_), DeviceScratch(device_)};
  DeviceScratch rounded_[2] = {DeviceScratch(device_), DeviceScratch(device_)};
  DeviceScratch rounded_groups_[2] = {DeviceScratch(device_), DeviceScratch(device_)};
  int turn_ = 0;
  DeviceScratch squares_{device_};
  DeviceScratch decoded_{device_};  // one matrix as float16, for cublas
  Decoded ahead_[4] = {Decoded(device_), Decoded(device_), Decoded(device_), Decoded(device_)};
  Stream beside_{nullptr, false};
  cudaEvent_t ahead_begins_ = nullptr, ahead_done_ = nullptr;
  int64_t most_ahead_ = 0;  // bytes
  DeviceScratch gemm_partials_{device_};
  // Whether cuBLAS multiplied last, and F16 weights: it is likely to do so next.
  bool reads_rows_ = false;
  Activation latest_;
  OpenNorm open_norm_{};
  DeviceJobs waiting_{};  // products of one row that wait for what follows them
  OneRow waiting_x_{};
};

}  // namespace lola

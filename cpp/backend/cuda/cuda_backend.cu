#include <algorithm>
#include <mutex>
#include <vector>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/cuda_executor.cuh"
#include "backend/cuda/row_tile.cuh"
#include "backend/cuda/weight_layout.h"
#include "base/cpu_count.h"
#include "base/thread_pool.h"

namespace lola {
namespace {

constexpr int64_t kMaxFeatures = 512;
constexpr int64_t kRowsPerTask = 16 * kSlabRows;

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(int threads) : pool_(threads), device_(std::make_shared<CudaDevice>()) {}

  std::string describe() const override { return device_->describe(); }

  // Matrix products are no faster beyond, and a cancellation waits for a sixth of a second.
  int64_t pass_tokens() const override { return 4096; }
  bool runs_behind() const override { return true; }

  void check(const AttentionShape& shape) const override {
    if (shape.head_dim % 8 != 0 || shape.head_dim > kMaxHeadDim) {
      throw UnsupportedError(message("device cuda: found heads of ", shape.head_dim,
                                     ", wanted a multiple of 8, at most ", kMaxHeadDim));
    }
    if (shape.feature_size > kMaxFeatures) {
      throw UnsupportedError(message("device cuda: found feature maps of ", shape.feature_size,
                                     ", wanted at most ", kMaxFeatures));
    }
  }

  int64_t free_bytes() const override { return device_->free_bytes(); }
  int64_t stored_bytes(const WeightMatrix& file, WeightUse) const override {
    return weight_layout(file.format->type, file.rows, file.cols).bytes;
  }

  Buffer allocate(int64_t bytes, const std::string& what, Fill fill) const override {
    return device_->allocate(bytes, what, fill);
  }

  WeightMatrix load(const WeightMatrix& file, WeightUse) override {
    const WeightLayout layout = weight_layout(file.format->type, file.rows, file.cols);
    std::vector<uint8_t> staged(static_cast<size_t>(layout.bytes));
    pool_.parallel_for(ceil_div(file.rows, kRowsPerTask), [&](int64_t task, int) {
      store_weights(*file.format, layout, file.data, file.rows, file.cols, task * kRowsPerTask,
                    std::min(file.rows, (task + 1) * kRowsPerTask), staged.data());
    });
    Buffer buffer = allocate(layout.bytes, "a weight", Fill::kNothing);
    cuda_check(cudaMemcpyAsync(buffer.as<uint8_t>(), staged.data(), staged.size(),
                               cudaMemcpyHostToDevice, device_->stream().handle),
               "upload of a weight");
    cuda_check(cudaStreamSynchronize(device_->stream().handle), "upload of a weight");
    const WeightMatrix weight{file.format, buffer.as<uint8_t>(), file.rows, file.cols};
    weights_.push_back(std::move(buffer));
    return weight;
  }

  std::unique_ptr<Executor> make_executor() override { return make_cuda_executor(device_); }

 private:
  ThreadPool pool_;
  std::shared_ptr<CudaDevice> device_;
  std::vector<Buffer> weights_;
};

}  // namespace
}  // namespace lola

lola::Backend* lola_make_cuda_backend(const lola::BackendOptions& options) {
  return new lola::CudaBackend(options.threads == 0 ? lola::default_thread_count()
                                                    : options.threads);
}

void lola_list_gpus(std::vector<lola::GpuInfo>& gpus) { gpus = lola::list_gpus(); }

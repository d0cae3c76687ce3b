#include <algorithm>
#include <vector>

#include "backend/cuda/cublas.cuh"
#include "backend/cuda/cuda_executor.cuh"
#include "backend/cuda/elementwise.cuh"
#include "backend/cuda/lola_ops.cuh"
#include "backend/cuda/matmul.cuh"
#include "backend/cuda/pass_inputs.cuh"
#include "backend/cuda/softmax_attention.cuh"
#include "backend/cuda/step_graphs.cuh"
#include "backend/cuda/top_logits.cuh"

namespace lola {
namespace {

constexpr int64_t kSlabColumns = kSlabPieces * kPieceWeights;
constexpr int kCublasTokens = 256;     // below, decoding a matrix costs more than it brings
constexpr int64_t kCublasColumns = 8;  // rows of 16 bytes
constexpr int64_t kLargeUpload = int64_t{16} << 20;
constexpr int64_t kBoundaryBytes = int64_t{256} << 20;  // of scratch for boundaries passed at once

int64_t padded(int64_t columns) { return ceil_div(columns, kSlabColumns) * kSlabColumns; }

class CudaExecutor final : public Executor {
 public:
  explicit CudaExecutor(std::shared_ptr<CudaDevice> device)
      : device_(std::move(device)), stream_(device_->stream()), beside_(stream_) {
    cuda_check(cudaStreamCreateWithFlags(&beside_.handle, cudaStreamNonBlocking), "stream");
    cuda_check(cudaEventCreateWithFlags(&forked_, cudaEventDisableTiming), "event");
    cuda_check(cudaEventCreateWithFlags(&joined_, cudaEventDisableTiming), "event");
  }

  ~CudaExecutor() override {
    cudaStreamSynchronize(device_->stream().handle);
    if (found_ != nullptr) cudaFreeHost(found_);
    cudaEventDestroy(forked_);
    cudaEventDestroy(joined_);
    cudaStreamDestroy(beside_.handle);
  }

  void upload(void* to, const void* from_host, int64_t bytes) override {
    // Much pinned memory is not kept: what goes up in large parts shares two buffers.
    if (bytes > kLargeUpload) uploads_.turn();
    if (bytes > 0) uploads_.upload(to, from_host, bytes);
  }

  void download(void* to_host, const void* from, int64_t bytes) override {
    if (bytes <= 0) return;
    cuda_check(cudaMemcpyAsync(to_host, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost,
                               stream_.handle),
               "download");
    cuda_check(cudaStreamSynchronize(stream_.handle), "download");
  }

  void copy(void* to, const void* from, int64_t bytes) override {
    if (bytes <= 0 || to == from) return;
    cuda_check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice,
                               stream_.handle),
               "copy");
  }

  void begin_pass(std::span<const PassTask> tasks, std::span<const int32_t> tokens) override {
    tasks_ = tasks;
    token_count_ = static_cast<int64_t>(tokens.size());
    top_.rows = 0;
    uploads_.turn();
    bool grown = false;
    inputs_.set(tasks, tokens, uploads_, grown);
    if (grown) graphs_.clear();
  }

  void run(std::span<const int64_t> key, const std::function<void()>& body) override {
    if (key.empty()) return body();
    std::vector<int64_t> whole(key.begin(), key.end());
    const std::vector<int64_t> shape = inputs_.plan().shape();
    whole.insert(whole.end(), shape.begin(), shape.end());
    whole.push_back(inputs_.best());
    graphs_.run(whole, [&](const Stream& stream) {
      stream_ = stream;
      copy_of_ = nullptr;
      body();
      stream_ = device_->stream();
    });
    stream_ = device_->stream();
    top_.rows = inputs_.kept_count();
    top_.best = best_found(inputs_.best(), top_.vocabulary);
  }

  void embed(const WeightMatrix& table, float* out) override {
    const bool f32 = table.format->type == QuantType::kF32;
    embed_rows(stream_, matrix(table), f32 ? reinterpret_cast<const float*>(table.data) : nullptr,
               inputs_.tokens(), token_count_, table.cols, out);
  }

  void rms_norm(const float* x, int64_t rows, int64_t dim, const float* weight, float eps,
                float* out) override {
    // Norms of single heads are in place and are never multiplied as they are.
    const ProductCopy copy = x == out ? ProductCopy{} : product_copy(out, rows, dim);
    lola::rms_norm(stream_, x, rows, dim, weight, eps, out, copy);
  }

  void matmul(const float* x, int64_t tokens, std::span<const MatmulJob> jobs) override {
    std::vector<DeviceJob> stored;
    const int64_t cols = jobs.front().weight->cols;
    for (const MatmulJob& job : jobs) {
      const DeviceJob own{matrix(*job.weight), job.bias, job.out, static_cast<int>(job.out_stride),
                          job.accumulate};
      if (own.matrix.encoding == Encoding::kF32) {
        gemm_f32(stream_, reinterpret_cast<const float*>(job.weight->data), x, tokens, cols, own);
      } else {
        stored.push_back(own);
      }
    }
    if (!stored.empty()) multiply(stored, x, tokens, cols);
    for (const MatmulJob& job : jobs) {
      if (job.out == copy_of_) copy_of_ = nullptr;
    }
  }

  void rope(const RopeRows& rows) override { lola::rope(stream_, rows); }

  void silu_gate(float* gate, const float* up, int64_t rows, int64_t width) override {
    lola::silu_gate(stream_, gate, up, rows, width, product_copy(gate, rows, width));
  }

  void lola_attention(const LolaLayer& layer, std::span<const LolaTask> tasks,
                      const AttentionRows& rows) override {
    const ProductCopy copy =
        product_copy(rows.out, token_count_, layer.shape.heads * layer.shape.head_dim);
    for (const PlanGroup& group : inputs_.plan().groups) {
      const size_t first = group.tasks.front();
      const LolaView view = lola_view(layer, group.config, *tasks[first].layout,
                                      tasks[first].memory - tasks_[first].memory);
      for (const PlanGroup::Round& round : group.rounds) {
        const PieceSpan pieces = inputs_.pieces(round);
        append_pairs(stream_, view, pieces, rows, false);
        attend_and_pass(view, group.config, round, pieces, rows, copy);
        is_rounded_ = is_rounded_ && answers_one(view) && rounds_heads(view);
      }
    }
  }

  void softmax_attention(const AttentionShape& shape, std::span<const SoftmaxTask> tasks,
                         const AttentionRows& rows) override {
    const ProductCopy copy = product_copy(rows.out, token_count_, shape.heads * shape.head_dim);
    for (const PlanGroup& group : inputs_.plan().groups) {
      const size_t first = group.tasks.front();
      const KvPageLayout& layout = *tasks[first].layout;
      const int64_t offset = tasks[first].pages.offset;
      const PairRing ring{offset + layout.k_offset(),
                          offset + layout.v_offset(),
                          kKvPageTokens,
                          layout.row_bytes(),
                          layout.pair_type(),
                          static_cast<int>(shape.heads),
                          static_cast<int>(shape.kv_heads),
                          static_cast<int>(shape.head_dim),
                          static_cast<int>(shape.group_size())};
      const PieceSpan whole = inputs_.whole_tasks(group);
      append_pairs(stream_, ring, whole, rows, true);
      is_rounded_ = is_rounded_ && rounds_heads(ring);
      softmax_attend(stream_, ring, whole, rows, copy,
                     get<float>(softmax_partials_, softmax_partials(ring, whole)));
    }
  }

  void keep_logits(const float* logits, int64_t vocabulary) override {
    top_ = {inputs_.kept_count(), vocabulary, best_found(inputs_.best(), vocabulary)};
    const int64_t bytes = top_.rows * top_.row_bytes();
    if (bytes > found_room_) make_room_for_found(bytes);
    auto* found = get<uint8_t>(device_found_, bytes);
    lola::keep_logits(stream_, logits, top_, inputs_.kept(),
                      get<uint8_t>(keep_scratch_, keep_scratch_bytes(top_)), found);
    cuda_check(cudaMemcpyAsync(found_, found, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost,
                               stream_.handle),
               "best logits");
  }

  std::span<const TopLogits> top_logits() override {
    top_rows_.clear();
    if (top_.rows == 0) return {};
    cuda_check(cudaStreamSynchronize(stream_.handle), "pass");
    for (int64_t i = 0; i < top_.rows; ++i) {
      auto* row = reinterpret_cast<TopRow*>(found_ + i * top_.row_bytes());
      top_rows_.push_back(
          {top_.vocabulary, row->total, {row->candidates(), static_cast<size_t>(row->count)}});
    }
    return top_rows_;
  }

 private:
  static DeviceMatrix matrix(const WeightMatrix& weight) {
    return device_matrix(weight.format->type, weight.data, weight.rows, weight.cols);
  }

  template <typename T>
  T* get(DeviceScratch& scratch, int64_t count) {
    bool grown = false;
    T* memory = scratch.get<T>(count, grown);
    if (grown) graphs_.clear();
    return memory;
  }

  // Where the copies of an activation go that is being computed. There is one of each: what is
  // multiplied next is what was computed last.
  ProductCopy product_copy(const float* of, int64_t rows, int64_t width) {
    copy_of_ = of;
    is_rounded_ = rows == 1 && width % kPieceWeights == 0;
    ProductCopy copy{
        get<__half>(halves_, rows * padded(width)), static_cast<int>(padded(width)), {}};
    if (is_rounded_) {
      copy.rounded = {get<int8_t>(rounded_, padded(width)),
                      get<float4>(rounded_groups_, padded(width) / kPieceWeights)};
    }
    copy_ = copy;
    return copy;
  }

  void multiply(std::span<const DeviceJob> jobs, const float* x, int64_t tokens, int64_t cols) {
    if (x != copy_of_ || (tokens == 1 && !is_rounded_)) {
      copy_rows(stream_, x, tokens, cols, product_copy(x, tokens, cols));
    }
    const HalfRows halves{copy_.halves, static_cast<int>(tokens), copy_.stride};
    DeviceJobs in_halves{}, in_integers{};
    const auto flush = [&](DeviceJobs& jobs_together, const auto& launch_jobs) {
      if (jobs_together.count > 0) launch_jobs(jobs_together);
      jobs_together.count = 0;
    };
    const auto run_halves = [&](const DeviceJobs& own) { gemv(stream_, own, halves); };
    const auto run_integers = [&](const DeviceJobs& own) {
      gemv_rounded(stream_, own, copy_.rounded);
    };
    for (const DeviceJob& job : jobs) {
      if (tokens > kGemvTokens) {
        multiply_many(job, cols, halves);
        continue;
      }
      const bool integers = tokens == 1 && is_rounded_ && job.matrix.encoding != Encoding::kF16;
      DeviceJobs& together = integers ? in_integers : in_halves;
      together.job[together.count++] = job;
      if (in_integers.count == kMaxJobs) flush(in_integers, run_integers);
      if (in_halves.count == kMaxJobs) flush(in_halves, run_halves);
    }
    flush(in_integers, run_integers);
    flush(in_halves, run_halves);
  }

  void multiply_many(const DeviceJob& job, int64_t cols, const HalfRows& x) {
    if (cublas_ != nullptr && x.tokens >= kCublasTokens && cols % kCublasColumns == 0) {
      auto* weight = get<__half>(decoded_, job.matrix.rows * cols);
      dequantize(stream_, job.matrix, cols, weight);
      cublas_->multiply(stream_, job, weight, cols, x);
      return;
    }
    const int64_t partials = gemm_partials(job, x.tokens, device_->multiprocessors());
    gemm(stream_, job, x, device_->multiprocessors(), get<float>(gemm_partials_, partials));
  }

  // Scores depend on what queries depend on, and not on their answers: where a piece is long both
  // are computed side by side.
  void attend_and_pass(const LolaView& view, const LolaConfig& config,
                       const PlanGroup::Round& round, const PieceSpan& pieces,
                       const AttentionRows& rows, const ProductCopy& copy) {
    const int64_t most = view.sparse_capacity + config.chunk_size;
    const int64_t each = boundary_scratch_bytes(view, most);
    const int64_t at_once =
        std::clamp<int64_t>(kBoundaryBytes / each, 1, std::max<int64_t>(round.boundaries, 1));
    // Taken before the streams part: memory that grows is cleared on the first of them.
    auto* memory = get<uint8_t>(boundary_scratch_, each * std::min(at_once, round.boundaries));
    const bool beside = pieces.most_tokens > 1 && round.boundaries > 0;
    if (beside) fork_stream();
    if (!beside) lola_attend(stream_, view, pieces, rows, copy);
    for (int64_t begin = 0; begin < round.boundaries; begin += at_once) {
      const BoundarySpan span{inputs_.boundaries(round) + begin,
                              static_cast<int>(std::min(at_once, round.boundaries - begin))};
      const BoundaryScratch scratch = boundary_scratch(view, most, span.count, memory);
      score_boundaries(beside && begin == 0 ? beside_ : stream_, view, *config.policy, span,
                       scratch);
      if (beside && begin == 0) {
        lola_attend(stream_, view, pieces, rows, copy);
        join_stream();
      }
      settle_boundaries(stream_, view, span, scratch);
    }
  }

  // beside_ goes on from where stream_ is.
  void fork_stream() {
    cuda_check(cudaEventRecord(forked_, stream_.handle), "event");
    cuda_check(cudaStreamWaitEvent(beside_.handle, forked_, 0), "event");
  }
  // stream_ goes on once beside_ has done what it was given.
  void join_stream() {
    cuda_check(cudaEventRecord(joined_, beside_.handle), "event");
    cuda_check(cudaStreamWaitEvent(stream_.handle, joined_, 0), "event");
  }

  void make_room_for_found(int64_t bytes) {
    if (found_ != nullptr) {
      cuda_check(cudaStreamSynchronize(device_->stream().handle), "pass");
      cudaFreeHost(found_);
    }
    found_ = nullptr;
    found_room_ = 0;
    void* memory = nullptr;
    cuda_check(cudaMallocHost(&memory, static_cast<size_t>(bytes)), "pinned memory");
    found_ = static_cast<uint8_t*>(memory);
    found_room_ = bytes;
    graphs_.clear();
  }

  std::shared_ptr<CudaDevice> device_;
  Stream stream_;  // the device's, or one that records
  Stream beside_;  // for what may run at the same time
  cudaEvent_t forked_ = nullptr, joined_ = nullptr;
  std::span<const PassTask> tasks_;
  int64_t token_count_ = 0;
  UploadBuffers uploads_{*device_};
  PassInputs inputs_{*device_};
  StepGraphs graphs_{*device_};
  std::unique_ptr<Cublas> cublas_ = Cublas::find(*device_);
  DeviceScratch halves_{*device_};
  DeviceScratch rounded_{*device_};
  DeviceScratch rounded_groups_{*device_};
  DeviceScratch decoded_{*device_};  // one matrix as float16, for cublas
  DeviceScratch gemm_partials_{*device_};
  DeviceScratch softmax_partials_{*device_};
  DeviceScratch boundary_scratch_{*device_};
  DeviceScratch keep_scratch_{*device_};
  DeviceScratch device_found_{*device_};
  const float* copy_of_ = nullptr;
  bool is_rounded_ = false;
  ProductCopy copy_{};
  TopShape top_{};            // of the latest keep_logits()
  uint8_t* found_ = nullptr;  // its rows, pinned
  int64_t found_room_ = 0;
  std::vector<TopLogits> top_rows_;
};

}  // namespace

std::unique_ptr<Executor> make_cuda_executor(std::shared_ptr<CudaDevice> device) {
  return std::make_unique<CudaExecutor>(std::move(device));
}

}  // namespace lola

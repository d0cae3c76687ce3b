#include <algorithm>
#include <vector>

#include "backend/cuda/cuda_executor.cuh"
#include "backend/cuda/elementwise.cuh"
#include "backend/cuda/lola_ops.cuh"
#include "backend/cuda/pass_inputs.cuh"
#include "backend/cuda/products.cuh"
#include "backend/cuda/softmax_attention.cuh"
#include "backend/cuda/step_graphs.cuh"
#include "backend/cuda/top_logits.cuh"

namespace lola {
namespace {

constexpr int64_t kLargeUpload = int64_t{16} << 20;
constexpr int64_t kRunBytes = int64_t{256} << 20;  // of scratch for the boundaries of a run

class CudaExecutor final : public Executor {
 public:
  explicit CudaExecutor(std::shared_ptr<CudaDevice> device)
      : device_(std::move(device)), stream_(device_->stream()) {
    cuda_check(cudaStreamCreateWithPriority(&beside_.handle, cudaStreamNonBlocking, kUrgent),
               "stream");
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
    complete();
    cuda_check(cudaMemcpyAsync(to_host, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost,
                               stream_.handle),
               "download");
    cuda_check(cudaStreamSynchronize(stream_.handle), "download");
  }

  void copy(void* to, const void* from, int64_t bytes) override {
    if (bytes <= 0 || to == from) return;
    complete();
    cuda_check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice,
                               stream_.handle),
               "copy");
  }

  const float* begin_pass(std::span<const PassTask> tasks, std::span<const int32_t> tokens,
                          std::span<const float> angles) override {
    tasks_ = tasks;
    token_count_ = static_cast<int64_t>(tokens.size());
    top_.rows = 0;
    rope_ = {};
    products_.forget();
    uploads_.turn();
    bool grown = false;
    inputs_.set(tasks, tokens, angles, kRunBytes, uploads_, grown);
    if (grown) graphs_.clear();
    return inputs_.angles();
  }

  void run(std::span<const int64_t> key, const std::function<void()>& body) override {
    const auto all = [&] {
      body();
      flush();
      products_.forget();
      join_boundaries();
    };
    if (key.empty()) return all();
    std::vector<int64_t> whole(key.begin(), key.end());
    const std::vector<int64_t> shape = inputs_.plan().shape();
    whole.insert(whole.end(), shape.begin(), shape.end());
    whole.push_back(inputs_.best());
    graphs_.run(whole, [&](const Stream& stream) {
      stream_ = stream;
      products_.forget();
      all();
      stream_ = device_->stream();
    });
    stream_ = device_->stream();
    top_.rows = inputs_.kept_count();
    top_.best = best_found(inputs_.best(), top_.vocabulary);
  }

  void embed(const WeightMatrix& table, float* out) override {
    flush();
    const bool f32 = table.format->type == QuantType::kF32;
    embed_rows(stream_, device_matrix(table.format->type, table.data, table.rows, table.cols),
               f32 ? reinterpret_cast<const float*>(table.data) : nullptr, inputs_.tokens(),
               token_count_, table.cols, out);
  }

  void rms_norm(const float* x, int64_t rows, int64_t dim, const float* weight, float eps,
                float* out) override {
    flush_rope();
    products_.norm(stream_, x, rows, dim, weight, eps, out);
  }

  void matmul(const float* x, int64_t tokens, std::span<const MatmulJob> jobs) override {
    flush_rope();
    products_.multiply(stream_, x, tokens, jobs);
  }

  // Rotations wait for the attention that reads them.
  void rope(const RopeRows& rows) override {
    flush();
    rope_ = rows;
  }

  void silu_gate(float* gate, const float* up, int64_t rows, int64_t width) override {
    flush_rope();
    products_.gate(stream_, gate, up, rows, width);
  }

  void announce(std::span<const WeightMatrix* const> weights) override {
    products_.decode_ahead(stream_, token_count_, weights);
  }

  void lola_attention(const LolaLayer& layer, std::span<const LolaTask> tasks,
                      const AttentionRows& rows) override {
    products_.flush(stream_);
    std::vector<LolaView> views;
    bool in_one = rope_.q == rows.q;  // all of it single queries with kernels of their own
    for (const PlanGroup& group : inputs_.plan().groups) {
      const size_t first = group.tasks.front();
      views.push_back(lola_view(layer, group.config, *tasks[first].layout,
                                tasks[first].memory - tasks_[first].memory));
      in_one = in_one && group.most_tokens == 1 && answers_one(views.back());
    }
    if (!in_one) flush_rope();
    const ProductCopy copy =
        products_.copy_of(rows.out, token_count_, layer.shape.heads * layer.shape.head_dim,
                          in_one && rounds_heads(views.front()));
    // Memory that grows loses what it holds: it grows before boundaries are passed beside.
    for (size_t i = 0; i < views.size() && in_one; ++i) {
      const PlanGroup& group = inputs_.plan().groups[i];
      for (const PlanRun& run : group.runs) {
        if (run.chains > 0) scratch_of(views[i], run, group.config, 0);
      }
    }
    for (size_t i = 0; i < views.size(); ++i) {
      const PlanGroup& group = inputs_.plan().groups[i];
      if (!in_one) {
        attend_group(views[i], group, rows, copy);
        continue;
      }
      attend_one(views[i], inputs_.whole_tasks(group), rows, copy);
      for (const PlanRun& run : group.runs) pass_beside(views[i], group.config, run);
    }
    rope_ = {};
  }

  void softmax_attention(const AttentionShape& shape, std::span<const SoftmaxTask> tasks,
                         const AttentionRows& rows) override {
    flush();
    const ProductCopy copy = products_.copy_of(rows.out, token_count_, shape.heads * shape.head_dim,
                                               shape.head_dim % kPieceWeights == 0);
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
      append_pairs(stream_, ring, whole, rows, PairTarget::kPages);
      softmax_attend(stream_, ring, whole, rows, copy,
                     get<float>(softmax_partials_, softmax_partials(ring, whole)));
    }
  }

  void keep_logits(const float* logits, int64_t vocabulary) override {
    flush();
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
  template <typename T>
  T* get(DeviceScratch& scratch, int64_t count) {
    bool grown = false;
    T* memory = scratch.get<T>(count, grown);
    if (grown) graphs_.clear();
    return memory;
  }

  void flush_rope() {
    if (rope_.q != nullptr) lola::rope(stream_, rope_);
    rope_ = {};
  }
  void complete() {
    products_.complete(stream_);
    flush_rope();
  }
  // What waits for what follows it goes to the stream.
  void flush() {
    products_.flush(stream_);
    flush_rope();
  }

  void attend_one(const LolaView& view, const PieceSpan& pieces, const AttentionRows& rows,
                  const ProductCopy& copy) {
    if (answers_in_cluster(*device_, view, pieces)) {
      return lola_attend_cluster(stream_, view, pieces, rows, rope_, copy);
    }
    const int multiprocessors = device_->multiprocessors();
    const OneSizes sizes = one_sizes(view, pieces.count, multiprocessors);
    const OneScratch scratch{get<float>(one_features_, sizes.features),
                             get<float>(one_partials_, sizes.partials),
                             get<unsigned>(one_counters_, sizes.counters)};
    prepare_queries(stream_, view, pieces, rows, rope_, scratch.features);
    lola_attend_one(stream_, view, pieces, rows, copy, multiprocessors, scratch);
  }

  // What the layer remembers is needed in the next pass only: its boundaries are passed beside what
  // follows in this one.
  void pass_beside(const LolaView& view, const LolaConfig& config, const PlanRun& run) {
    if (run.chains == 0) return;
    const RunScratch scratch = scratch_of(view, run, config, 0);
    fork_stream();
    if (!pass_in_place(*device_, beside_, view, *config.policy,
                       inputs_.boundaries(run.rounds.front()), scratch)) {
      pass_run(beside_, view, config, run, scratch);
      keep_versions(beside_, view, inputs_.chains(run), scratch);
    }
    is_beside_ = true;
  }

  void join_boundaries() {
    if (is_beside_) join_stream();
    is_beside_ = false;
  }

  RunScratch scratch_of(const LolaView& view, const PlanRun& run, const LolaConfig& config,
                        int64_t tokens) {
    const RunSizes sizes = run_sizes(view, run, config, tokens);
    RunScratch scratch{};
    auto* memory = get<uint8_t>(run_scratch_, run_scratch(view, sizes, nullptr, scratch));
    run_scratch(view, sizes, memory, scratch);
    scratch.counters = get<unsigned>(run_counters_, sizes.boundaries * view.owners());
    return scratch;
  }

  void pass_run(const Stream& stream, const LolaView& view, const LolaConfig& config,
                const PlanRun& run, const RunScratch& scratch) {
    if (run.chains > 0) map_keys(stream, view, inputs_.chains(run), run.most_pairs, scratch);
    if (run.chains == 1 &&
        pass_chain(stream, view, *config.policy, inputs_.chain_boundaries(run), scratch)) {
      return;
    }
    for (const PlanRun::Round& round : run.rounds) {
      pass_boundaries(stream, view, *config.policy, inputs_.boundaries(round), scratch);
    }
  }

  void attend_group(const LolaView& view, const PlanGroup& group, const AttentionRows& rows,
                    const ProductCopy& copy) {
    const PieceSpan whole = inputs_.whole_tasks(group);
    // Memory that grows loses what it holds: it grows before the first run.
    for (const PlanRun& run : group.runs) scratch_of(view, run, group.config, token_count_);
    const RunScratch pass = scratch_of(view, group.runs.front(), group.config, token_count_);
    append_pairs(stream_, pass_pairs(view, pass), whole, rows, PairTarget::kPass, pass.pass_k);
    map_queries(stream_, view, whole, rows, pass);
    for (const PlanRun& run : group.runs) {
      const RunScratch scratch = scratch_of(view, run, group.config, token_count_);
      if (run.attends_own) lola_attend(stream_, view, inputs_.pieces(run), rows, copy, scratch);
      pass_run(stream_, view, group.config, run, scratch);
      if (!run.attends_own) lola_attend(stream_, view, inputs_.pieces(run), rows, copy, scratch);
      if (run.chains > 0) keep_versions(stream_, view, inputs_.chains(run), scratch);
    }
    append_pairs(stream_, view, whole, rows, PairTarget::kRing);
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
  Stream stream_;                  // the device's, or one that records
  Stream beside_{nullptr, false};  // for what may run at the same time
  cudaEvent_t forked_ = nullptr, joined_ = nullptr;
  std::span<const PassTask> tasks_;
  int64_t token_count_ = 0;
  UploadBuffers uploads_{*device_};
  PassInputs inputs_{*device_};
  StepGraphs graphs_{*device_};
  Products products_{*device_, [this] { graphs_.clear(); }};
  RopeRows rope_{};         // that waits
  bool is_beside_ = false;  // whether boundaries are passed on beside_
  DeviceScratch one_features_{*device_};
  DeviceScratch one_partials_{*device_};
  DeviceScratch one_counters_{*device_};
  DeviceScratch softmax_partials_{*device_};
  DeviceScratch run_scratch_{*device_};
  DeviceScratch run_counters_{*device_};
  DeviceScratch keep_scratch_{*device_};
  DeviceScratch device_found_{*device_};
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

#include "backend/cpu/cpu_backend.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "backend/cpu/softmax_attention.h"
#include "base/cpu_count.h"
#include "base/error.h"
#include "base/system.h"
#include "base/thread_pool.h"

namespace lola {
namespace {

constexpr int64_t kAlignment = 64;           // bytes, a cache line
constexpr int64_t kElementsPerTask = 16384;  // of the elementwise operations

class CpuExecutor final : public Executor {
 public:
  CpuExecutor(const Kernels& kernels, ThreadPool& pool)
      : kernels_(kernels), pool_(pool), scratch_(static_cast<size_t>(pool.threads())) {}

  void upload(void* to, const void* from_host, int64_t bytes) override {
    copy(to, from_host, bytes);
  }
  void download(void* to_host, const void* from, int64_t bytes) override {
    copy(to_host, from, bytes);
  }
  void copy(void* to, const void* from, int64_t bytes) override {
    if (bytes > 0 && to != from) std::memcpy(to, from, static_cast<size_t>(bytes));
  }

  const float* begin_pass(std::span<const PassTask> tasks, std::span<const int32_t> tokens,
                          std::span<const float> angles) override {
    tasks_ = tasks;
    tokens_ = tokens;
    return angles.data();
  }
  void run(std::span<const int64_t>, const std::function<void()>& body) override { body(); }

  void embed(const WeightMatrix& table, float* out) override {
    for (size_t row = 0; row < tokens_.size(); ++row) {
      decode_row(table, tokens_[row], out + static_cast<int64_t>(row) * table.cols);
    }
  }

  void rms_norm(const float* x, int64_t rows, int64_t dim, const float* weight, float eps,
                float* out) override {
    for_rows(rows, dim, [&](int64_t row) {
      kernels_.rms_norm(x + row * dim, weight, dim, eps, out + row * dim);
    });
  }

  void matmul(const float* x, int64_t tokens, std::span<const MatmulJob> jobs) override {
    lola::matmul(kernels_, pool_, matmul_scratch_, x, jobs.front().weight->cols, tokens, jobs);
  }

  void rope(const RopeRows& rows) override {
    const auto rotate =
        rows.layout == RopeLayout::kInterleaved ? kernels_.rope_interleaved : kernels_.rope_half;
    const auto rotate_heads = [&](float* x, int64_t heads) {
      for_rows(rows.rows, heads * rows.shape.head_dim, [&](int64_t row) {
        for (int64_t head = 0; head < heads; ++head) {
          rotate(x + (row * heads + head) * rows.shape.head_dim, rows.cosine + row * rows.pairs,
                 rows.sine + row * rows.pairs, rows.pairs);
        }
      });
    };
    rotate_heads(rows.q, rows.shape.heads);
    rotate_heads(rows.k, rows.shape.kv_heads);
  }

  void silu_gate(float* gate, const float* up, int64_t rows, int64_t width) override {
    for_ranges(rows * width, [&](int64_t begin, int64_t size) {
      kernels_.silu_gate(gate + begin, up + begin, size);
    });
  }

  void lola_attention(const LolaLayer& layer, std::span<const LolaTask> tasks,
                      const AttentionRows& rows) override {
    const int64_t kv_heads = layer.shape.kv_heads;
    const int64_t q_stride = layer.shape.heads * layer.shape.head_dim;
    const int64_t kv_stride = kv_heads * layer.shape.head_dim;
    pool_.parallel_for(static_cast<int64_t>(tasks.size()) * kv_heads, [&](int64_t i, int thread) {
      const LolaTask& task = tasks[static_cast<size_t>(i / kv_heads)];
      const QkvRows qkv{rows.q, q_stride, rows.k, kv_stride, rows.v, kv_stride};
      advance_kv_head(kernels_, layer, *task.config, *task.layout, task.memory, i % kv_heads,
                      qkv.from(task.row), task.tokens, task.position,
                      rows.out + task.row * q_stride, q_stride,
                      scratch_[static_cast<size_t>(thread)]);
    });
  }

  void softmax_attention(const AttentionShape& shape, std::span<const SoftmaxTask> tasks,
                         const AttentionRows& rows) override {
    cpu_softmax_attention(kernels_, pool_, shape, tasks, rows, scratch_, partials_);
  }

  void keep_logits(const float* logits, int64_t vocabulary) override {
    for (const PassTask& task : tasks_) {
      if (task.logits == nullptr) continue;
      copy(task.logits, logits, vocabulary * static_cast<int64_t>(sizeof(float)));
      logits += vocabulary;
    }
  }
  std::span<const TopLogits> top_logits() override { return {}; }

 private:
  template <typename Body>
  void for_rows(int64_t rows, int64_t width, const Body& body) {
    const int64_t rows_per_task = std::max<int64_t>(1, kElementsPerTask / width);
    pool_.parallel_for((rows + rows_per_task - 1) / rows_per_task, [&](int64_t task, int) {
      const int64_t end = std::min(rows, (task + 1) * rows_per_task);
      for (int64_t row = task * rows_per_task; row < end; ++row) body(row);
    });
  }

  template <typename Body>
  void for_ranges(int64_t count, const Body& body) {
    pool_.parallel_for((count + kElementsPerTask - 1) / kElementsPerTask, [&](int64_t task, int) {
      const int64_t begin = task * kElementsPerTask;
      body(begin, std::min(kElementsPerTask, count - begin));
    });
  }

  const Kernels& kernels_;
  ThreadPool& pool_;
  std::span<const PassTask> tasks_;
  std::span<const int32_t> tokens_;
  MatmulScratch matmul_scratch_;
  std::vector<LolaScratch> scratch_;  // one per thread
  std::vector<float> partials_;       // of softmax attention
};

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(int threads) : kernels_(select_kernels()), pool_(threads) {}

  std::string describe() const override {
    return message("cpu, ", kernels_.name, ", ", pool_.threads(),
                   pool_.threads() == 1 ? " thread" : " threads");
  }

  // What may wait before a cancellation takes effect; larger passes are no faster.
  int64_t pass_tokens() const override { return 512; }
  void check(const AttentionShape&) const override {}

  int64_t free_bytes() const override { return available_memory(); }
  int64_t stored_bytes(const WeightMatrix& file, WeightUse use) const override {
    return use == WeightUse::kRows ? 0 : panel_bytes(file);
  }

  Buffer allocate(int64_t bytes, const std::string& what, Fill) const override {
    // calloc takes zero pages from the system, so memory that is never used is never resident.
    void* raw = std::calloc(1, static_cast<size_t>(bytes + kAlignment));
    if (raw == nullptr) {
      throw DeviceError(message(what, ": the system has no ", bytes, " bytes of memory left"));
    }
    const uintptr_t address = reinterpret_cast<uintptr_t>(raw);
    const uintptr_t aligned = (address + kAlignment - 1) / kAlignment * kAlignment;
    return Buffer(reinterpret_cast<void*>(aligned), bytes, [raw](void*) { std::free(raw); });
  }

  // A product writes some columns of every row: with small pages each row is another page to find.
  Buffer allocate_activations(int64_t bytes) const override {
    Buffer buffer = Backend::allocate_activations(bytes);
    advise_huge_pages(buffer.as<void>(), static_cast<size_t>(bytes));
    return buffer;
  }

  WeightMatrix load(const WeightMatrix& file, WeightUse use) override {
    if (use == WeightUse::kRows) return file;
    const int64_t bytes = panel_bytes(file);
    Buffer panels = allocate(bytes, "a weight", Fill::kNothing);
    uint8_t* out = panels.as<uint8_t>();
    advise_huge_pages(out, static_cast<size_t>(bytes));
    const int64_t count = (file.rows + kPanelRows - 1) / kPanelRows;
    pool_.parallel_for(count, [&](int64_t panel, int) { write_panel(file, panel, out); });
    weights_.push_back(std::move(panels));
    return {file.format, out, file.rows, file.cols, true};
  }

  std::unique_ptr<Executor> make_executor() override {
    return std::make_unique<CpuExecutor>(kernels_, pool_);
  }

 private:
  const Kernels& kernels_;
  ThreadPool pool_;
  std::vector<Buffer> weights_;
};

}  // namespace

std::shared_ptr<Backend> make_cpu_backend(const BackendOptions& options) {
  return std::make_shared<CpuBackend>(options.threads == 0 ? default_thread_count()
                                                           : options.threads);
}

}  // namespace lola

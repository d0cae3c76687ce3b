// The narrow interface between the engine and what it computes on.
//
// A Backend holds weights and memory; it is shared by all threads. An Executor runs operations, one
// caller at a time (on a GPU it is a stream). Every pointer an Executor takes is memory of its
// backend; activations are float32 and row-major.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "base/buffer.h"
#include "kernels/matmul.h"
#include "kernels/top_logits.h"
#include "lola/advance.h"
#include "memory/kv_cache.h"
#include "memory/layer_memory.h"

namespace lola {

enum class RopeLayout {
  kInterleaved,  // pairs (2i, 2i + 1): architecture llama
  kHalf,         // pairs (i, i + d/2): qwen2, qwen3
};

// The tokens of one session in a pass: rows [row, row + tokens) of the activations, at absolute
// positions from `position`.
struct LolaTask {
  const LolaConfig* config;
  const LayerMemoryLayout* layout;
  uint8_t* memory;
  int64_t position;
  int64_t row;
  int64_t tokens;
};

struct SoftmaxTask {
  const KvPageLayout* layout;
  KvPages pages;
  int64_t position;
  int64_t row;
  int64_t tokens;
};

// One session's share of a pass: rows [row, row + tokens) of the activations.
struct PassTask {
  const LolaConfig* config;
  const LayerMemoryLayout* layout;  // of each of its LoLA layers; null where there are none
  uint8_t* memory;                  // of all its LoLA layers
  uint8_t* const* pages;            // of all its softmax layers
  int64_t position;
  int64_t row;
  int64_t tokens;
  float* logits;  // [vocabulary], of its last token; null where they are not kept
  int64_t best;   // of these logits, how many of the best are asked for: 1 or more
};

// Rotates q [rows, heads * head_dim] and k [rows, kv_heads * head_dim] in place; cosine and sine
// [rows, pairs] are for the first 2 * pairs values of every head.
struct RopeRows {
  float* q;
  float* k;
  int64_t rows;
  AttentionShape shape;
  const float* cosine;
  const float* sine;
  int64_t pairs;
  RopeLayout layout;
};

// q [rows, heads * head_dim], k and v [rows, kv_heads * head_dim], out like q; all after RoPE.
struct AttentionRows {
  const float* q;
  const float* k;
  const float* v;
  float* out;
};

class Executor {
 public:
  virtual ~Executor() = default;

  virtual void upload(void* to, const void* from_host, int64_t bytes) = 0;
  virtual void download(void* to_host, const void* from, int64_t bytes) = 0;
  virtual void copy(void* to, const void* from, int64_t bytes) = 0;

  // Says what the operations from here on work on. Host memory, needed until the pass is over.
  // Returns where `angles` (cosines and sines for RopeRows) are in the backend's memory until then.
  virtual const float* begin_pass(std::span<const PassTask> tasks, std::span<const int32_t> tokens,
                                  std::span<const float> angles) = 0;
  // Runs the operations that `body` calls. Where an earlier body of the same key (not empty) called
  // the same operations on the same memory, besides what begin_pass() said, a backend may repeat
  // those instead.
  virtual void run(std::span<const int64_t> key, const std::function<void()>& body) = 0;

  // out [tokens, table.cols] of the pass's tokens.
  virtual void embed(const WeightMatrix& table, float* out) = 0;
  // out [rows, dim] = x / rms(x) * weight [dim]
  virtual void rms_norm(const float* x, int64_t rows, int64_t dim, const float* weight, float eps,
                        float* out) = 0;
  // x [tokens, cols]; jobs share it.
  virtual void matmul(const float* x, int64_t tokens, std::span<const MatmulJob> jobs) = 0;
  // These are multiplied with soon, in this order: a backend may bring them nearer.
  virtual void announce(std::span<const WeightMatrix* const> /*weights*/) {}
  virtual void rope(const RopeRows& rows) = 0;
  // gate = silu(gate) * up, [rows, width]
  virtual void silu_gate(float* gate, const float* up, int64_t rows, int64_t width) = 0;

  // Attention of one layer for every task, which also moves its pairs through the memories.
  virtual void lola_attention(const LolaLayer& layer, std::span<const LolaTask> tasks,
                              const AttentionRows& rows) = 0;
  virtual void softmax_attention(const AttentionShape& shape, std::span<const SoftmaxTask> tasks,
                                 const AttentionRows& rows) = 0;

  // Row i of logits [kept tasks, vocabulary] to the i-th task of the pass that keeps its logits.
  virtual void keep_logits(const float* logits, int64_t vocabulary) = 0;
  // Of the rows of the latest keep_logits(), once they are there; until the next pass. Empty where
  // the backend leaves the choice to the sampler. Another thread may upload, download and copy
  // meanwhile.
  virtual std::span<const TopLogits> top_logits() = 0;
};

enum class WeightUse {
  kProducts,
  kRows,  // only embed() reads it
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string describe() const = 0;  // "cpu, avx2, 2 threads"; a name of the device first

  // The most tokens that a pass should take.
  virtual int64_t pass_tokens() const = 0;
  // Whether operations may return before they are done, so that the host can do something else.
  virtual bool runs_behind() const { return false; }

  // UnsupportedError where it cannot run such layers.
  virtual void check(const AttentionShape& shape) const = 0;

  // Bytes of memory that may still be taken; the largest number where nobody knows.
  virtual int64_t free_bytes() const = 0;
  // Bytes that load() takes for a weight, `file` being as in load(); its data is not looked at.
  virtual int64_t stored_bytes(const WeightMatrix& file, WeightUse use) const = 0;

  // DeviceError with the number of bytes and `what` when there is not enough.
  virtual Buffer allocate(int64_t bytes, const std::string& what,
                          Fill fill = Fill::kZeros) const = 0;
  // The same for memory that every pass uses from one end to the other.
  virtual Buffer allocate_activations(int64_t bytes) const {
    return allocate(bytes, "activations of a pass");
  }

  // The row-wise weight `file` as this backend wants it for its use: a copy, which lives as long as
  // the backend, or `file` itself, whose mapping must outlive it. DeviceError when there is not
  // enough memory.
  virtual WeightMatrix load(const WeightMatrix& file, WeightUse use) = 0;

  virtual std::unique_ptr<Executor> make_executor() = 0;
};

struct BackendOptions {
  int threads = 0;  // 0: physical cores
};

// One row per device name; UnsupportedError lists the names.
std::shared_ptr<Backend> make_backend(const std::string& device, const BackendOptions& options);

}  // namespace lola

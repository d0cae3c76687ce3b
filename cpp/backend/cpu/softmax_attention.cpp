#include "backend/cpu/softmax_attention.h"

#include <algorithm>

namespace lola {
namespace {

// A long cache read by few queries is split into ranges of this many pairs, so that threads share
// it. The split does not depend on the number of threads, and so neither does the result.
constexpr int64_t kRangePairs = 1024;
constexpr int64_t kFewTokens = 8;

// Queries of some tokens of one task, for one kv head.
struct Piece {
  const SoftmaxTask* task;
  int64_t kv_head;
  int64_t first;  // token of the task
  int64_t tokens;
  int64_t ranges;         // parts of the cache that are attended to separately
  int64_t first_partial;  // offset of its partial sums

  int64_t position() const { return task->position + first; }
  int64_t pairs() const { return position() + tokens; }
};

// One range of one piece: what a thread does at a time.
struct Work {
  size_t piece;
  int64_t range;
};

class SoftmaxAttention {
 public:
  SoftmaxAttention(const Kernels& kernels, ThreadPool& pool, const AttentionShape& shape,
                   const AttentionRows& rows, std::vector<LolaScratch>& scratch)
      : kernels_(kernels), pool_(pool), shape_(shape), rows_(rows), scratch_(scratch) {}

  void run(std::span<const SoftmaxTask> tasks, std::vector<float>& partials) {
    append(tasks);
    plan(tasks, partials);
    pool_.parallel_for(static_cast<int64_t>(works_.size()), [&](int64_t i, int thread) {
      attend(works_[static_cast<size_t>(i)], thread);
    });
    pool_.parallel_for(static_cast<int64_t>(pieces_.size()),
                       [&](int64_t i, int) { merge(pieces_[static_cast<size_t>(i)]); });
  }

 private:
  int64_t q_stride() const { return shape_.heads * shape_.head_dim; }
  int64_t kv_stride() const { return shape_.kv_heads * shape_.head_dim; }
  int64_t sums_size(const Piece& piece) const {
    return exact_sums_size(shape_.group_size() * piece.tokens, shape_.head_dim);
  }

  SoftmaxHead head(const SoftmaxTask& task, int64_t kv_head, int thread) const {
    return {kernels_,   shape_,  *task.layout,
            task.pages, kv_head, scratch_[static_cast<size_t>(thread)]};
  }

  void append(std::span<const SoftmaxTask> tasks) {
    const int64_t heads = shape_.kv_heads;
    pool_.parallel_for(static_cast<int64_t>(tasks.size()) * heads, [&](int64_t i, int thread) {
      const SoftmaxTask& task = tasks[static_cast<size_t>(i / heads)];
      const QkvRows qkv{rows_.q, q_stride(), rows_.k, kv_stride(), rows_.v, kv_stride()};
      append_to_cache(head(task, i % heads, thread), qkv.from(task.row), task.tokens,
                      task.position);
    });
  }

  void plan(std::span<const SoftmaxTask> tasks, std::vector<float>& partials) {
    int64_t floats = 0;
    for (const SoftmaxTask& task : tasks) {
      for (int64_t first = 0; first < task.tokens; first += kPieceTokens) {
        for (int64_t kv_head = 0; kv_head < shape_.kv_heads; ++kv_head) {
          Piece piece{&task, kv_head, first, std::min(kPieceTokens, task.tokens - first),
                      1,     floats};
          if (piece.tokens <= kFewTokens) {
            piece.ranges = (piece.pairs() + kRangePairs - 1) / kRangePairs;
          }
          for (int64_t range = 0; range < piece.ranges; ++range)
            works_.push_back({pieces_.size(), range});
          floats += piece.ranges * sums_size(piece);
          pieces_.push_back(piece);
        }
      }
    }
    if (partials.size() < static_cast<size_t>(floats)) partials.resize(static_cast<size_t>(floats));
    partials_ = partials.data();
  }

  ExactSums start_sums(const Piece& piece, int64_t range) const {
    float* memory = partials_ + piece.first_partial + range * sums_size(piece);
    return start_exact_sums(memory, shape_.group_size() * piece.tokens, shape_.head_dim);
  }

  void attend(const Work& work, int thread) const {
    const Piece& piece = pieces_[work.piece];
    const int64_t begin = piece.ranges == 1 ? 0 : work.range * kRangePairs;
    const int64_t end =
        piece.ranges == 1 ? piece.pairs() : std::min(piece.pairs(), begin + kRangePairs);
    const float* q = rows_.q + (piece.task->row + piece.first) * q_stride();
    softmax_attend_range(head(*piece.task, piece.kv_head, thread), q, q_stride(), piece.tokens,
                         piece.position(), begin, end, start_sums(piece, work.range));
  }

  void merge(const Piece& piece) const {
    const int64_t queries = shape_.group_size() * piece.tokens;
    const auto sums = [&](int64_t range) {
      float* memory = partials_ + piece.first_partial + range * sums_size(piece);
      return ExactSums{memory, memory + queries, memory + 2 * queries};
    };
    for (int64_t range = 1; range < piece.ranges; ++range) {
      merge_exact_sums(kernels_, queries, shape_.head_dim, sums(range), sums(0));
    }
    float* out = rows_.out + (piece.task->row + piece.first) * q_stride();
    write_softmax(shape_, piece.kv_head, piece.tokens, sums(0), out, q_stride());
  }

  const Kernels& kernels_;
  ThreadPool& pool_;
  const AttentionShape& shape_;
  const AttentionRows& rows_;
  std::vector<LolaScratch>& scratch_;
  std::vector<Piece> pieces_;
  std::vector<Work> works_;
  float* partials_ = nullptr;
};

}  // namespace

void cpu_softmax_attention(const Kernels& kernels, ThreadPool& pool, const AttentionShape& shape,
                           std::span<const SoftmaxTask> tasks, const AttentionRows& rows,
                           std::vector<LolaScratch>& scratch, std::vector<float>& partials) {
  SoftmaxAttention(kernels, pool, shape, rows, scratch).run(tasks, partials);
}

}  // namespace lola

#include "kernels/matmul.h"

#include <algorithm>
#include <new>

#include "base/error.h"
#include "base/system.h"
#include "kernels/matmul_kernels.h"

namespace lola {
namespace {

constexpr int64_t kTilesPerThread = 8;  // enough that a slow core delays nobody
constexpr int64_t kMinTileBytes =
    16 * 1024;  // below this, handing out a tile costs more than it brings
constexpr int64_t kMinParallelValues = 1 << 15;  // likewise for rounding activations
constexpr std::align_val_t kAlignment{64};
constexpr int64_t kFewTokens = 8;  // up to here the time of a product is that of reading weights

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool any_quantized(std::span<const MatmulJob> jobs) {
  return std::any_of(jobs.begin(), jobs.end(),
                     [](const MatmulJob& job) { return job.weight->format->group_size != 0; });
}

void check(std::span<const MatmulJob> jobs) {
  for (const MatmulJob& job : jobs) {
    if (!job.weight->panels) throw UsageError("weight of a product: found rows, wanted panels");
    if (job.weight->cols == jobs[0].weight->cols) continue;
    throw UsageError(message("weights of one product: found ", job.weight->cols,
                             " columns, wanted as many as the first has, ", jobs[0].weight->cols));
  }
}

// [cols / kGroup, tokens]
const ActivationGroup* round_activations(const MatmulKernels& kernels, ThreadPool& pool,
                                         MatmulScratch& scratch, const float* x, int64_t x_stride,
                                         int64_t tokens, int64_t cols) {
  const size_t count = static_cast<size_t>(ceil_div(cols, kGroup) * tokens);
  auto* groups =
      reinterpret_cast<ActivationGroup*>(scratch.get(0, count * sizeof(ActivationGroup)));
  const auto round = [&](int64_t token, int) {
    kernels.round_activations(x + token * x_stride, cols, groups + token, tokens);
  };
  if (tokens > 1 && tokens * cols >= kMinParallelValues) {
    pool.parallel_for(tokens, round);
  } else {
    for (int64_t token = 0; token < tokens; ++token) round(token, 0);
  }
  return groups;
}

// Whole panels; with many tokens at most as many as share the activations.
int64_t rows_per_tile(const ThreadPool& pool, int64_t tokens, std::span<const MatmulJob> jobs) {
  int64_t rows = 0;
  int64_t bytes = 0;
  for (const MatmulJob& job : jobs) {
    rows += job.weight->rows;
    bytes += job.weight->rows * job.weight->row_bytes();
  }
  const int64_t tiles = kTilesPerThread * pool.threads();
  const int64_t fair = ceil_div(std::max<int64_t>(rows, 1), tiles);
  const int64_t row_bytes = std::max<int64_t>(bytes / std::max<int64_t>(rows, 1), 1);
  const int64_t wanted = std::max(fair, ceil_div(kMinTileBytes, row_bytes));
  const int64_t panels = ceil_div(wanted, kPanelRows);
  return kPanelRows * (tokens > kFewTokens ? std::min<int64_t>(panels, kMaxTilePanels) : panels);
}

}  // namespace

void MatmulScratch::Delete::operator()(uint8_t* data) const { ::operator delete(data, kAlignment); }

uint8_t* MatmulScratch::get(int index, size_t bytes) {
  const size_t wanted = static_cast<size_t>(index) + 1;
  if (memories_.size() < wanted) memories_.resize(wanted);
  Memory& memory = memories_[static_cast<size_t>(index)];
  if (memory.bytes < bytes) {
    memory = {};
    memory.data.reset(static_cast<uint8_t*>(::operator new(bytes, kAlignment)));
    memory.bytes = bytes;
    advise_huge_pages(memory.data.get(), bytes);
  }
  return memory.data.get();
}

void matmul(const Kernels& kernels, ThreadPool& pool, MatmulScratch& scratch, const float* x,
            int64_t x_stride, int64_t tokens, std::span<const MatmulJob> jobs) {
  if (tokens <= 0 || jobs.empty()) return;
  check(jobs);
  const MatmulKernels& isa = *kernels.matmul;
  for (int thread = pool.threads() - 1; thread >= 0; --thread) {
    scratch.get(1 + thread, isa.scratch_bytes);  // grown here: workers only read
  }
  const ActivationGroup* groups = nullptr;
  if (any_quantized(jobs)) {
    groups = round_activations(isa, pool, scratch, x, x_stride, tokens, jobs[0].weight->cols);
  }
  const int64_t tile_rows = rows_per_tile(pool, tokens, jobs);
  int64_t tiles = 0;
  for (const MatmulJob& job : jobs) tiles += ceil_div(job.weight->rows, tile_rows);
  pool.parallel_for(tiles, [&](int64_t tile, int thread) {
    const MatmulJob* job = jobs.data();
    for (int64_t own; tile >= (own = ceil_div(job->weight->rows, tile_rows)); ++job) tile -= own;
    const int64_t begin = tile * tile_rows;
    const int64_t end = std::min(begin + tile_rows, job->weight->rows);
    isa.multiply({job->weight, begin, end, tokens, x, x_stride, groups, job->bias, job->out,
                  job->out_stride, job->accumulate},
                 scratch.get(1 + thread, isa.scratch_bytes));
  });
}

}  // namespace lola

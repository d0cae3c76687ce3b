// Products with 9 to some hundred tokens on GPUs of compute capability 9.0: a block multiplies 256
// rows; a warp decodes 16 of them into registers, from where warpgroup products take them. The
// columns are split among the blocks of a cluster, which add their sums up through shared memory.
#include <cooperative_groups.h>

#include <algorithm>

#include "backend/cuda/matmul.cuh"
#include "backend/cuda/wgmma.cuh"

namespace lola {
namespace {

constexpr int kWarps = 16;
constexpr int kThreads = kWarps * 32;
constexpr int kBlockRows = kWarps * static_cast<int>(kSlabRows);
constexpr int kStepColumns = static_cast<int>(kSlabPieces * kPieceWeights);
constexpr int kStages = 4;        // two are filled while one is multiplied and one is let go
constexpr int kMostSplits = 8;    // blocks of a cluster
constexpr int kAlignment = 1024;  // of swizzled rows
constexpr int kSumsStride = kBlockRows + 4;

int64_t shared_bytes(int tokens) {
  const int64_t stages = int64_t{kStages} * tokens * kStepColumns * 2;
  return std::max(stages, int64_t{4} * tokens * kSumsStride) + kAlignment;
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

constexpr int kFarSteps = 5;  // ahead, to the second-level cache

// Columns of one step for kTokens tokens, in two blocks of 64 columns.
template <int kTokens>
__device__ inline void fetch_tokens(const HalfRows& x, int first, int step, uint8_t* stage) {
  for (int i = threadIdx.x; i < kTokens * 16; i += kThreads) {
    const int token = i / 16, chunk = i % 16;
    const bool real = first + token < x.tokens;
    const __half* from = x.data + static_cast<int64_t>(real ? first + token : 0) * x.stride +
                         step * kStepColumns + chunk * 8;
    uint8_t* to = stage + (chunk / 8 * kTokens + token) * 128 + ((chunk ^ token) & 7) * 16;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                     static_cast<uint32_t>(__cvta_generic_to_shared(to))),
                 "l"(from), "r"(real ? 16 : 0));
  }
}
__device__ inline void commit_fetch() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// sums [kTokens / 2] of a lane.
template <int kTokens>
struct WideTile {
  const DeviceMatrix& matrix;
  const HalfRows& x;
  uint8_t* shared;  // [kStages, 2, kTokens, 128 bytes]
  int first_token;
  int tile;        // the warp's
  int begin, end;  // steps
  float* sums;

  static constexpr int kStageBytes = kTokens * kStepColumns * 2;

  template <Encoding e>
  __device__ void load(Piece<e> (&pieces)[2], int step) const {
    const int lane = threadIdx.x % 32;
    pieces[0] = load_piece<e>(matrix, tile, step, lane);
    pieces[1] = load_piece<e>(matrix, tile, step, lane + 32);
  }

  template <Encoding e>
  __device__ void prefetch(int step) const {
    constexpr int kLines = code_vectors(e) * 8;
    const int64_t slab = static_cast<int64_t>(tile) * matrix.steps + step;
    const int lane = threadIdx.x % 32;
    if (step >= end || lane > kLines) return;
    const void* at = lane < kLines
                         ? static_cast<const void*>(matrix.codes + slab * kLines * 8 + lane * 8)
                         : matrix.scales + slab * kSlabPlaces * 2;
    asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
  }

  template <Encoding e>
  __device__ void run() const {
    // Where registers allow, the next slab is on its way during a multiplication.
    constexpr bool kAhead = code_vectors(e) == 1;
    Piece<e> now[2], next[2];
    if constexpr (kAhead) load<e>(next, begin);
    for (int i = 1; i < kFarSteps; ++i) prefetch<e>(begin + i);
    wait_for_previous_kernel();
    for (int i = 0; i < 2; ++i) {
      if (begin + i < end) fetch_tokens<kTokens>(x, first_token, begin + i, stage(i));
      commit_fetch();
    }
    for (int step = begin; step < end; ++step) {
      asm volatile("cp.async.wait_group 1;" ::: "memory");
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
      __syncthreads();
      if (step + 2 < end) {
        fetch_tokens<kTokens>(x, first_token, step + 2, stage(step - begin + 2));
      }
      commit_fetch();
      if constexpr (kAhead) {
        now[0] = next[0], now[1] = next[1];
        if (step + 1 < end) load<e>(next, step + 1);
      } else {
        load<e>(now, step);
      }
      prefetch<e>(step + kFarSteps);
      multiply<e>(now, static_cast<uint32_t>(__cvta_generic_to_shared(stage(step - begin))));
    }
    wgmma_wait<0>();
  }

  __device__ uint8_t* stage(int step) const { return shared + step % kStages * kStageBytes; }

  template <Encoding e>
  __device__ void multiply(const Piece<e> (&pieces)[2], uint32_t tokens) const {
    const Factors upper = factors_of<e>(pieces[0]), lower = factors_of<e>(pieces[1]);
    __half2 a[2][2][4];  // by turns, so that one word is decoded while the other is multiplied
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      __half2 u[4], l[4];
      decode_eight<e>(pieces[0], upper, word, u);
      decode_eight<e>(pieces[1], lower, word, l);
      wgmma_wait<1>();
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        a[word % 2][i / 2][i % 2 * 2] = u[i];
        a[word % 2][i / 2][i % 2 * 2 + 1] = l[i];
      }
      wgmma_fence();
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int k = word * 2 + half;
        const uint32_t at = tokens + k / 4 * kTokens * 128 + k % 4 * 32;
        wgmma<kTokens>(sums, a[word % 2][half], wgmma_operand(at));
      }
      wgmma_commit();
    }
  }
};

// The sums of a block [kTokens, kSumsStride] from its lanes' registers.
template <int kTokens>
__device__ inline void store_sums(const float* sums, float* to) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) {
    const int token = i / 4 * 8 + lane % 4 * 2 + i % 2;
    to[token * kSumsStride + warp * static_cast<int>(kSlabRows) + lane / 4 + i / 2 % 2 * 8] =
        sums[i];
  }
}
#endif

// Grid: splits, row tiles of all jobs, token tiles; the blocks of a split are a cluster.
template <int kTokens>
__global__ void __launch_bounds__(kThreads, 1)
    wide_kernel(const __grid_constant__ DeviceJobs jobs, const __grid_constant__ HalfRows x) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ uint8_t unaligned[];
  uint8_t* shared =
      unaligned +
      (kAlignment - 1 - (__cvta_generic_to_shared(unaligned) + kAlignment - 1) % kAlignment);
  int tile = blockIdx.y, index = 0;
  for (; index + 1 < jobs.count; ++index) {
    const int tiles = (jobs.job[index].matrix.rows + kBlockRows - 1) / kBlockRows;
    if (tile < tiles) break;
    tile -= tiles;
  }
  const DeviceJob& job = jobs.job[index];
  const int splits = gridDim.x, split = blockIdx.x, all_steps = job.matrix.steps;
  const int first_token = blockIdx.z * kTokens, warp = threadIdx.x / 32;
  const int last_tile = (job.matrix.rows - 1) / static_cast<int>(kSlabRows);
  float sums[kTokens / 2] = {};
  with_encoding(
      job.matrix.encoding,
      WideTile<kTokens>{job.matrix, x, shared, first_token, min(tile * kWarps + warp, last_tile),
                        all_steps * split / splits, all_steps * (split + 1) / splits, sums});
  __syncthreads();
  auto* own = reinterpret_cast<float*>(shared);
  store_sums<kTokens>(sums, own);
  const auto cluster = cooperative_groups::this_cluster();
  cluster.sync();
  const int row = threadIdx.x % kBlockRows, lanes = kThreads / kBlockRows;
  const int out_row = tile * kBlockRows + row;
  for (int i = threadIdx.x / kBlockRows * splits + split; i < kTokens; i += lanes * splits) {
    if (first_token + i >= x.tokens || out_row >= job.matrix.rows) break;
    float parts[kMostSplits], sum = 0.0f;
#pragma unroll
    for (int s = 0; s < kMostSplits; ++s) {
      parts[s] = s < splits ? cluster.map_shared_rank(own, s)[i * kSumsStride + row] : 0.0f;
    }
#pragma unroll
    for (int s = 0; s < kMostSplits; ++s) sum += parts[s];
    finish(job, first_token + i, out_row, sum);
  }
  cluster.sync();
#endif
}

int splits_of(int64_t blocks, int steps, int multiprocessors) {
  int splits = 1;
  while (splits < kMostSplits && blocks * splits * 2 <= multiprocessors && steps >= splits * 4) {
    splits *= 2;
  }
  return splits;
}

template <int kTokens>
void launch_wide(const Stream& stream, const DeviceJobs& jobs, const HalfRows& x,
                 int multiprocessors) {
  int64_t tiles = 0;
  for (int i = 0; i < jobs.count; ++i) tiles += ceil_div(jobs.job[i].matrix.rows, kBlockRows);
  const int64_t token_tiles = ceil_div(x.tokens, kTokens);
  const int splits = splits_of(tiles * token_tiles, jobs.job[0].matrix.steps, multiprocessors);
  launch_cluster(stream, wide_kernel<kTokens>, grid_of(splits, tiles, token_tiles), kThreads,
                 shared_bytes(kTokens), splits, jobs, x);
}

}  // namespace

void gemm_wide(const Stream& stream, const DeviceJobs& jobs, const HalfRows& x,
               int multiprocessors) {
  if (x.tokens <= 32) {
    launch_wide<32>(stream, jobs, x, multiprocessors);
  } else if (x.tokens <= 64) {
    launch_wide<64>(stream, jobs, x, multiprocessors);
  } else {
    launch_wide<128>(stream, jobs, x, multiprocessors);
  }
}

}  // namespace lola

// Products with 9 to some hundred tokens on GPUs of compute capability 9.0: a block multiplies 256
// rows; a warp decodes 16 of them into registers, from where warpgroup products take them. The
// columns are split among the blocks of a cluster, which add their sums up through shared memory.
#include <cooperative_groups.h>

#include <algorithm>
#include <array>

#include "backend/cuda/bulk_copy.cuh"
#include "backend/cuda/matmul.cuh"
#include "backend/cuda/wgmma.cuh"

namespace lola {
namespace {

constexpr int kWarps = 16;
constexpr int kThreads = kWarps * 32;
constexpr int kBlockRows = kWarps * static_cast<int>(kSlabRows);
constexpr int kStepColumns = static_cast<int>(kSlabPieces * kPieceWeights);
template <int kTokens>
constexpr int kStages = kTokens <= 64 ? 8 : 4;
constexpr int kMostSplits = 8;    // blocks of a cluster
constexpr int kAlignment = 1024;  // of swizzled rows
constexpr int kSumsStride = kBlockRows + 4;

template <int kTokens>
constexpr int64_t shared_bytes() {
  constexpr int64_t kBytes = int64_t{kStages<kTokens>} * kTokens * kStepColumns * 2;
  return std::max(kBytes, int64_t{4} * kTokens * kSumsStride) + kAlignment;
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// The columns of a tile of tokens on their way to shared memory, step by step.
template <int kTokens>
struct TokenRing {
  uint8_t* stages;       // [kAll, 2, kTokens, 128 bytes]
  Barrier *full, *free;  // [kAll]
  const __half* from;    // of the first step
  int steps;

  static constexpr int kAll = kStages<kTokens>;
  static constexpr int kAhead = kAll / 2;  // fetched; the others let warps drift apart
  static constexpr int kStageBytes = kTokens * kStepColumns * 2;

  __device__ void begin() const {
    for (int i = 0; i < kAll && threadIdx.x == 0; ++i) full[i].set(1), free[i].set(kWarps);
    if (threadIdx.x == 0) show_barriers();
    __syncthreads();
  }
  __device__ void fetch(int step) const {
    if (threadIdx.x != 0 || step >= steps) return;
    const int i = step % kAll;
    free[i].wait((step / kAll + 1) % 2);
    full[i].expect(kStageBytes);
    bulk_copy(stages + i * kStageBytes, from + step * kTokens * kStepColumns, kStageBytes, full[i]);
  }
  // A step's columns, once they are there.
  __device__ uint32_t wait(int step) const {
    const int i = step % kAll;
    full[i].wait(step / kAll % 2);
    __syncwarp();
    return wgmma_operand(shared_address(stages + i * kStageBytes));
  }
  __device__ void let_go(int step) const {
    if (threadIdx.x % 32 == 0) free[step % kAll].arrive();
  }
};

// What a lane reads of a row tile, step by step: load_piece(here, 0, 0, 0) and (here, 0, 0, 32).
template <Encoding e>
struct SlabReader {
  DeviceMatrix here;

  static constexpr bool kByRows = e == Encoding::kF16;
  static constexpr int kPlaces = static_cast<int>(kSlabPlaces);
  static constexpr int kCodeVectors = code_vectors(e);
  static constexpr int kHighBytes = high_words(e) * 4;  // of a piece
  static constexpr int kScaleBytes = e == Encoding::kInteger ? 16 : e == Encoding::kF16 ? 0 : 2;

  __device__ SlabReader(const DeviceMatrix& matrix, int tile, int step) : here(matrix) {
    const int lane = threadIdx.x % 32;
    const int64_t slab = static_cast<int64_t>(tile) * matrix.steps + step;
    const int64_t row = static_cast<int64_t>(tile) * kSlabRows + lane / 4;
    here.codes += kByRows ? (row * matrix.steps + step) * kHalfChunks + lane % 4
                          : slab * kPlaces * kCodeVectors + lane;
    here.high += (slab * kPlaces + lane) * kHighBytes;
    here.scales += (slab * kPlaces + lane) * kScaleBytes;
    here.supers += (static_cast<int64_t>(tile) * matrix.blocks + step / 2) * kSlabRows + lane / 4;
  }
  // To the step after `step`, or nowhere.
  __device__ void go_on(int step, bool moves) {
    const int slabs = moves ? 1 : 0;
    here.codes += slabs * (kByRows ? static_cast<int>(kHalfChunks) : kPlaces * kCodeVectors);
    here.high += slabs * kPlaces * kHighBytes;
    here.scales += slabs * kPlaces * kScaleBytes;
    here.supers += (slabs & step) * static_cast<int>(kSlabRows);
  }
  // `count` slabs, from `ahead` after this one on, to the second-level cache.
  __device__ void prefetch(int ahead, int count) const {
    const int lane = threadIdx.x % 32;
    if (count <= 0) return;
    const auto bring = [count](const void* at, int64_t first, int bytes) {
      if (bytes == 0) return;
      asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(
                       static_cast<const uint8_t*>(at) + first * bytes),
                   "r"(count * bytes));
    };
    if constexpr (kByRows) {
      constexpr int kBytes = static_cast<int>(kHalfChunks) * 16;
      if (lane % 4 != 0) return;
      bring(here.codes, ahead, kBytes);
      bring(here.codes, int64_t{8} * here.steps + ahead, kBytes);
    } else if (lane == 0) {
      bring(here.codes, ahead, kPlaces * kCodeVectors * 16);
      bring(here.high, ahead, kPlaces * kHighBytes);
      bring(here.scales, ahead, kPlaces * kScaleBytes);
    }
  }
};

// sums [kTokens / 2] of a lane.
template <int kTokens>
struct WideTile {
  const DeviceMatrix& matrix;
  const TokenRing<kTokens>& ring;
  int tile;   // the warp's
  int begin;  // of the ring's steps
  float* sums;

  template <Encoding e>
  __device__ void run() const {
    constexpr int kFar = 4;  // steps that are prefetched together
    SlabReader<e> reader(matrix, tile, begin);
    reader.prefetch(1, min(2 * kFar, ring.steps) - 1);
    Piece<e> pieces[2];
    load<e>(reader, pieces);
    wait_for_previous_kernel();
    for (int i = 0; i < ring.kAhead; ++i) ring.fetch(i);
    for (int step = 0; step < ring.steps; ++step) {
      const uint32_t tokens = ring.wait(step);
      reader.go_on(begin + step, step + 1 < ring.steps);
      multiply<e>(pieces, tokens, reader);
      if (step > 0) ring.let_go(step - 1);
      // What is multiplied meanwhile hides this.
      ring.fetch(step + ring.kAhead);
      if (step % kFar == 0) reader.prefetch(2 * kFar - 1, min(kFar, ring.steps - step - 2 * kFar));
    }
    wgmma_wait<0>();
  }

  template <Encoding e>
  __device__ void load(const SlabReader<e>& reader, Piece<e> (&pieces)[2]) const {
    pieces[0] = load_piece<e>(reader.here, 0, 0, 0);
    pieces[1] = load_piece<e>(reader.here, 0, 0, 32);
  }

  // Then the pieces are the reader's. All but the last product is done.
  template <Encoding e>
  __device__ void multiply(Piece<e> (&pieces)[2], uint32_t tokens,
                           const SlabReader<e>& reader) const {
    constexpr bool kInPlace = e == Encoding::kF16;  // products read the pieces themselves
    constexpr bool kEarly = code_vectors(e) == 1;   // there are registers for two steps' pieces
    Piece<e> next[2];
    const Factors upper = factors_of<e>(pieces[0]), lower = factors_of<e>(pieces[1]);
    __half2 a[2][2][4];  // by turns, so that one word is decoded while the other is multiplied
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      __half2 u[4], l[4];
      decode_eight<e>(pieces[0], upper, word, u);
      decode_eight<e>(pieces[1], lower, word, l);
      if (word == 1 && kEarly) load<e>(reader, next);
      if (word == 3 && !kEarly && !kInPlace) load<e>(reader, pieces);
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
        wgmma<kTokens>(sums, a[word % 2][half], tokens + k / 4 * kTokens * 8 + k % 4 * 2);
      }
      wgmma_commit();
    }
    if constexpr (kInPlace) {
      wgmma_wait<0>();
      load<e>(reader, pieces);
    }
    if constexpr (kEarly) pieces[0] = next[0], pieces[1] = next[1];
  }
};

// Calls put(token, row, value) for the sums of a lane.
template <int kTokens, typename Put>
__device__ inline void for_sums(const float* sums, const Put& put) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) {
    put(i / 4 * 8 + lane % 4 * 2 + i % 2,
        warp * static_cast<int>(kSlabRows) + lane / 4 + i / 2 % 2 * 8, sums[i]);
  }
}

// The sums of a cluster's blocks [kTokens, kSumsStride] added up, each block some of the tokens.
template <int kTokens, typename Put>
__device__ inline void join_splits(const float* sums, float* own, const Put& put) {
  for_sums<kTokens>(
      sums, [&](int token, int row, float value) { own[token * kSumsStride + row] = value; });
  const auto cluster = cooperative_groups::this_cluster();
  const int splits = static_cast<int>(cluster.num_blocks());
  const int row = threadIdx.x % kBlockRows, lanes = kThreads / kBlockRows;
  const int first = threadIdx.x / kBlockRows * splits + static_cast<int>(cluster.block_rank());
  cluster.sync();
  for (int i = first; i < kTokens; i += lanes * splits) {
    float parts[kMostSplits], sum = 0.0f;
#pragma unroll
    for (int s = 0; s < kMostSplits; ++s) {
      parts[s] = s < splits ? cluster.map_shared_rank(own, s)[i * kSumsStride + row] : 0.0f;
    }
#pragma unroll
    for (int s = 0; s < kMostSplits; ++s) sum += parts[s];
    put(i, row, sum);
  }
  cluster.sync();
}
#endif

// Grid: splits, row tiles of all jobs, token tiles; the blocks of a split are a cluster.
template <int kTokens>
__global__ void __launch_bounds__(kThreads, 1)
    wide_kernel(const __grid_constant__ DeviceJobs jobs, const __grid_constant__ HalfRows x) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ uint8_t unaligned[];
  __shared__ Barrier full[kStages<kTokens>], free[kStages<kTokens>];
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
  const int splits = gridDim.x, all_steps = job.matrix.steps;
  const int begin = all_steps * blockIdx.x / splits;
  const int steps = all_steps * (blockIdx.x + 1) / splits - begin;
  const __half* from = x.data + (int64_t{blockIdx.z} * all_steps + begin) * kTokens * kStepColumns;
  const TokenRing<kTokens> ring{shared, full, free, from, steps};
  ring.begin();
  const int last_tile = (job.matrix.rows - 1) / static_cast<int>(kSlabRows);
  const int own_tile = min(tile * kWarps + static_cast<int>(threadIdx.x) / 32, last_tile);
  float sums[kTokens / 2] = {};
  with_encoding(job.matrix.encoding, WideTile<kTokens>{job.matrix, ring, own_tile, begin, sums});
  const auto put = [&](int token, int row, float sum) {
    const int out_token = blockIdx.z * kTokens + token, out_row = tile * kBlockRows + row;
    if (out_token < x.tokens && out_row < job.matrix.rows) finish(job, out_token, out_row, sum);
  };
  if (splits == 1) return for_sums<kTokens>(sums, put);
  __syncthreads();
  join_splits<kTokens>(sums, reinterpret_cast<float*>(shared), put);
#endif
}

// How many clusters of so many blocks run at a time: fewer than the multiprocessors would hold
// where their number in a part of the GPU is no multiple of the blocks.
template <int kTokens>
const std::array<int, kMostSplits + 1>& resident_clusters() {
  static const auto found = [] {
    std::array<int, kMostSplits + 1> most{};
    for (int splits = 1; splits <= kMostSplits; ++splits) {
      most[static_cast<size_t>(splits)] =
          most_clusters(wide_kernel<kTokens>, kThreads, shared_bytes<kTokens>(), splits);
    }
    return most;
  }();
  return found;
}

// What takes the fewest steps one after the other.
template <int kTokens>
int splits_of(int64_t tiles, int steps) {
  constexpr int kOthers = 3;  // steps' worth of starting and joining
  const auto& resident = resident_clusters<kTokens>();
  int best = 1;
  int64_t least = INT64_MAX;
  for (int splits = 1; splits <= kMostSplits && steps >= splits * 4; ++splits) {
    const int64_t waves = ceil_div(tiles, std::max(1, resident[static_cast<size_t>(splits)]));
    const int64_t took = waves * (ceil_div(steps, splits) + kOthers);
    if (took < least) best = splits, least = took;
  }
  return best;
}

template <int kTokens>
void launch_wide(const Stream& stream, const DeviceJobs& jobs, const HalfRows& x) {
  int64_t tiles = 0;
  for (int i = 0; i < jobs.count; ++i) tiles += ceil_div(jobs.job[i].matrix.rows, kBlockRows);
  const int64_t token_tiles = ceil_div(x.tokens, kTokens);
  const int splits = splits_of<kTokens>(tiles * token_tiles, jobs.job[0].matrix.steps);
  launch_cluster(stream, wide_kernel<kTokens>, grid_of(splits, tiles, token_tiles), kThreads,
                 shared_bytes<kTokens>(), splits, jobs, x);
}

}  // namespace

void gemm_wide(const Stream& stream, const DeviceJobs& jobs, const HalfRows& x) {
  switch (wide_tile_bits(x.tokens)) {
    case 5:
      return launch_wide<32>(stream, jobs, x);
    case 6:
      return launch_wide<64>(stream, jobs, x);
    default:
      return launch_wide<128>(stream, jobs, x);
  }
}

}  // namespace lola

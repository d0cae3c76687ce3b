// Products with few tokens: a block of 8 warps multiplies 16 rows, each warp a part of the columns.
#include "backend/cuda/matmul.cuh"

namespace lola {
namespace {

constexpr int kWarps = 8;

// Slabs that a warp has on their way at a time: some 2 KiB.
template <Encoding e>
constexpr int slabs_in_flight() {
  return code_vectors(e) == 1 ? 2 : 1;
}

// sums [4] of a lane: rows lane / 4 and lane / 4 + 8, tokens lane % 4 * 2 and the next.
struct RowTile {
  const DeviceMatrix& matrix;
  const HalfRows& x;
  int tile;
  float* sums;

  template <Encoding e>
  __device__ void run() const {
    constexpr int kSlabs = slabs_in_flight<e>();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const bool has_token = lane / 4 < x.tokens;
    const __half* tokens =
        x.data + (has_token ? lane / 4 * x.stride : 0) + lane % 4 * kPieceWeights;
    bool waited = false;
    for (int begin = warp; begin < matrix.steps || !waited; begin += kWarps * kSlabs) {
      Piece<e> upper[kSlabs], lower[kSlabs];
#pragma unroll
      for (int i = 0; i < kSlabs; ++i) {
        const int step = begin + i * kWarps;
        if (step >= matrix.steps) break;
        upper[i] = load_piece<e>(matrix, tile, step, lane);
        lower[i] = load_piece<e>(matrix, tile, step, lane + 32);
      }
      if (!waited) wait_for_previous_kernel();
      waited = true;
#pragma unroll
      for (int i = 0; i < kSlabs; ++i) {
        const int step = begin + i * kWarps;
        if (step >= matrix.steps) break;
        multiply(upper[i], lower[i], tokens + step * kSlabPieces * kPieceWeights, has_token);
      }
    }
  }

  template <Encoding e>
  __device__ void multiply(const Piece<e>& upper, const Piece<e>& lower, const __half* tokens,
                           bool has_token) const {
    const Factors upper_factors = factors_of<e>(upper), lower_factors = factors_of<e>(lower);
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      uint4 b{};
      if (has_token) b = *reinterpret_cast<const uint4*>(tokens + word * 8);
      __half2 u[4], l[4];
      decode_eight<e>(upper, upper_factors, word, u);
      decode_eight<e>(lower, lower_factors, word, l);
      const __half2 first[4] = {u[0], l[0], u[1], l[1]}, second[4] = {u[2], l[2], u[3], l[3]};
      mma(sums, first, b.x, b.y);
      mma(sums, second, b.z, b.w);
    }
  }
};

// The job that a block works on, and its row tile.
__device__ inline const DeviceJob& job_of(const DeviceJobs& jobs, int& tile) {
  int index = 0;
  for (; index + 1 < jobs.count; ++index) {
    const int tiles = (jobs.job[index].matrix.rows + kSlabRows - 1) / kSlabRows;
    if (tile < tiles) break;
    tile -= tiles;
  }
  return jobs.job[index];
}

// How the one-token kernel is cut: long rows among more warps, so that two blocks fill a
// multiprocessor; slabs: that a warp has on their way at a time.
struct Short {
  static constexpr int kWarps = 8, kBlocks = 3, kSlabs = 4;
};
struct Long {
  static constexpr int kWarps = 16, kBlocks = 2, kSlabs = 2;
};
constexpr int kLongSteps = 64;

// Products with one rounded row: sums [2] of a lane are of the rows lane / 4 and lane / 4 + 8.
template <typename Cut>
struct RoundedTile {
  const DeviceMatrix& matrix;
  const RoundedRow& x;
  int tile;
  float* sums;

  template <Encoding e>
  __device__ void run() const {
    if constexpr (e != Encoding::kF16) run_steps<e>();
  }

  template <Encoding e>
  __device__ void run_steps() const {
    constexpr int kSlabs = code_vectors(e) == 1 ? Cut::kSlabs : 2;
    constexpr int kWarps = Cut::kWarps;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    bool waited = false;
    for (int begin = warp; begin < matrix.steps || !waited; begin += kWarps * kSlabs) {
      Piece<e> upper[kSlabs], lower[kSlabs];
#pragma unroll
      for (int i = 0; i < kSlabs; ++i) {
        const int step = min(begin + i * kWarps, matrix.steps - 1);
        upper[i] = load_piece<e>(matrix, tile, step, lane);
        lower[i] = load_piece<e>(matrix, tile, step, lane + 32);
      }
      if (!waited) wait_for_previous_kernel();
      waited = true;
#pragma unroll
      for (int i = 0; i < kSlabs; ++i) {
        const int step = begin + i * kWarps;
        if (step >= matrix.steps) break;
        const int piece = step * kSlabPieces + lane % 4;
        const auto* q = reinterpret_cast<const uint4*>(x.q + piece * kPieceWeights);
        const uint4 values[2] = {q[0], q[1]};
        const float4 group = x.groups[piece];
        sums[0] += rounded_product<e>(upper[i], values, group);
        sums[1] += rounded_product<e>(lower[i], values, group);
      }
    }
  }
};

template <typename Cut>
__global__ void __launch_bounds__(Cut::kWarps * 32, Cut::kBlocks)
    rounded_kernel(const __grid_constant__ DeviceJobs jobs, const __grid_constant__ RoundedRow x) {
  __shared__ float parts[Cut::kWarps][kSlabRows];
  int tile = blockIdx.x;
  const DeviceJob& job = job_of(jobs, tile);
  float sums[2] = {};
  with_encoding(job.matrix.encoding, RoundedTile<Cut>{job.matrix, x, tile, sums});
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    sums[i] += __shfl_xor_sync(~0u, sums[i], 1);
    sums[i] += __shfl_xor_sync(~0u, sums[i], 2);
  }
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (lane % 4 < 2) parts[warp][lane / 4 + lane % 4 * 8] = lane % 4 == 0 ? sums[0] : sums[1];
  __syncthreads();
  const int row = tile * kSlabRows + threadIdx.x;
  if (threadIdx.x >= kSlabRows || row >= job.matrix.rows) return;
  float sum = 0.0f;
#pragma unroll
  for (int part = 0; part < Cut::kWarps; ++part) sum += parts[part][threadIdx.x];
  finish(job, 0, row, sum * kActivationScale);
}

__global__ void __launch_bounds__(kWarps * 32, 4)
    gemv_kernel(const __grid_constant__ DeviceJobs jobs, const __grid_constant__ HalfRows x) {
  __shared__ float parts[kWarps][kSlabRows][kGemvTokens + 1];
  int tile = blockIdx.x;
  const DeviceJob& job = job_of(jobs, tile);
  float sums[4] = {};
  with_encoding(job.matrix.encoding, RowTile{job.matrix, x, tile, sums});

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 4; ++i) parts[warp][lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2] = sums[i];
  __syncthreads();
  const int row = threadIdx.x % kSlabRows, token = threadIdx.x / kSlabRows;
  if (token >= x.tokens || tile * kSlabRows + row >= job.matrix.rows) return;
  float sum = 0.0f;
#pragma unroll
  for (int part = 0; part < kWarps; ++part) sum += parts[part][row][token];
  finish(job, token, tile * kSlabRows + row, sum);
}

int64_t tiles_of(const DeviceJobs& jobs) {
  int64_t tiles = 0;
  for (int i = 0; i < jobs.count; ++i) tiles += ceil_div(jobs.job[i].matrix.rows, kSlabRows);
  return tiles;
}

}  // namespace

void gemv(const Stream& stream, const DeviceJobs& jobs, const HalfRows& x) {
  launch(stream, gemv_kernel, grid_of(tiles_of(jobs)), kWarps * 32, 0, jobs, x);
}

void gemv_rounded(const Stream& stream, const DeviceJobs& jobs, const RoundedRow& x) {
  const auto run = [&]<typename Cut>(Cut) {
    launch(stream, rounded_kernel<Cut>, grid_of(tiles_of(jobs)), Cut::kWarps * 32, 0, jobs, x);
  };
  jobs.job[0].matrix.steps < kLongSteps ? run(Short()) : run(Long());
}

}  // namespace lola

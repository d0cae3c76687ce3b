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

__global__ void __launch_bounds__(kWarps * 32, 4)
    gemv_kernel(const __grid_constant__ DeviceJobs jobs, const __grid_constant__ HalfRows x) {
  __shared__ float parts[kWarps][kSlabRows][kGemvTokens + 1];
  int tile = blockIdx.x;
  int index = 0;
  for (; index + 1 < jobs.count; ++index) {
    const int tiles = (jobs.job[index].matrix.rows + kSlabRows - 1) / kSlabRows;
    if (tile < tiles) break;
    tile -= tiles;
  }
  const DeviceJob& job = jobs.job[index];
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

}  // namespace

void gemv(const Stream& stream, const DeviceJobs& jobs, const HalfRows& x) {
  int64_t tiles = 0;
  for (int i = 0; i < jobs.count; ++i) tiles += ceil_div(jobs.job[i].matrix.rows, kSlabRows);
  launch(stream, gemv_kernel, grid_of(tiles), kWarps * 32, 0, jobs, x);
}

}  // namespace lola

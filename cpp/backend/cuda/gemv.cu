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
    const __half* tokens = x.data + (has_token ? lane / 4 * x.stride : 0) + lane % 4 * 8;
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
      if (has_token) b = *reinterpret_cast<const uint4*>(tokens + word * kPieceWeights);
      __half2 u[4], l[4];
      decode_eight<e>(upper, upper_factors, word, u);
      decode_eight<e>(lower, lower_factors, word, l);
      const __half2 first[4] = {u[0], l[0], u[1], l[1]}, second[4] = {u[2], l[2], u[3], l[3]};
      mma(sums, first, b.x, b.y);
      mma(sums, second, b.z, b.w);
    }
  }
};

// The index of the job that a block works on; tile becomes the job's own.
__device__ inline int job_of(const DeviceJobs& jobs, int& tile) {
  int index = 0;
  for (; index + 1 < jobs.count; ++index) {
    const int tiles = (jobs.job[index].matrix.rows + kSlabRows - 1) / kSlabRows;
    if (tile < tiles) break;
    tile -= tiles;
  }
  return index;
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

// Products of a tile of one or two matrices (of one encoding) with a rounded row: sums [2] of a
// matrix and a lane are of the rows lane / 4 and lane / 4 + 8.
template <typename Cut, int kMatrices>
struct RoundedTile {
  const DeviceJobs& jobs;  // the first is job[first]
  const RoundedRow& x;
  int first;
  int tile;
  float (*sums)[2];

  template <Encoding e>
  __device__ void run() const {
    if constexpr (e != Encoding::kF16) run_steps<e>();
  }

  template <Encoding e>
  __device__ void run_steps() const {
    constexpr int kSlabs = (code_vectors(e) == 1 ? Cut::kSlabs : 2) / kMatrices;
    constexpr int kWarps = Cut::kWarps;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int steps = jobs.job[first].matrix.steps;
    bool waited = false;
    for (int begin = warp; begin < steps || !waited; begin += kWarps * kSlabs) {
      Piece<e> upper[kMatrices][kSlabs], lower[kMatrices][kSlabs];
#pragma unroll
      for (int i = 0; i < kMatrices * kSlabs; ++i) {
        const int step = min(begin + i % kSlabs * kWarps, steps - 1);
        const DeviceMatrix& matrix = jobs.job[first + i / kSlabs].matrix;
        upper[i / kSlabs][i % kSlabs] = load_piece<e>(matrix, tile, step, lane);
        lower[i / kSlabs][i % kSlabs] = load_piece<e>(matrix, tile, step, lane + 32);
      }
      if (!waited) wait_for_previous_kernel();
      waited = true;
#pragma unroll
      for (int i = 0; i < kSlabs; ++i) {
        const int step = begin + i * kWarps;
        if (step >= steps) break;
        const int piece = step * kSlabPieces + lane % 4;
        const auto* q = reinterpret_cast<const uint4*>(x.q + piece * kPieceWeights);
        const uint4 values[2] = {q[0], q[1]};
        const float4 group = reinterpret_cast<const float4*>(x.groups)[piece];
#pragma unroll
        for (int m = 0; m < kMatrices; ++m) {
          sums[m][0] += rounded_product<e>(upper[m][i], values, group);
          sums[m][1] += rounded_product<e>(lower[m][i], values, group);
        }
      }
    }
  }
};

// 1 / rms of the row whose squares were summed tile by tile, by a whole warp.
__device__ inline float factor_of(const RowFactor& row) {
  if (row.squares == nullptr) return 1.0f;
  float sum = 0.0f;
  for (int i = threadIdx.x % 32; i < row.count; i += 32) sum += row.squares[i];
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
  return 1.0f / sqrtf(sum / static_cast<float>(row.dim) + row.eps);
}

// What the 16 threads of a tile do with their rows' products.
template <Ending kEnding>
__device__ inline void end_rows(const DeviceJobs& jobs, const DeviceJob& job, int row,
                                const float* products, const RoundedEnding& ending) {
  constexpr unsigned kHalfWarp = 0xFFFFu;
  if constexpr (kEnding == Ending::kPlain) {
    if (row < job.matrix.rows) finish(job, 0, row, products[0] * kActivationScale);
  } else if constexpr (kEnding == Ending::kGated) {
    const float value = products[0] / (1.0f + expf(-products[0])) * products[1];
    jobs.job[0].out[row] = value;
    store_rounded(ending.rounded, row, value, kHalfWarp);
  } else {
    const float norm = ending.norm[row];
    finish(job, 0, row, products[0] * kActivationScale);
    const float value = job.out[row];
    store_rounded(ending.rounded, row, value * norm, kHalfWarp);
    float square = value * value;
    for (int offset = 8; offset > 0; offset /= 2) {
      square += __shfl_xor_sync(kHalfWarp, square, offset);
    }
    if (threadIdx.x == 0) ending.squares[row / kSlabRows] = square;
  }
}

template <typename Cut, Ending kEnding>
__global__ void __launch_bounds__(Cut::kWarps * 32, Cut::kBlocks)
    rounded_kernel(const __grid_constant__ DeviceJobs jobs, const __grid_constant__ RoundedRow x,
                   const __grid_constant__ RowFactor factor,
                   const __grid_constant__ RoundedEnding ending) {
  constexpr int kMatrices = kEnding == Ending::kGated ? 2 : 1;
  __shared__ float parts[Cut::kWarps][kMatrices * kSlabRows];
  int tile = blockIdx.x;
  const int index = kMatrices == 2 ? 0 : job_of(jobs, tile);
  const DeviceJob& job = jobs.job[index];
  float sums[kMatrices][2] = {};
  with_encoding(job.matrix.encoding, RoundedTile<Cut, kMatrices>{jobs, x, index, tile, sums});
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int m = 0; m < kMatrices; ++m) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      sums[m][i] += __shfl_xor_sync(~0u, sums[m][i], 1);
      sums[m][i] += __shfl_xor_sync(~0u, sums[m][i], 2);
    }
    const int place = m * static_cast<int>(kSlabRows) + lane / 4 + lane % 4 * 8;
    if (lane % 4 < 2) parts[warp][place] = lane % 4 == 0 ? sums[m][0] : sums[m][1];
  }
  const float scale = warp == 0 ? factor_of(factor) : 0.0f;
  __syncthreads();
  if (threadIdx.x >= kSlabRows) return;
  float products[kMatrices] = {};
#pragma unroll
  for (int part = 0; part < Cut::kWarps * kMatrices; ++part) {
    products[part % kMatrices] +=
        parts[part / kMatrices][part % kMatrices * kSlabRows + threadIdx.x];
  }
#pragma unroll
  for (int m = 0; m < kMatrices; ++m) products[m] *= scale;
  end_rows<kEnding>(jobs, job, tile * static_cast<int>(kSlabRows) + static_cast<int>(threadIdx.x),
                    products, ending);
}

__global__ void __launch_bounds__(kWarps * 32, 4)
    gemv_kernel(const __grid_constant__ DeviceJobs jobs, const __grid_constant__ HalfRows x) {
  __shared__ float parts[kWarps][kSlabRows][kGemvTokens + 1];
  int tile = blockIdx.x;
  const DeviceJob& job = jobs.job[job_of(jobs, tile)];
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

void gemv_rounded(const Stream& stream, const DeviceJobs& jobs, const RoundedRow& x,
                  const RowFactor& factor, const RoundedEnding& ending) {
  const auto run = [&]<typename Cut, Ending kEnding>() {
    const int64_t tiles =
        kEnding == Ending::kGated ? ceil_div(jobs.job[0].matrix.rows, kSlabRows) : tiles_of(jobs);
    launch(stream, rounded_kernel<Cut, kEnding>, grid_of(tiles), Cut::kWarps * 32, 0, jobs, x,
           factor, ending);
  };
  const auto cut = [&]<Ending kEnding>() {
    jobs.job[0].matrix.steps < kLongSteps ? run.template operator()<Short, kEnding>()
                                          : run.template operator()<Long, kEnding>();
  };
  if (ending.kind == Ending::kPlain) cut.template operator()<Ending::kPlain>();
  if (ending.kind == Ending::kNormed) cut.template operator()<Ending::kNormed>();
  if (ending.kind == Ending::kGated) cut.template operator()<Ending::kGated>();
}

}  // namespace lola

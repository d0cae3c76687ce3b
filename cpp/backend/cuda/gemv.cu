// Products with few tokens: a block of 8 warps multiplies 16 rows, each warp a part of the columns.
#include <algorithm>
#include <type_traits>

#include "backend/cuda/one_ending.cuh"

namespace lola {
namespace {

constexpr int kWarps = 8;
constexpr int kCodedBlocks = 4, kHalfBlocks = 2;  // of a multiprocessor

// Neighbouring slabs that a warp has on their way at a time: some 2 KiB; and of F16, whose rows are
// read in runs that should be long, twice as many in the kernel that has the registers.
template <Encoding e, int kBlocks>
constexpr int slabs_in_flight() {
  return code_vectors(e) == 1 || (e == Encoding::kF16 && kBlocks == kHalfBlocks) ? 2 : 1;
}

// sums [4] of a lane: rows lane / 4 and lane / 4 + 8, tokens lane % 4 * 2 and the next.
template <int kBlocks>
struct RowTile {
  const DeviceMatrix& matrix;
  const HalfRows& x;
  int tile;
  float* sums;

  template <Encoding e>
  __device__ void run() const {
    constexpr int kSlabs = slabs_in_flight<e, kBlocks>();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const bool has_token = lane / 4 < x.tokens;
    const __half* tokens = x.data + (has_token ? lane / 4 * x.stride : 0) + lane % 4 * 8;
    bool waited = false;
    for (int begin = warp * kSlabs; begin < matrix.steps || !waited; begin += kWarps * kSlabs) {
      Piece<e> upper[kSlabs], lower[kSlabs];
#pragma unroll
      for (int i = 0; i < kSlabs; ++i) {
        const int step = begin + i;
        if (step >= matrix.steps) break;
        upper[i] = load_piece<e>(matrix, tile, step, lane);
        lower[i] = load_piece<e>(matrix, tile, step, lane + 32);
      }
      if (!waited) wait_for_previous_kernel();
      waited = true;
#pragma unroll
      for (int i = 0; i < kSlabs; ++i) {
        const int step = begin + i;
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

// How the one-token kernel is cut: long rows among more warps, so that two blocks fill a
// multiprocessor, and two matrices so that many blocks do, which seldom load and multiply in step;
// slabs: that a warp has on their way at a time.
struct Gated {
  static constexpr int kWarps = 8, kBlocks = 4, kSlabs = 2;
};
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

template <typename Cut, Ending kEnding>
__global__ void __launch_bounds__(Cut::kWarps * 32, Cut::kBlocks)
    rounded_kernel(const __grid_constant__ DeviceJobs jobs, const __grid_constant__ OneRow x,
                   const __grid_constant__ OneEnding ending) {
  constexpr int kMatrices = kEnding == Ending::kGated ? 2 : 1;
  __shared__ float parts[Cut::kWarps][kMatrices * kSlabRows];
  int tile = blockIdx.x;
  const int index = kMatrices == 2 ? 0 : job_of(jobs, tile);
  const DeviceJob& job = jobs.job[index];
  float sums[kMatrices][2] = {};
  with_encoding(job.matrix.encoding,
                RoundedTile<Cut, kMatrices>{jobs, x.rounded, index, tile, sums});
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
  end_block<Cut::kWarps, kEnding>(jobs, job, tile, parts, x.factor, ending);
}

template <int kBlocks>
__global__ void __launch_bounds__(kWarps * 32, kBlocks)
    gemv_kernel(const __grid_constant__ DeviceJobs jobs, const __grid_constant__ HalfRows x) {
  __shared__ float parts[kWarps][kSlabRows][kGemvTokens + 1];
  int tile = blockIdx.x;
  const DeviceJob& job = jobs.job[job_of(jobs, tile)];
  float sums[4] = {};
  with_encoding(job.matrix.encoding, RowTile<kBlocks>{job.matrix, x, tile, sums});

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
  const bool halves = std::all_of(jobs.job, jobs.job + jobs.count, [](const DeviceJob& job) {
    return job.matrix.encoding == Encoding::kF16;
  });
  const auto kernel = halves ? gemv_kernel<kHalfBlocks> : gemv_kernel<kCodedBlocks>;
  launch(stream, kernel, grid_of(tiles_of(jobs)), kWarps * 32, 0, jobs, x);
}

void gemv_rounded(const Stream& stream, const DeviceJobs& jobs, const OneRow& x,
                  const OneEnding& ending) {
  const auto run = [&]<typename Cut, Ending kEnding>() {
    launch(stream, rounded_kernel<Cut, kEnding>, grid_of(one_row_blocks<kEnding>(jobs)),
           Cut::kWarps * 32, 0, jobs, x, ending);
  };
  with_ending(ending.kind, [&]<Ending kEnding>() {
    using Few = std::conditional_t<kEnding == Ending::kGated, Gated, Short>;
    jobs.job[0].matrix.steps < kLongSteps ? run.template operator()<Few, kEnding>()
                                          : run.template operator()<Long, kEnding>();
  });
}

}  // namespace lola

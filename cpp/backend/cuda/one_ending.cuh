// Products with one token: which rows a block multiplies, and what becomes of them.
#pragma once

#include "backend/cuda/matmul.cuh"

namespace lola {

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

inline int64_t tiles_of(const DeviceJobs& jobs) {
  int64_t tiles = 0;
  for (int i = 0; i < jobs.count; ++i) tiles += ceil_div(jobs.job[i].matrix.rows, kSlabRows);
  return tiles;
}

// Blocks of 16 rows; where a gate follows, of both matrices.
template <Ending kEnding>
int64_t one_row_blocks(const DeviceJobs& jobs) {
  return kEnding == Ending::kGated ? ceil_div(jobs.job[0].matrix.rows, kSlabRows) : tiles_of(jobs);
}

// Calls f.template operator()<kEnding>(), once chosen.
template <typename F>
void with_ending(Ending ending, const F& f) {
  if (ending == Ending::kPlain) return f.template operator()<Ending::kPlain>();
  if (ending == Ending::kNormed) return f.template operator()<Ending::kNormed>();
  f.template operator()<Ending::kGated>();
}

// Value i of the row that is multiplied next, in the form that its weights want; mask as in
// store_rounded().
__device__ inline void store_one(const OneEnding& ending, int i, float value, unsigned mask) {
  if (ending.halves != nullptr) {
    ending.halves[column_place(i)] = __float2half_rn(value * kActivationScale);
  } else {
    store_rounded(ending.rounded, i, value, mask);
  }
}

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
                                const float* products, const OneEnding& ending) {
  constexpr unsigned kHalfWarp = 0xFFFFu;
  if constexpr (kEnding == Ending::kPlain) {
    if (row < job.matrix.rows) finish(job, 0, row, products[0] * kActivationScale);
  } else if constexpr (kEnding == Ending::kGated) {
    const float value = products[0] / (1.0f + expf(-products[0])) * products[1];
    jobs.job[0].out[row] = value;
    store_one(ending, row, value, kHalfWarp);
  } else {
    const float norm = ending.norm[row];
    finish(job, 0, row, products[0] * kActivationScale);
    const float value = job.out[row];
    store_one(ending, row, value * norm, kHalfWarp);
    float square = value * value;
    for (int offset = 8; offset > 0; offset /= 2) {
      square += __shfl_xor_sync(kHalfWarp, square, offset);
    }
    if (threadIdx.x == 0) ending.squares[row / kSlabRows] = square;
  }
}

// The products of the warps [kParts, kMatrices * kSlabRows] of a block's tile, added up and ended.
// In shared memory.
template <int kParts, Ending kEnding>
__device__ inline void end_block(
    const DeviceJobs& jobs, const DeviceJob& job, int tile,
    const float (*parts)[(kEnding == Ending::kGated ? 2 : 1) * kSlabRows], const RowFactor& factor,
    const OneEnding& ending) {
  constexpr int kMatrices = kEnding == Ending::kGated ? 2 : 1;
  const float scale = threadIdx.x < 32 ? factor_of(factor) : 0.0f;
  __syncthreads();
  if (threadIdx.x >= kSlabRows) return;
  float products[kMatrices] = {};
#pragma unroll
  for (int part = 0; part < kParts * kMatrices; ++part) {
    products[part % kMatrices] +=
        parts[part / kMatrices][part % kMatrices * kSlabRows + threadIdx.x];
  }
#pragma unroll
  for (int m = 0; m < kMatrices; ++m) products[m] *= scale;
  end_rows<kEnding>(jobs, job, tile * static_cast<int>(kSlabRows) + static_cast<int>(threadIdx.x),
                    products, ending);
}

}  // namespace lola

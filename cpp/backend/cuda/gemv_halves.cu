// Products of F16 weights with one token: a warp multiplies one row of each matrix, a block of 16
// warps a tile.
#include "backend/cuda/one_ending.cuh"

namespace lola {
namespace {

constexpr int kWarps = static_cast<int>(kSlabRows);
constexpr int kBlocks = 2;  // of a multiprocessor
constexpr int kAtOnce = 8;  // vectors of a lane on their way at a time

__device__ inline float dot(const uint4& weights, const uint4& values, float sum) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 w = __half22float2(as_half2(component(weights, i)));
    const float2 x = __half22float2(as_half2(component(values, i)));
    sum = fmaf(w.x, x.x, fmaf(w.y, x.y, sum));
  }
  return sum;
}

template <Ending kEnding>
__global__ void __launch_bounds__(kWarps * 32, kBlocks)
    halves_kernel(const __grid_constant__ DeviceJobs jobs, const __grid_constant__ OneRow x,
                  const __grid_constant__ OneEnding ending) {
  constexpr int kMatrices = kEnding == Ending::kGated ? 2 : 1;
  constexpr int kVectors = kAtOnce / kMatrices;  // of a row
  __shared__ float parts[1][kMatrices * kSlabRows];
  int tile = blockIdx.x;
  const int index = kMatrices == 2 ? 0 : job_of(jobs, tile);
  const DeviceJob& job = jobs.job[index];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int count = job.matrix.steps * static_cast<int>(kHalfChunks);
  const int64_t row = static_cast<int64_t>(tile) * kSlabRows + warp;
  const auto* values = reinterpret_cast<const uint4*>(x.halves);
  float sums[kMatrices] = {};
  bool waited = false;
#pragma unroll 1
  for (int begin = lane; begin < count || !waited; begin += 32 * kVectors) {
    uint4 weights[kMatrices][kVectors];
#pragma unroll
    for (int i = 0; i < kMatrices * kVectors; ++i) {
      const int at = min(begin + i % kVectors * 32, count - 1);
      weights[i / kVectors][i % kVectors] =
          stream_load(jobs.job[index + i / kVectors].matrix.codes + row * count + at);
    }
    if (!waited) wait_for_previous_kernel();
    waited = true;
#pragma unroll
    for (int n = 0; n < kVectors; ++n) {
      const int at = begin + n * 32;
      const uint4 own = at < count ? values[at] : uint4{};
#pragma unroll
      for (int m = 0; m < kMatrices; ++m) sums[m] = dot(weights[m][n], own, sums[m]);
    }
  }
#pragma unroll
  for (int m = 0; m < kMatrices; ++m) {
    for (int offset = 16; offset > 0; offset /= 2) {
      sums[m] += __shfl_xor_sync(~0u, sums[m], offset);
    }
    if (lane == 0) parts[0][m * kSlabRows + warp] = sums[m] * (1.0f / kActivationScale);
  }
  end_block<1, kEnding>(jobs, job, tile, parts, x.factor, ending);
}

}  // namespace

void gemv_halves(const Stream& stream, const DeviceJobs& jobs, const OneRow& x,
                 const OneEnding& ending) {
  with_ending(ending.kind, [&]<Ending kEnding>() {
    launch(stream, halves_kernel<kEnding>, grid_of(one_row_blocks<kEnding>(jobs)), kWarps * 32, 0,
           jobs, x, ending);
  });
}

}  // namespace lola

#include "backend/cuda/lola_eligible.cuh"

namespace lola {
namespace {

constexpr int kAbsorbFeatures = 32;  // of a block
constexpr int kAbsorbPairs = 32;     // in shared memory at a time

// Sums of a block over absorbed pairs: 8 features by 4 columns of every 128 a thread.
struct AbsorbSums {
  float state[kColumnBlocks][8][4];
  float sum;  // of feature threadIdx.x % kAbsorbFeatures
};

__device__ inline void add_absorbed(const LolaView& view, const HiddenRows& hidden, int64_t at,
                                    float value, bool flush, float* imagined) {
  auto* state = const_cast<float*>(hidden.state);
  auto* pending = const_cast<float*>(hidden.pending_state);
  if (imagined != nullptr) {
    imagined[at] = value + state[at] + (pending != nullptr ? pending[at] : 0.0f);
  } else if (pending == nullptr) {
    state[at] += value;
  } else if (!flush) {
    pending[at] += value;
  } else {
    state[at] += pending[at] + value;
    pending[at] = 0.0f;
  }
}

// Columns [first, first + count) of the listed rows of `from` [rows, width] go to shared memory;
// those past the width are zero. A warp takes every fourth row, eight loads at a time.
__device__ inline void stage_pairs(const float* from, int width, int first, int count,
                                   const int* list, int pairs, float* to, int stride) {
  constexpr int kAtOnce = kAbsorbPairs * 32 / kTileThreads;
  const int warp = threadIdx.x / 32;
  for (int c = threadIdx.x % 32; c < count; c += 32) {
    float x[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int64_t row = list[min(warp + i * kTileThreads / 32, pairs - 1)];
      x[i] = first + c < width ? from[row * width + first + c] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) to[(warp + i * kTileThreads / 32) * stride + c] = x[i];
  }
}

// A block per kAbsorbFeatures features of a head. The pairs of a boundary are summed first and
// added once.
__global__ void __launch_bounds__(kTileThreads)
    absorb_kernel(const __grid_constant__ LolaView view, const DeviceBoundary* boundaries,
                  const __grid_constant__ BoundaryScratch scratch, Absorb what) {
  __shared__ float phi[kAbsorbPairs][kAbsorbFeatures];
  __shared__ float v[kAbsorbPairs][kMaxHeadDim];
  __shared__ int list[kAbsorbPairs];
  wait_for_previous_kernel();
  const DeviceBoundary boundary = boundaries[blockIdx.z];
  if (boundary.memory == nullptr) return;
  const int head = blockIdx.y, owner = view.owner_of(head), d = view.head_dim, f = view.features;
  const int64_t own = part_of(view, scratch, blockIdx.z, view.owners(), owner);
  const int64_t heads_part = part_of(view, scratch, blockIdx.z, view.heads, head);
  const bool all = what == Absorb::kImagined;
  const int count = all ? boundary.cached + boundary.leaving
                        : scratch.lost_count[blockIdx.z * view.owners() + owner];
  if (count == 0) return;
  const int first = blockIdx.x * kAbsorbFeatures, group = threadIdx.x / 32 * 8,
            column = threadIdx.x % 32 * 4;
  AbsorbSums sums{};
  for (int begin = 0; begin < count; begin += kAbsorbPairs) {
    const int pairs = min(kAbsorbPairs, count - begin);
    __syncthreads();
    if (threadIdx.x < pairs) {
      list[threadIdx.x] = all ? begin + threadIdx.x : scratch.lost[own + begin + threadIdx.x];
    }
    __syncthreads();
    stage_pairs(scratch.features + heads_part * f, f, first, kAbsorbFeatures, list, pairs,
                &phi[0][0], kAbsorbFeatures);
    stage_pairs(scratch.values + own * d, d, 0, d, list, pairs, &v[0][0], kMaxHeadDim);
    __syncthreads();
    for (int p = 0; p < pairs; ++p) {
      if (threadIdx.x < kAbsorbFeatures) sums.sum += phi[p][threadIdx.x];
#pragma unroll
      for (int block = 0; block < kColumnBlocks; ++block) {
        if (column + block * kTileVectors >= d) continue;
        const float4 x = *reinterpret_cast<const float4*>(&v[p][column + block * kTileVectors]);
        const float value[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
        for (int i = 0; i < 32; ++i)
          sums.state[block][i / 4][i % 4] += phi[p][group + i / 4] * value[i % 4];
      }
    }
  }
  const HiddenRows hidden = hidden_rows(view, boundary.memory, head);
  const bool flush = (boundary.absorbed + count) / kFlushPairs > boundary.absorbed / kFlushPairs;
  float* imagined = all ? imagined_state(view, scratch, blockIdx.z, head) : nullptr;
#pragma unroll
  for (int i = 0; i < kColumnBlocks * 32; ++i) {
    const int j = first + group + i / 4 % 8, c = column + i / 32 * kTileVectors + i % 4;
    if (j >= f || c >= d) continue;
    add_absorbed(view, hidden, static_cast<int64_t>(j) * d + c,
                 sums.state[i / 32][i / 4 % 8][i % 4], flush, imagined);
  }
  if (threadIdx.x >= kAbsorbFeatures || first + static_cast<int>(threadIdx.x) >= f) return;
  const HiddenRows only_sum{hidden.sum, nullptr, hidden.pending_sum, nullptr};
  add_absorbed(view, only_sum, first + static_cast<int>(threadIdx.x), sums.sum, flush,
               all ? imagined + static_cast<int64_t>(f) * d : nullptr);
}

}  // namespace

void absorb_pairs(const Stream& stream, const LolaView& view, const BoundarySpan& boundaries,
                  const BoundaryScratch& scratch, Absorb what) {
  launch(stream, absorb_kernel,
         grid_of(ceil_div(view.features, kAbsorbFeatures), view.heads, boundaries.count),
         kTileThreads, 0, view, boundaries.data, scratch, what);
}

}  // namespace lola

// Products with many tokens: a warp decodes 32 rows into registers and multiplies them with the
// tokens of its block, which lie in shared memory; columns come 128 at a time.
#include "backend/cuda/matmul.cuh"

namespace lola {
namespace {

constexpr int kWarps = 4;
constexpr int kWarpTiles = 2;  // of kSlabRows rows
constexpr int kBlockRows = kWarps * kWarpTiles * static_cast<int>(kSlabRows);
constexpr int kStepColumns = static_cast<int>(kSlabPieces * kPieceWeights);
constexpr int kStages = 2;

// What one block multiplies: `tiles` groups of 8 tokens; the columns are split among `splits`
// blocks.
struct Plan {
  int tiles;
  int splits;
};

// 128 sums a lane leave room for the pieces of the narrow encodings only.
constexpr bool has_registers_for_16(Encoding e) { return code_vectors(e) == 1; }

Plan plan_of(const DeviceJob& job, int tokens, int multiprocessors) {
  const int widest = has_registers_for_16(job.matrix.encoding) ? 16 : 8;
  const int tiles = tokens <= 32 ? 4 : tokens <= 64 ? 8 : widest;
  const int64_t blocks = ceil_div(job.matrix.rows, kBlockRows) * ceil_div(tokens, tiles * 8);
  const int64_t wanted = ceil_div(2 * multiprocessors, blocks);
  const int64_t most = std::max(1, job.matrix.steps / 4);
  return {tiles,
          static_cast<int>(blocks * 4 > 3 * multiprocessors * 2 ? 1 : std::min(wanted, most))};
}

// Where the 16 bytes of chunk `chunk` (of 16) of a token's row lie: spread so that eight lanes
// which read together meet no bank twice.
__device__ inline int swizzled(int token, int chunk) {
  return token * 16 + (chunk ^ (token & 1) << 2);
}

template <int kTiles>
__device__ inline void fetch_tokens(const HalfRows& x, int first, int step, uint4* shared) {
  for (int i = threadIdx.x; i < kTiles * 8 * 16; i += kWarps * 32) {
    const int token = i / 16, chunk = i % 16;
    const bool real = first + token < x.tokens;
    const __half* from = x.data + static_cast<int64_t>(real ? first + token : 0) * x.stride +
                         step * kStepColumns + chunk * 8;
    const auto to =
        static_cast<uint32_t>(__cvta_generic_to_shared(shared + swizzled(token, chunk)));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(real ? 16 : 0));
  }
  asm volatile("cp.async.commit_group;");
}

// sums [kWarpTiles, kTiles, 4] of a lane.
template <int kTiles>
struct BlockTile {
  const DeviceMatrix& matrix;
  const HalfRows& x;
  uint4* shared;  // [kStages, kTiles * 8 * 16]
  int first_token;
  int begin, end;  // steps
  float (*sums)[kTiles][4];

  template <Encoding e>
  __device__ void run() const {
    if constexpr (kTiles < 16 || has_registers_for_16(e)) run_steps<e>();
  }

  template <Encoding e>
  __device__ void run_steps() const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int last_tile = (matrix.rows - 1) / static_cast<int>(kSlabRows);
    int tile[kWarpTiles];
#pragma unroll
    for (int i = 0; i < kWarpTiles; ++i) {
      tile[i] = min(static_cast<int>(blockIdx.x) * kWarps * kWarpTiles + warp * kWarpTiles + i,
                    last_tile);
    }
    // Where registers allow, the next slabs are on their way during a multiplication.
    constexpr bool kAhead = code_vectors(e) == 1;
    Piece<e> now[kWarpTiles][2], next[kWarpTiles][2];
    if constexpr (kAhead) load(next, tile, begin, lane);
    wait_for_previous_kernel();
    if (begin < end) fetch_tokens<kTiles>(x, first_token, begin, shared);
    for (int step = begin; step < end; ++step) {
      const int stage = (step - begin) % kStages;
      asm volatile("cp.async.wait_group 0;");
      __syncthreads();
      if (step + 1 < end) {
        fetch_tokens<kTiles>(x, first_token, step + 1, shared + (1 - stage) * kTiles * 128);
      }
      if constexpr (kAhead) {
#pragma unroll
        for (int i = 0; i < kWarpTiles * 2; ++i) now[i / 2][i % 2] = next[i / 2][i % 2];
        if (step + 1 < end) load(next, tile, step + 1, lane);
      } else {
        load(now, tile, step, lane);
      }
      multiply<e>(now, shared + stage * kTiles * 128, lane);
    }
  }

  template <Encoding e>
  __device__ void load(Piece<e> (&pieces)[kWarpTiles][2], const int* tile, int step,
                       int lane) const {
#pragma unroll
    for (int i = 0; i < kWarpTiles; ++i) {
      pieces[i][0] = load_piece<e>(matrix, tile[i], step, lane);
      pieces[i][1] = load_piece<e>(matrix, tile[i], step, lane + 32);
    }
  }

  template <Encoding e>
  __device__ void multiply(const Piece<e> (&pieces)[kWarpTiles][2], const uint4* tokens,
                           int lane) const {
    Factors factors[kWarpTiles][2];
#pragma unroll
    for (int i = 0; i < kWarpTiles * 2; ++i)
      factors[i / 2][i % 2] = factors_of<e>(pieces[i / 2][i % 2]);
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      __half2 first[kWarpTiles][4], second[kWarpTiles][4];
#pragma unroll
      for (int i = 0; i < kWarpTiles; ++i) {
        __half2 u[4], l[4];
        decode_eight<e>(pieces[i][0], factors[i][0], word, u);
        decode_eight<e>(pieces[i][1], factors[i][1], word, l);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          first[i][2 * j] = u[j], first[i][2 * j + 1] = l[j];
          second[i][2 * j] = u[2 + j], second[i][2 * j + 1] = l[2 + j];
        }
      }
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const uint4 b = tokens[swizzled(n * 8 + lane / 4, word * 4 + lane % 4)];
#pragma unroll
        for (int i = 0; i < kWarpTiles; ++i) {
          mma(sums[i][n], first[i], b.x, b.y);
          mma(sums[i][n], second[i], b.z, b.w);
        }
      }
    }
  }
};

template <int kTiles>
__global__ void __launch_bounds__(kWarps * 32, 2)
    gemm_kernel(const __grid_constant__ DeviceJob job, const __grid_constant__ HalfRows x,
                float* partials) {
  extern __shared__ uint4 shared[];
  const int first_token = blockIdx.y * kTiles * 8;
  const int steps = (job.matrix.steps + gridDim.z - 1) / gridDim.z;
  const int begin = min(static_cast<int>(blockIdx.z) * steps, job.matrix.steps - 1);
  const int end = min((static_cast<int>(blockIdx.z) + 1) * steps, job.matrix.steps);
  float sums[kWarpTiles][kTiles][4] = {};
  with_encoding(job.matrix.encoding,
                BlockTile<kTiles>{job.matrix, x, shared, first_token, begin, end, sums});

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < kWarpTiles * kTiles * 4; ++i) {
    const int row_tile = i / (kTiles * 4), n = i / 4 % kTiles, part = i % 4;
    const int row = blockIdx.x * kBlockRows + (warp * kWarpTiles + row_tile) * kSlabRows +
                    lane / 4 + part / 2 * 8;
    const int token = first_token + n * 8 + lane % 4 * 2 + part % 2;
    if (row >= job.matrix.rows || token >= x.tokens) continue;
    const float sum = sums[row_tile][n][part];
    if (gridDim.z == 1) {
      finish(job, token, row, sum);
    } else {
      partials[(static_cast<int64_t>(blockIdx.z) * x.tokens + token) * job.matrix.rows + row] = sum;
    }
  }
}

__global__ void add_partials(const __grid_constant__ DeviceJob job, int tokens, int splits,
                             const float* partials) {
  wait_for_previous_kernel();
  const int64_t count = static_cast<int64_t>(tokens) * job.matrix.rows;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  float sum = 0.0f;
  for (int split = 0; split < splits; ++split) sum += partials[split * count + i];
  finish(job, static_cast<int>(i / job.matrix.rows), static_cast<int>(i % job.matrix.rows), sum);
}

template <int kTiles>
void launch_gemm(const Stream& stream, const DeviceJob& job, const HalfRows& x, int splits,
                 float* partials) {
  const dim3 grid =
      grid_of(ceil_div(job.matrix.rows, kBlockRows), ceil_div(x.tokens, kTiles * 8), splits);
  launch(stream, gemm_kernel<kTiles>, grid, kWarps * 32, kStages * kTiles * 128 * 16, job, x,
         partials);
}

}  // namespace

int64_t gemm_partials(const DeviceJob& job, int tokens, int multiprocessors) {
  const Plan plan = plan_of(job, tokens, multiprocessors);
  return plan.splits == 1 ? 0 : static_cast<int64_t>(plan.splits) * tokens * job.matrix.rows;
}

void gemm(const Stream& stream, const DeviceJob& job, const HalfRows& x, int multiprocessors,
          float* partials) {
  const Plan plan = plan_of(job, x.tokens, multiprocessors);
  if (plan.tiles == 4) launch_gemm<4>(stream, job, x, plan.splits, partials);
  if (plan.tiles == 8) launch_gemm<8>(stream, job, x, plan.splits, partials);
  if (plan.tiles == 16) launch_gemm<16>(stream, job, x, plan.splits, partials);
  if (plan.splits == 1) return;
  const int64_t count = static_cast<int64_t>(x.tokens) * job.matrix.rows;
  launch(stream, add_partials, grid_of(ceil_div(count, 256)), 256, 0, job, x.tokens, plan.splits,
         partials);
}

}  // namespace lola

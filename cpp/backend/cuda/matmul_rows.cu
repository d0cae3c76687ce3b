// Row-wise uses of weights: F32 products, embeddings, and whole matrices as float16.
#include "backend/cuda/matmul.cuh"

namespace lola {
namespace {

constexpr int kTokensAtOnce = 8;
constexpr int kThreads = 256;

// A warp multiplies one row with kTokensAtOnce tokens.
__global__ void f32_kernel(const float* weight, const float* x, int tokens, int cols,
                           const __grid_constant__ DeviceJob job) {
  wait_for_previous_kernel();
  const int row = blockIdx.x * (kThreads / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first = blockIdx.y * kTokensAtOnce;
  if (row >= job.matrix.rows) return;
  float sums[kTokensAtOnce] = {};
  for (int col = lane; col < cols; col += 32) {
    const float w = weight[static_cast<int64_t>(row) * cols + col];
#pragma unroll
    for (int i = 0; i < kTokensAtOnce; ++i) {
      if (first + i < tokens) sums[i] += w * x[static_cast<int64_t>(first + i) * cols + col];
    }
  }
#pragma unroll
  for (int i = 0; i < kTokensAtOnce; ++i) {
    for (int offset = 16; offset > 0; offset /= 2) sums[i] += __shfl_xor_sync(~0u, sums[i], offset);
    if (lane == 0 && first + i < tokens) finish(job, first + i, row, sums[i] * kActivationScale);
  }
}

struct PieceOf {
  const DeviceMatrix& matrix;
  int64_t row;
  int piece;
  __half2* out;  // [16]

  template <Encoding e>
  __device__ void run() const {
    const int place =
        static_cast<int>(row % kSlabRows * kSlabPieces) + piece % static_cast<int>(kSlabPieces);
    const auto stored = load_piece<e>(matrix, static_cast<int>(row / kSlabRows),
                                      piece / static_cast<int>(kSlabPieces), place);
    const Factors factors = factors_of<e>(stored);
#pragma unroll
    for (int word = 0; word < 4; ++word) decode_eight<e>(stored, factors, word, out + word * 4);
  }
};

// A warp takes 8 rows of a slab as they are stored, and through shared memory writes 256 bytes of
// a row at a time.
__global__ void dequantize_kernel(const __grid_constant__ DeviceMatrix matrix, __half* out) {
  constexpr int kRows = 8, kPieces = static_cast<int>(kSlabPieces);
  constexpr int kChunks = static_cast<int>(kHalfChunks);
  __shared__ uint4 shared[kThreads / 32][kRows * kChunks];
  wait_for_previous_kernel();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t part = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + warp;
  const int64_t first_row = part / 2 / matrix.steps * kSlabRows + part % 2 * kRows;
  const int step = static_cast<int>(part / 2 % matrix.steps);
  if (first_row >= matrix.rows) return;
  union {
    __half2 pairs[16];
    uint4 vectors[4];
  } weights;
  const int row = lane / kPieces, piece = lane % kPieces;
  with_encoding(matrix.encoding,
                PieceOf{matrix, first_row + row, step * kPieces + piece, weights.pairs});
#pragma unroll
  for (int v = 0; v < 4; ++v)
    shared[warp][row * kChunks + v * kPieces + piece] = weights.vectors[v];
  __syncwarp();
#pragma unroll
  for (int i = lane; i < kRows * kChunks; i += 32) {
    const int64_t to = first_row + i / kChunks;
    if (to < matrix.rows) {
      reinterpret_cast<uint4*>(out)[(to * matrix.steps + step) * kChunks + i % kChunks] =
          shared[warp][i];
    }
  }
}

__global__ void embed_kernel(const __grid_constant__ DeviceMatrix table, const float* f32_table,
                             const int32_t* tokens, int cols, float* out) {
  wait_for_previous_kernel();
  const int piece = blockIdx.y * blockDim.x + threadIdx.x;
  const int begin = piece * static_cast<int>(kPieceWeights);
  if (begin >= cols) return;
  const int64_t row = tokens[blockIdx.x];
  float* to = out + static_cast<int64_t>(blockIdx.x) * cols;
  const int end = min(cols, begin + static_cast<int>(kPieceWeights));
  if (f32_table != nullptr) {
    for (int col = begin; col < end; ++col) to[col] = f32_table[row * cols + col];
    return;
  }
  __half2 weights[16];
  with_encoding(table.encoding, PieceOf{table, row, piece, weights});
  for (int col = begin; col < end; ++col) {
    const float2 pair = __half22float2(weights[(col - begin) / 2]);
    to[col] = col % 2 == 0 ? pair.x : pair.y;
  }
}

}  // namespace

void gemm_f32(const Stream& stream, const float* weight, const float* x, int64_t tokens,
              int64_t cols, const DeviceJob& job) {
  const dim3 grid =
      grid_of(ceil_div(job.matrix.rows, kThreads / 32), ceil_div(tokens, kTokensAtOnce));
  launch(stream, f32_kernel, grid, kThreads, 0, weight, x, static_cast<int>(tokens),
         static_cast<int>(cols), job);
}

void dequantize(const Stream& stream, const DeviceMatrix& matrix, __half* out) {
  const int64_t parts = ceil_div(int64_t{matrix.rows}, kSlabRows) * matrix.steps * 2;
  launch(stream, dequantize_kernel, grid_of(ceil_div(parts, kThreads / 32)), kThreads, 0, matrix,
         out);
}

void embed_rows(const Stream& stream, const DeviceMatrix& table, const float* f32_table,
                const int32_t* tokens, int64_t count, int64_t cols, float* out) {
  const int64_t pieces = ceil_div(cols, kPieceWeights);
  launch(stream, embed_kernel, grid_of(count, ceil_div(pieces, 128)), 128, 0, table, f32_table,
         tokens, static_cast<int>(cols), out);
}

}  // namespace lola

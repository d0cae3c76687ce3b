#include "backend/cuda/elementwise.cuh"
#include "backend/cuda/matmul.cuh"

namespace lola {
namespace {

constexpr int kThreads = 256;

__device__ inline __half scaled_half(float x) { return __float2half_rn(x * kActivationScale); }

template <typename T, typename Combine>
__device__ inline T over_warp(T value, const Combine& combine) {
  for (int offset = 16; offset > 0; offset /= 2) {
    value = combine(value, __shfl_xor_sync(~0u, value, offset));
  }
  return value;
}

__device__ inline float block_sum(float value) {
  __shared__ float parts[32];
  const auto plus = [](float a, float b) { return a + b; };
  value = over_warp(value, plus);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  const int warps = blockDim.x / 32;
  return over_warp(static_cast<int>(threadIdx.x % 32) < warps ? parts[threadIdx.x % 32] : 0.0f,
                   plus);
}

// Value i of row `row`, `width` wide, into the copies; by whole warps of neighbours.
__device__ inline void put_copy(const ProductCopy& copy, int64_t row, int i, int width,
                                float value) {
  if (copy.halves == nullptr) return;
  if (i < copy.stride) *copy.at(row, i) = scaled_half(value);
  if (copy.rounded.q != nullptr && i < width) store_rounded(copy.rounded, i, value);
}

constexpr int kNormThreads = 1024;
constexpr int kNormValues = 4;  // of a thread, in registers; what is beyond is read twice

__global__ void __launch_bounds__(kNormThreads)
    norm_kernel(const float* x, int dim, const float* weight, float eps, float* out,
                const __grid_constant__ ProductCopy copy) {
  const int64_t row = blockIdx.x;
  const float* in = x + row * dim;
  float weights[kNormValues], values[kNormValues], squares = 0.0f;
#pragma unroll
  for (int n = 0; n < kNormValues; ++n) {
    const int i = threadIdx.x + n * kNormThreads;
    weights[n] = i < dim ? weight[i] : 0.0f;
  }
  wait_for_previous_kernel();
#pragma unroll
  for (int n = 0; n < kNormValues; ++n) {
    const int i = threadIdx.x + n * kNormThreads;
    values[n] = i < dim ? in[i] : 0.0f;
    squares += values[n] * values[n];
  }
  constexpr int kHeld = kNormThreads * kNormValues;
  for (int i = kHeld + threadIdx.x; i < dim; i += kNormThreads) squares += in[i] * in[i];
  const float factor = 1.0f / sqrtf(block_sum(squares) / static_cast<float>(dim) + eps);
  const int end = max(dim, copy.halves != nullptr ? copy.stride : 0);
  const auto put = [&](int i, float value) {
    if (i < dim) out[row * dim + i] = value;
    put_copy(copy, row, i, dim, value);
  };
#pragma unroll
  for (int n = 0; n < kNormValues; ++n) {
    const int i = threadIdx.x + n * kNormThreads;
    if (i < end) put(i, values[n] * factor * weights[n]);
  }
  for (int i = kHeld + threadIdx.x; i < end; i += kNormThreads) {
    put(i, i < dim ? in[i] * factor * weight[i] : 0.0f);
  }
}

__global__ void copy_kernel(const float* x, int width, const __grid_constant__ ProductCopy copy) {
  wait_for_previous_kernel();
  const int64_t row = blockIdx.x;
  const int i = blockIdx.y * kThreads + threadIdx.x;
  put_copy(copy, row, i, width, i < width ? x[row * width + i] : 0.0f);
}

__global__ void rope_kernel(const __grid_constant__ RopeRows rows, int pairs, int heads,
                            int kv_heads) {
  wait_for_previous_kernel();
  const int64_t row = blockIdx.x;
  const int i = blockIdx.y * kThreads + threadIdx.x, head = i / pairs, pair = i % pairs;
  if (head >= heads + kv_heads) return;
  const int64_t head_dim = rows.shape.head_dim;
  float* values = head < heads ? rows.q + (row * heads + head) * head_dim
                               : rows.k + (row * kv_heads + head - heads) * head_dim;
  const bool interleaved = rows.layout == RopeLayout::kInterleaved;
  float* first = values + (interleaved ? 2 * pair : pair);
  float* second = interleaved ? first + 1 : first + pairs;
  const float c = rows.cosine[row * pairs + pair], s = rows.sine[row * pairs + pair];
  const float rotated = *first * c - *second * s;
  *second = *second * c + *first * s;
  *first = rotated;
}

__device__ inline float silu(float x) { return x / (1.0f + expf(-x)); }

// Four values a thread; width and the copy's stride are multiples of four, nothing is rounded.
__global__ void silu_many_kernel(float* gate, const float* up, int width,
                                 const __grid_constant__ ProductCopy copy) {
  wait_for_previous_kernel();
  const int64_t row = blockIdx.x;
  const int i = (blockIdx.y * kThreads + threadIdx.x) * 4;
  if (i >= copy.stride) return;
  float4 x{};
  if (i < width) {
    auto* at = reinterpret_cast<float4*>(gate + row * width + i);
    const float4 u = *reinterpret_cast<const float4*>(up + row * width + i);
    x = *at;
    x = {silu(x.x) * u.x, silu(x.y) * u.y, silu(x.z) * u.z, silu(x.w) * u.w};
    *at = x;
  }
  *reinterpret_cast<__half2*>(copy.at(row, i)) = {scaled_half(x.x), scaled_half(x.y)};
  *reinterpret_cast<__half2*>(copy.at(row, i + 2)) = {scaled_half(x.z), scaled_half(x.w)};
}

__global__ void silu_kernel(float* gate, const float* up, int width,
                            const __grid_constant__ ProductCopy copy) {
  wait_for_previous_kernel();
  const int64_t row = blockIdx.x;
  const int i = blockIdx.y * kThreads + threadIdx.x;
  float value = 0.0f;
  if (i < width) {
    const int64_t at = row * width + i;
    value = silu(gate[at]) * up[at];
    gate[at] = value;
  }
  put_copy(copy, row, i, width, value);
}

}  // namespace

void rms_norm(const Stream& stream, const float* x, int64_t rows, int64_t dim, const float* weight,
              float eps, float* out, const ProductCopy& copy) {
  launch(stream, norm_kernel, grid_of(rows), kNormThreads, 0, x, static_cast<int>(dim), weight, eps,
         out, copy);
}

void copy_rows(const Stream& stream, const float* x, int64_t rows, int64_t width,
               const ProductCopy& copy) {
  launch(stream, copy_kernel, grid_of(rows, ceil_div(copy.stride, kThreads)), kThreads, 0, x,
         static_cast<int>(width), copy);
}

void rope(const Stream& stream, const RopeRows& rows) {
  const auto heads = static_cast<int>(rows.shape.heads);
  const auto kv_heads = static_cast<int>(rows.shape.kv_heads);
  const auto pairs = static_cast<int>(rows.pairs);
  launch(stream, rope_kernel, grid_of(rows.rows, ceil_div((heads + kv_heads) * pairs, kThreads)),
         kThreads, 0, rows, pairs, heads, kv_heads);
}

void silu_gate(const Stream& stream, float* gate, const float* up, int64_t rows, int64_t width,
               const ProductCopy& copy) {
  if (width % 4 == 0 && copy.rounded.q == nullptr) {
    launch(stream, silu_many_kernel, grid_of(rows, ceil_div(copy.stride, 4 * kThreads)), kThreads,
           0, gate, up, static_cast<int>(width), copy);
    return;
  }
  launch(stream, silu_kernel, grid_of(rows, ceil_div(copy.stride, kThreads)), kThreads, 0, gate, up,
         static_cast<int>(width), copy);
}

}  // namespace lola

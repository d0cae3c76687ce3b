// Matrix products out = x W' with stored weights. Activations are float16, scaled down, products
// are summed in float32; F32 weights take float32 activations.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>
#include <span>

#include "backend/cuda/cuda_check.cuh"
#include "backend/cuda/rounded_row.cuh"

namespace lola {

// Halves reach a million this way, and lose nothing that counts below a thousandth.
constexpr float kActivationScale = 1.0f / 16.0f;

// x as halves times kActivationScale, [tokens, stride], columns in the order of column_place();
// those past the matrix's are zero. For gemm_wide() as ProductCopy lays them out.
struct HalfRows {
  const __half* data;
  int tokens;
  int stride;
};

struct DeviceJob {
  DeviceMatrix matrix;
  const float* bias;  // [rows] or null
  float* out;         // [tokens, rows], row stride out_stride
  int out_stride;
  bool accumulate;
};

constexpr int kMaxJobs = 3;

struct DeviceJobs {
  DeviceJob job[kMaxJobs];
  int count;
};

constexpr int kGemvTokens = 8;  // up to here a matrix is read by gemv(), above by gemm()

// All jobs in one kernel: they are read once, at the speed of the memory. tokens <= kGemvTokens.
void gemv(const Stream& stream, const DeviceJobs& jobs, const HalfRows& x);

// A factor that all products of a row take: 1 / rms, from its sums of squares. squares null: 1.
struct RowFactor {
  const float* squares;  // [count]
  int count;
  int dim;
  float eps;
};

// One token's activations: as HalfRows for F16 weights, rounded for all others.
struct OneRow {
  const __half* halves;
  RoundedRow rounded;
  RowFactor factor;
};

enum class Ending {
  kPlain,
  kNormed,  // the one job's output, times a norm's weight, is what comes next; and is squared
  kGated,   // job[0] becomes silu(job[0]) job[1], and is next; both of one encoding, no bias
};

// What becomes of the products of one row, besides their outputs. The jobs' rows are a multiple of
// 16 where it is not plain.
struct OneEnding {
  Ending kind;
  __half* halves;  // for F16 weights, or null: the row is rounded
  RoundedRow rounded;
  const float* norm;  // [rows]
  float* squares;     // of every 16 rows, summed
};

// The same with one token, and what follows: of integers, for all but F16 weights, and of halves.
void gemv_rounded(const Stream& stream, const DeviceJobs& jobs, const OneRow& x,
                  const OneEnding& ending);
void gemv_halves(const Stream& stream, const DeviceJobs& jobs, const OneRow& x,
                 const OneEnding& ending);

// Tensor cores over tiles of 128 rows by up to 128 tokens. partials: memory for split sums.
void gemm(const Stream& stream, const DeviceJob& job, const HalfRows& x, int multiprocessors,
          float* partials);
// Floats of partials that gemm() may need.
int64_t gemm_partials(const DeviceJob& job, int tokens, int multiprocessors);

// The same for all jobs at once, on GPUs of compute capability 9.0; without such a GPU's code in
// the build there is nothing behind it.
#ifdef LOLA_WGMMA
constexpr bool kHasWide = true;
#else
constexpr bool kHasWide = false;
#endif
void gemm_wide(const Stream& stream, const DeviceJobs& jobs, const HalfRows& x);
// Its tiles have 2^wide_tile_bits() tokens.
constexpr int wide_tile_bits(int64_t tokens) { return tokens <= 32 ? 5 : tokens <= 64 ? 6 : 7; }

// F32 weights [rows, cols] as they are in the file, any number of tokens; x [tokens, cols].
void gemm_f32(const Stream& stream, const float* weight, const float* x, int64_t tokens,
              int64_t cols, const DeviceJob& job);

// out [rows, steps * 128]: a stored matrix as F16 is stored.
void dequantize(const Stream& stream, const DeviceMatrix& matrix, __half* out);

// out [tokens, cols] = rows of the table; F32 tables are read as they are.
void embed_rows(const Stream& stream, const DeviceMatrix& table, const float* f32_table,
                const int32_t* tokens, int64_t count, int64_t cols, float* out);

// d += a b for the 16 by 8 tile of a warp; a [16, 16], b [16, 8].
__device__ inline void mma(float d[4], const __half2 a[4], uint32_t b0, uint32_t b1) {
  const auto bits = [](const __half2& h) { return *reinterpret_cast<const uint32_t*>(&h); };
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, "
      "%9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(bits(a[0])), "r"(bits(a[1])), "r"(bits(a[2])), "r"(bits(a[3])), "r"(b0), "r"(b1));
}

// A product's value, finished: unscaled, with bias, added to what is there.
__device__ inline void finish(const DeviceJob& job, int token, int row, float sum) {
  float* out = job.out + static_cast<int64_t>(token) * job.out_stride + row;
  float value = sum * (1.0f / kActivationScale);
  if (job.bias != nullptr) value += job.bias[row];
  *out = job.accumulate ? *out + value : value;
}

}  // namespace lola

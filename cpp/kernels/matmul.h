// Matrix products of float32 activations with stored weights of any format: out = x W' (+ bias).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/kernels.h"
#include "quant/quant_table.h"

namespace lola {

// A stored weight, row-major as in the file: row r gives output r. Points into the mapped file;
// never copied.
struct WeightMatrix {
  const QuantFormat* format = nullptr;
  const uint8_t* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;

  int64_t row_bytes() const { return cols / format->block_size * format->block_bytes; }
};

// One product. Jobs of one call share the input, so that q, k and v (or gate and up) are a single
// pass.
struct MatmulJob {
  const WeightMatrix* weight;
  const float* bias;  // [rows] or null
  float* out;         // [tokens, rows], row stride out_stride
  int64_t out_stride;
  bool accumulate;  // add to what is in out
};

// Reused memory of matmul(); one per caller, not shared between threads that call at the same time.
class MatmulScratch {
 public:
  std::vector<uint8_t>& bytes(int index);

 private:
  std::vector<std::vector<uint8_t>> buffers_;
};

// x [tokens, cols], row stride x_stride. Quantized weights: x is rounded to int8 in groups of 32
// and the products are integer dot products; F32, F16 and BF16 weights: float32 arithmetic. A
// token's result does not depend on the others in x beyond float rounding.
void matmul(const Kernels& kernels, ThreadPool& pool, MatmulScratch& scratch, const float* x,
            int64_t x_stride, int64_t tokens, std::span<const MatmulJob> jobs);

// out [cols] = row of the weight, decoded. For embeddings.
void decode_row(const WeightMatrix& weight, int64_t row, float* out);

}  // namespace lola

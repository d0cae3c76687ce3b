// Matrix products of float32 activations with stored weights of any format: out = x W' (+ bias).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/kernels.h"
#include "kernels/weight_layout.h"

namespace lola {

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
  // At least so many bytes, at the start of a cache line; what they held is lost when they grow.
  uint8_t* get(int index, size_t bytes);

 private:
  struct Delete {
    void operator()(uint8_t* data) const;
  };
  struct Memory {
    std::unique_ptr<uint8_t, Delete> data;
    size_t bytes = 0;
  };
  std::vector<Memory> memories_;
};

// x [tokens, cols], row stride x_stride; weights in panels. Quantized weights: x is rounded to int8
// in groups of 32 and the products are integer dot products; F32, F16 and BF16 weights: float32
// arithmetic. Neither the other tokens in x nor the number of threads change a bit of a token's
// result.
void matmul(const Kernels& kernels, ThreadPool& pool, MatmulScratch& scratch, const float* x,
            int64_t x_stride, int64_t tokens, std::span<const MatmulJob> jobs);

}  // namespace lola

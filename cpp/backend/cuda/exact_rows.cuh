// Softmax attention of a tile of rows over exact pairs.
#pragma once

#include "backend/cuda/pair_ring.cuh"
#include "backend/cuda/row_tile.cuh"

namespace lola {

// Pairs in shared memory at a time.
template <PairType type, int kDim>
constexpr int kPairsAtOnce = type == PairType::kF16 ? 8192 / kDim : 4096 / kDim;

// Shared memory of a block.
template <PairType type, int kDim>
struct ExactMemory {
  using Element = typename Staged<type>::Element;
  static constexpr int kPairs = kPairsAtOnce<type, kDim>;
  float* rows;  // [kRows, rows_stride]
  Element* k;   // [kPairs, k_stride]
  Element* v;   // [kPairs, v_stride]
  int rows_stride, k_stride, v_stride;

  __device__ ExactMemory(void* shared, int head_dim)
      : rows_stride(dots_stride<float>(head_dim)),
        k_stride(dots_stride<Element>(head_dim)),
        v_stride(weighted_stride<Element>(head_dim)) {
    rows = static_cast<float*>(shared);
    k = reinterpret_cast<Element*>(rows + RowTile<kDim>::kRows * rows_stride);
    v = k + kPairs * k_stride;
  }
  static int64_t bytes(int head_dim) {
    return RowTile<kDim>::kRows * dots_stride<float>(head_dim) * int64_t{4} +
           kPairs * (dots_stride<Element>(head_dim) + weighted_stride<Element>(head_dim)) *
               static_cast<int64_t>(sizeof(Element));
  }
};

// to [kRows, stride] = row(r) [head_dim], float32, of the first `count` rows; zero for the others.
template <int kDim, typename Row>
__device__ inline void load_rows(float* to, int stride, int head_dim, int count, const Row& row) {
  stage_rows<PairType::kF32, RowTile<kDim>::kThreads, RowTile<kDim>::kRows, kDim>(
      to, stride, dots_columns(head_dim), head_dim, count, row);
}

// Running softmax over pairs, of a lane's two rows; `sum` is the lane's share.
template <int kDim>
struct ExactRows {
  float max[2] = {-INFINITY, -INFINITY};
  float sum[2] = {};
  RowSums<RowTile<kDim>::kGroups> y;

  // The pairs in shared memory, of which row `row` sees the first seen[0], row + 8 the first
  // seen[1]. Their logits first, then, with the values there too, the rest.
  template <PairType type>
  struct Weights {
    float of[kPairsAtOnce<type, kDim> / 8][4] = {};
  };

  template <PairType type>
  __device__ void weigh(const Lane& lane, const int seen[2], float scale, Weights<type>& weights) {
    float peak[2] = {max[0], max[1]}, rescale[2];
    constexpr int kCount = kPairsAtOnce<type, kDim> / 8 * 4;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      float& w = weights.of[i / 4][i % 4];
      const bool sees = i / 4 * 8 + lane.quarter * 2 + i % 2 < seen[i % 4 / 2];
      w = sees ? w * scale : -INFINITY;
      peak[i % 4 / 2] = fmaxf(peak[i % 4 / 2], w);
    }
    over_row(peak, [](float a, float b) { return fmaxf(a, b); });
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      rescale[i] = max[i] == -INFINITY ? 0.0f : expf(max[i] - peak[i]);
      max[i] = peak[i];
      sum[i] *= rescale[i];
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      float& w = weights.of[i / 4][i % 4];
      w = w == -INFINITY ? 0.0f : expf(w - peak[i % 4 / 2]);
      sum[i % 4 / 2] += w;
    }
    y.scale(rescale);
  }

  template <PairType type>
  __device__ void add(const Lane& lane, const ExactMemory<type, kDim>& m, int head_dim,
                      const Weights<type>& weights) {
#pragma unroll
    for (int t = 0; t < kPairsAtOnce<type, kDim> / 8; ++t) {
      const float* w = weights.of[t];
      add_weighted<RowTile<kDim>::kGroups, type == PairType::kF16>(
          lane, split_rows(w[0], w[2], w[1], w[3]), m.v + t * 8 * m.v_stride, m.v_stride, 0,
          head_dim, y);
    }
  }
};

// A tile of pairs, keys or values, on its way to shared memory. row(i, value): where pair i of
// `pairs` is stored.
template <PairType type, int kDim, typename Row>
__device__ inline void load_pairs(const ExactMemory<type, kDim>& m, int head_dim, int begin,
                                  int pairs, bool value, const Row& row) {
  constexpr int kPairs = kPairsAtOnce<type, kDim>;
  stage_rows<type, RowTile<kDim>::kThreads, kPairs, kDim>(
      value ? m.v : m.k, value ? m.v_stride : m.k_stride, value ? head_dim : dots_columns(head_dim),
      head_dim, min(kPairs, pairs - begin), [&](int i) { return row(begin + i, value); });
  end_copies();
}

// All of a block's pairs. Row r of the block sees the first seen(r) of them. m.rows is on its way;
// at the end nobody reads m any more.
template <PairType type, int kDim, typename Row, typename Seen>
__device__ inline void add_pairs(const ExactMemory<type, kDim>& m, const Lane& lane, int head_dim,
                                 int pairs, bool has_rows, const Row& row, const Seen& seen,
                                 ExactRows<kDim>& exact) {
  constexpr int kPairs = kPairsAtOnce<type, kDim>;
  const float scale = 1.0f / sqrtf(static_cast<float>(head_dim));
  const int first = static_cast<int>(threadIdx.x) / 32 * kWarpRows;
  load_pairs(m, head_dim, 0, pairs, false, row);
#pragma unroll 1
  for (int begin = 0; begin < pairs; begin += kPairs) {
    load_pairs(m, head_dim, begin, pairs, true, row);
    wait_for_copies<1>();
    __syncthreads();
    typename ExactRows<kDim>::template Weights<type> weights;
    if (has_rows) {
      add_dots<kPairs / 8, type == PairType::kF16>(lane, m.rows + first * m.rows_stride,
                                                   m.rows_stride, m.k, m.k_stride,
                                                   dots_columns(head_dim), weights.of);
    }
    __syncthreads();
    const bool more = begin + kPairs < pairs;
    if (more) load_pairs(m, head_dim, begin + kPairs, pairs, false, row);
    if (has_rows) {
      const int sees[2] = {seen(first + lane.row) - begin, seen(first + lane.row + 8) - begin};
      exact.weigh(lane, sees, scale, weights);
    }
    more ? wait_for_copies<1>() : wait_for_copies<0>();
    __syncthreads();
    if (has_rows) exact.add(lane, m, head_dim, weights);
    __syncthreads();
  }
  over_row(exact.sum, [](float a, float b) { return a + b; });
}

}  // namespace lola

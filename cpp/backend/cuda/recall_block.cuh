// How a block maps and scores the eligible pairs of one head on warpgroup tensor cores. Products
// are as exact as those of row_tile.cuh: maps and hidden states, cut in two, go from registers;
// keys, which tf32 holds as they are float16, and their features, cut in two, from shared memory.
#pragma once

#include "backend/cuda/bulk_copy.cuh"
#include "backend/cuda/lola_boundary.cuh"
#include "backend/cuda/row_tile.cuh"
#include "backend/cuda/wgmma.cuh"

namespace lola::recall {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kGroups = kThreads / 128;  // warpgroups
constexpr int kRows = 64;                // pairs of a block
constexpr int kGroupRows = kRows / kGroups;
constexpr int kPairLanes = kThreads / kRows;  // 4: neighbours of a place
constexpr int kMostFeatures = 128;
constexpr int kTile = 64;                  // features or columns that a warpgroup multiplies
constexpr int kFour = 4 * kRows + 4;       // floats from four values of all pairs to the next
constexpr int kStep = 2 * kFour * 4 / 16;  // eight values, in what describes them to products
constexpr int kPlaces = kMostFeatures / 4 * kFour;
constexpr int kValueStride = kMostFeatures + 8;

// Where a pair's value j is.
__device__ inline int place(int row, int j) { return j / 4 * kFour + row * 4 + j % 4; }
// Where column c of its key is: a lane multiplies four neighbours of a map's row.
__device__ inline int key_place(int row, int c) {
  return (c / 16 * 4 + c % 4) * kFour + row * 4 + c % 16 / 4;
}

struct RecallMemory {
  float* high;           // [kPlaces] what tf32 holds of the features
  float* low;            // [kPlaces] what it does not; before them the keys
  float* sum;            // [kMostFeatures] s
  float* sums;           // [kRows] phi's
  float* norms;          // [kRows] of the keys, squared
  float* errors;         // [kWarps, kRows] parts of them
  const uint8_t** rows;  // [2, kRows] where keys and values are stored
  int* numbers;          // [kRows]
  __half* v;             // [kRows, kValueStride]

  __device__ explicit RecallMemory(float* shared)
      : high(shared),
        low(high + kPlaces),
        sum(low + kPlaces),
        sums(sum + kMostFeatures),
        norms(sums + kRows),
        errors(norms + kRows),
        rows(reinterpret_cast<const uint8_t**>(errors + kWarps * kRows)),
        numbers(reinterpret_cast<int*>(rows + 2 * kRows)),
        v(reinterpret_cast<__half*>(numbers + kRows)) {}
  static constexpr int64_t kBytes =
      4 * (2 * kPlaces + kMostFeatures + 7 * kRows + kWarps * kRows) + 2 * kRows * kValueStride;
};

// The pairs of a block, of one head.
struct RecallPairs {
  const LolaView& view;
  const RunScratch& scratch;
  const DeviceBoundary& boundary;
  Owner owner;
  int first, count;

  __device__ int number(int row) const {
    return eligible_number(view, scratch, boundary, owner.index, first + min(row, count - 1));
  }
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// m.numbers and m.rows. Not yet for the others of the block to read.
__device__ inline void find_rows(const RecallPairs& pairs, const RecallMemory& m) {
  const int row = threadIdx.x % kRows;
  const bool value = static_cast<int>(threadIdx.x) >= kRows;
  if (threadIdx.x >= 2 * kRows) return;
  const int number = pairs.number(row);
  if (!value) m.numbers[row] = number;
  m.rows[threadIdx.x] = numbered_row(pairs.view, pairs.scratch, pairs.boundary.memory,
                                     pairs.boundary.numbers, pairs.owner, number, value);
}

// m.low = the keys, m.norms theirs. A warp has eight rows, a lane 8 neighbouring columns at a time.
template <int kDim>
__device__ inline void load_keys(const RecallPairs& pairs, const RecallMemory& m) {
  constexpr int kUnits = kDim / 8 / 4;  // of a lane
  const int lane = threadIdx.x % 32, row = static_cast<int>(threadIdx.x) / 32 * 8 + lane % 8;
  const int d = pairs.view.head_dim;
  const uint8_t* key = m.rows[row];
  Eight held[kUnits];
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    held[i] = load_eight<PairType::kF16>(key, min((lane / 8 + i * 4) * 8, d - 8));
  }
  float norm = 0.0f;
  float* to = m.low + key_place(row, lane / 8 * 8);
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    const bool real = row < pairs.count && (lane / 8 + i * 4) * 8 < d;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      held[i].v[j] = real ? held[i].v[j] : 0.0f;
      norm += held[i].v[j] * held[i].v[j];
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      *reinterpret_cast<float2*>(to + (8 * i + j) * kFour) = {held[i].v[j], held[i].v[j + 4]};
    }
  }
  norm += __shfl_xor_sync(~0u, norm, 8);
  norm += __shfl_xor_sync(~0u, norm, 16);
  if (lane < 8) m.norms[row] = norm;
}

// What a lane multiplies of W, on its way: of 64 rows from `first` on two, of every 16 columns four
// neighbours.
struct MapRows {
  static constexpr int kAhead = 4;
  const float* from;
  int left, d;  // rows of W from the lane's first on
  float4 part[kAhead][2];

  __device__ MapRows(const float* w, int first, int map_size, int head_dim) : d(head_dim) {
    const Lane lane;
    const int row = first + static_cast<int>(threadIdx.x) / 32 % 4 * kWarpRows + lane.row;
    from = w + static_cast<int64_t>(row) * d + lane.quarter * 4;
    left = map_size - row;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) load(i);
  }
  __device__ void load(int step) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int c = step * 16;
      const bool real = 8 * n < left && c + static_cast<int>(threadIdx.x) % 4 * 4 < d;
      part[step % kAhead][n] = real ? four_at(from + 8 * n * d + c) : float4{};
    }
  }
};

// m.high = W k of 64 features, from `first` on. A warpgroup has half of the pairs.
template <int kDim>
__device__ inline void map_tile(const RecallPairs& pairs, const RecallMemory& m, MapRows& rows,
                                int first) {
  const Lane lane;
  const FeatureMap& map = pairs.view.map;
  const int pair = static_cast<int>(threadIdx.x) / 128 * kGroupRows;
  const uint32_t keys = wgmma_vectors(shared_address(m.low + pair * 4), kFour * 4);
  float z[kGroupRows / 2] = {};
  SplitRows turns[2][2];  // one is multiplied while the other is cut
#pragma unroll
  for (int i = 0; i < kDim / 16; ++i) {
    const float4 &a = rows.part[i % rows.kAhead][0], &b = rows.part[i % rows.kAhead][1];
    const SplitRows one = split_rows(a.x, b.x, a.y, b.y), two = split_rows(a.z, b.z, a.w, b.w);
    if (i + rows.kAhead < kDim / 16) rows.load(i + rows.kAhead);
    wgmma_wait<1>();
    turns[i % 2][0] = one, turns[i % 2][1] = two;
    wgmma_fence();
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      wgmma_tf32<kGroupRows>(z, turns[i % 2][n].low, keys + (2 * i + n) * kStep);
      wgmma_tf32<kGroupRows>(z, turns[i % 2][n].high, keys + (2 * i + n) * kStep);
    }
    wgmma_commit();
  }
  wgmma_wait<0>();
  const int j = first + static_cast<int>(threadIdx.x) / 32 % 4 * kWarpRows + lane.row;
  const int row = pair + lane.quarter * 2;
  float* to = m.high + place(row, j);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (j + 8 * half >= map.map_size) break;
    const float* key = m.low + key_place(row, j + 8 * half);
#pragma unroll
    for (int i = 0; i < kGroupRows / 4; ++i) {
      const int at = (i / 2 * 8 + i % 2) * 4;
      to[2 * half * kFour + at] = z[i / 2 * 4 + half * 2 + i % 2] + (map.skip ? key[at] : 0.0f);
    }
  }
}

// m.high and m.low = phi of m.high, m.sums = phi's.
__device__ inline void find_features(const RecallPairs& pairs, const RecallMemory& m) {
  const int row = static_cast<int>(threadIdx.x) / kPairLanes, f = pairs.view.features;
  const int first = static_cast<int>(threadIdx.x) % kPairLanes;
  activate<kPairLanes>(pairs.view.map, static_cast<int>(pairs.view.map.map_size),
                       [&](int j) -> float& { return m.high[place(row, j)]; });
  __syncwarp();
  float sum = 0.0f;
#pragma unroll 4
  for (int i = 0; i < kMostFeatures / kPairLanes; ++i) {
    const int j = i * kPairLanes + first, at = i * kFour + row * 4 + first;
    const float phi = j < f ? m.high[at] : 0.0f;
    const Split parts = split(phi);
    m.high[at] = __uint_as_float(parts.high);
    m.low[at] = __uint_as_float(parts.low);
    sum += phi * m.sum[j];
  }
  for (int offset = kPairLanes / 2; offset > 0; offset /= 2) {
    sum += __shfl_xor_sync(~0u, sum, offset);
  }
  if (first == 0) m.sums[row] = sum;
}

// What a lane multiplies of Hs, on its way: two columns of features j and j + 4 of every eight.
struct StateColumns {
  static constexpr int kAhead = 8;
  const float* from;
  int features, d;
  float2 part[kAhead][2];

  __device__ StateColumns(const float* state, int column, int feature_count, int head_dim)
      : from(column < head_dim ? state + column : nullptr), features(feature_count), d(head_dim) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) load(i);
  }
  __device__ void load(int step) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int j = step * 8 + n * 4 + static_cast<int>(threadIdx.x) % 4;
      part[step % kAhead][n] = from != nullptr && j < features
                                   ? *reinterpret_cast<const float2*>(from + j * d)
                                   : float2{};
    }
  }
};

// How a warpgroup's share of kDim columns and kRows pairs is cut.
template <int kDim>
struct ScorePart {
  static constexpr int kPairs = kDim == kTile ? kGroupRows : kRows;
  int warp, pair, column;  // column: of a lane, and the next

  __device__ ScorePart()
      : warp(static_cast<int>(threadIdx.x) / 32),
        pair(kDim == kTile ? warp / 4 * kGroupRows : 0),
        column((kDim == kTile ? warp % 4 : warp) * kWarpRows + Lane().row * 2) {}
};

// y = Hs' phi, of the lane's columns and pairs.
template <int kDim>
__device__ inline void read_state(const RecallMemory& m, const ScorePart<kDim>& part,
                                  StateColumns& state, float* y) {
  constexpr int kPairs = ScorePart<kDim>::kPairs, kSteps = kMostFeatures / 8;
  const uint32_t high = wgmma_vectors(shared_address(m.high + part.pair * 4), kFour * 4);
  const uint32_t low = wgmma_vectors(shared_address(m.low + part.pair * 4), kFour * 4);
  SplitRows turns[2][2];
#pragma unroll
  for (int i = 0; i < kSteps / 2; ++i) {
    SplitRows next[2];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const float2(&x)[2] = state.part[(2 * i + n) % state.kAhead];
      next[n] = split_rows(x[0].x, x[0].y, x[1].x, x[1].y);
      if (2 * i + n + state.kAhead < kSteps) state.load(2 * i + n + state.kAhead);
    }
    wgmma_wait<1>();
    turns[i % 2][0] = next[0], turns[i % 2][1] = next[1];
    wgmma_fence();
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      wgmma_tf32<kPairs>(y, turns[i % 2][n].low, high + (2 * i + n) * kStep);
      wgmma_tf32<kPairs>(y, turns[i % 2][n].high, low + (2 * i + n) * kStep);
      wgmma_tf32<kPairs>(y, turns[i % 2][n].high, high + (2 * i + n) * kStep);
    }
    wgmma_commit();
  }
}

// scratch.key_features of the block's pairs.
__device__ inline void store_features(const RecallPairs& pairs, const RecallMemory& m, int head) {
  const int stride = feature_stride(pairs.view.features), j = threadIdx.x % 32 * 4;
  if (j >= stride) return;
#pragma unroll 1
  for (int r = threadIdx.x / 32; r < pairs.count; r += kWarps) {
    const int64_t to = head * pairs.scratch.rows + pairs.boundary.feature_row + m.numbers[r];
    const float4 a = four_at(m.high + place(r, j)), b = four_at(m.low + place(r, j));
    *reinterpret_cast<float4*>(pairs.scratch.key_features + to * stride + j) = {
        a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
  }
}

// m.errors = the parts of SRE in a warp's columns.
template <int kDim>
__device__ inline void find_errors(const RecallMemory& m, const ScorePart<kDim>& part, int d,
                                   bool empty, const float* y) {
  const Lane lane;
  constexpr int kPairs = ScorePart<kDim>::kPairs;
#pragma unroll
  for (int i = 0; i < kPairs / 4; ++i) {
    const int row = part.pair + i / 2 * 8 + lane.quarter * 2 + i % 2;
    const float factor = empty ? 1.0f : 1.0f / m.sums[row];
    const float2 v =
        __half22float2(*reinterpret_cast<const __half2*>(m.v + row * kValueStride + part.column));
    const float first = y[i / 2 * 4 + i % 2] * factor - v.x;
    const float second = y[i / 2 * 4 + i % 2 + 2] * factor - v.y;
    float squares = part.column < d ? first * first + second * second : 0.0f;
    for (int offset = 4; offset < 32; offset *= 2) {
      squares += __shfl_xor_sync(~0u, squares, offset);
    }
    if (lane.row == 0) m.errors[part.warp * kRows + row] = squares;
  }
}

#endif

}  // namespace lola::recall

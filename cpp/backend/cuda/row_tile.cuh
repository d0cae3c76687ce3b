// Attention of 16 rows (queries, or keys asked for their recall) by a block of 4 warps.
//
// Products run on tensor cores as tf32 and are as exact as float32: each factor is cut in two that
// tf32 holds, and only the product of the two small parts is left out. A lane holds two rows: 8
// vectors of each of a tile of up to 128, or 8 columns of each of every 128.
#pragma once

#include <cstdint>

#include "backend/cuda/cuda_check.cuh"
#include "backend/cuda/pair_storage.cuh"

namespace lola {

constexpr int kTileRows = 16;
constexpr int kTileVectors = 128;
constexpr int kTileThreads = 128;
constexpr int kMaxHeadDim = 256;
constexpr int kColumnBlocks = kMaxHeadDim / kTileVectors;
constexpr int kWeightStride = kTileRows + 8;  // floats; rows of weights [vectors, rows]
constexpr int kStepColumns = 16;              // of rows and vectors that a lane reads at a time

// Which part of a tile product or of a sum a lane holds.
struct LanePart {
  int row;      // and row + 8
  int quarter;  // of the four lanes that share rows
  int columns;  // the first of its 8, of every 128

  __device__ LanePart()
      : row(static_cast<int>(threadIdx.x) % 32 / 4),
        quarter(static_cast<int>(threadIdx.x) % 4),
        columns(static_cast<int>(threadIdx.x) / 32 * 32 + quarter * 8) {}
  // Vector i of its 8.
  __device__ int vector(int i) const {
    return static_cast<int>(threadIdx.x) / 32 * 32 + i / 2 * 8 + quarter * 2 + i % 2;
  }
};

// Sums over weighted vectors, 2 rows by 8 columns of every 128 a lane.
struct RowSums {
  float value[kColumnBlocks][2][8];

  __device__ RowSums() : value{} {}
  __device__ void scale(const float factor[2]) {
#pragma unroll
    for (int i = 0; i < kColumnBlocks * 16; ++i)
      value[i / 16][i / 8 % 2][i % 8] *= factor[i / 8 % 2];
  }
};

// A float as the sum of two numbers that tf32 holds.
struct Split {
  uint32_t high, low;
};

__device__ inline Split split(float x) {
  const uint32_t high = __float_as_uint(x) & 0xFFFFE000u;
  return {high, __float_as_uint(x - __uint_as_float(high))};
}

__device__ inline void mma_tf32(float d[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, "
      "%9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The 16 by 8 factor of a warp: of a lane's rows the elements quarter and quarter + 4.
struct SplitRows {
  uint32_t high[4], low[4];
};

__device__ inline SplitRows split_rows(float a0, float a1, float a2, float a3) {
  const Split parts[4] = {split(a0), split(a1), split(a2), split(a3)};
  SplitRows rows;
#pragma unroll
  for (int i = 0; i < 4; ++i) rows.high[i] = parts[i].high, rows.low[i] = parts[i].low;
  return rows;
}

// d += a b. exact: tf32 holds b as it is.
template <bool exact>
__device__ inline void add_product(float d[4], const SplitRows& a, float b0, float b1) {
  const Split first = split(b0), second = split(b1);
  mma_tf32(d, a.low, first.high, second.high);
  if constexpr (!exact) mma_tf32(d, a.high, first.low, second.low);
  mma_tf32(d, a.high, first.high, second.high);
}

// Floats from row to row in shared memory: neighbours are half of the banks apart.
__host__ __device__ constexpr int tile_stride(int head_dim) {
  return head_dim + (48 - head_dim % 32) % 32;
}

// Shared memory of a block.
struct TileMemory {
  float* rows;     // [kTileRows, stride]
  float* weights;  // [max(kTileVectors, features), kWeightStride], of vectors for rows
  float* lines;    // [4, kTileRows] numbers of a row, of the warps
  int stride;

  __device__ TileMemory(float* shared, int head_dim, int features) {
    stride = tile_stride(head_dim);
    rows = shared;
    weights = rows + kTileRows * stride;
    lines = weights + max(kTileVectors, features) * kWeightStride;
  }
};

inline int64_t tile_memory_bytes(int64_t head_dim, int64_t features) {
  return 4 * (kTileRows * tile_stride(static_cast<int>(head_dim)) +
              std::max<int64_t>(kTileVectors, features) * kWeightStride + 4 * kTileRows);
}

// Columns of rows in shared memory: those past head_dim are zero.
__device__ inline int tile_columns(int head_dim) {
  return (head_dim + kStepColumns - 1) / kStepColumns * kStepColumns;
}

// m.rows = row(r) [head_dim], float32, of the first `count` rows; zero for the others. A warp has
// four.
template <typename Row>
__device__ inline void load_rows(const TileMemory& m, int head_dim, int count, const Row& row) {
  constexpr int kRows = kTileRows * 32 / kTileThreads;
  const int first = threadIdx.x / 32 * kRows;
  for (int c = threadIdx.x % 32; c < tile_columns(head_dim); c += 32) {
    float x[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) x[r] = row(min(first + r, count - 1))[min(c, head_dim - 1)];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      m.rows[(first + r) * m.stride + c] = first + r < count && c < head_dim ? x[r] : 0.0f;
    }
  }
}

__device__ inline float4 four_at(const float* from) {
  return *reinterpret_cast<const float4*>(from);
}

// product[i][j] = row (part.row + 8 i) . vector (part.vector(j)) of the first `count` vectors;
// vector(v) gives what reads four of its values. exact: tf32 holds the vectors. A vector is read
// once, by one warp: nothing would be gained by sharing it.
template <bool exact, typename Vector>
__device__ inline void tile_product(const TileMemory& m, const LanePart& part, int head_dim,
                                    int count, const Vector& vector, float product[2][8]) {
  float sums[4][4] = {};
  const int first = static_cast<int>(threadIdx.x) / 32 * 32;
  const auto vector_of = [&](int tile) {
    return vector(min(first + tile * 8 + part.row, count - 1));
  };
  const decltype(vector_of(0)) vectors[4] = {vector_of(0), vector_of(1), vector_of(2),
                                             vector_of(3)};
  const float* rows = m.rows + part.row * m.stride + part.quarter * 4;
#pragma unroll 4
  for (int c = 0; c < (first < count ? head_dim : 0); c += kStepColumns) {
    const float4 a = four_at(rows + c), b = four_at(rows + 8 * m.stride + c);
    const SplitRows one = split_rows(a.x, b.x, a.y, b.y), two = split_rows(a.z, b.z, a.w, b.w);
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
      const float4 x = vectors[tile](min(c + part.quarter * 4, head_dim - 4));
      add_product<exact>(sums[tile], one, x.x, x.y);
      add_product<exact>(sums[tile], two, x.z, x.w);
    }
  }
#pragma unroll
  for (int i = 0; i < 16; ++i) product[i / 8][i % 8] = sums[i % 8 / 2][i / 8 * 2 + i % 2];
}

// sums += weights' vectors, for vectors that `vector(v, column)` gives as float4; exact: tf32 holds
// them.
template <bool exact, typename Vector>
__device__ inline void add_weighted(const TileMemory& m, const LanePart& part, int head_dim,
                                    int count, const Vector& vector, RowSums& sums) {
#pragma unroll
  for (int block = 0; block < kColumnBlocks; ++block) {
    const int first = static_cast<int>(threadIdx.x) / 32 * 32 + block * kTileVectors;
    if (first >= head_dim) continue;
    // The 8 columns of the other factor are four apart: a lane reads what four products take.
    const int column = min(first + part.row * 4, head_dim - 4);
    float d[4][4];
#pragma unroll
    for (int i = 0; i < 16; ++i) d[i / 4][i % 4] = sums.value[block][i % 4 / 2][i % 2 * 4 + i / 4];
#pragma unroll 8
    for (int v = part.quarter; v - part.quarter < count; v += 8) {
      const int second = v + 4;
      const float* w = m.weights + v * kWeightStride + part.row;
      const float* u = w + 4 * kWeightStride;
      const bool has = v < count, has_second = second < count;
      const SplitRows a = split_rows(has ? w[0] : 0.0f, has ? w[8] : 0.0f, has_second ? u[0] : 0.0f,
                                     has_second ? u[8] : 0.0f);
      const float4 x = vector(min(v, count - 1), column),
                   y = vector(min(second, count - 1), column);
      add_product<exact>(d[0], a, x.x, y.x);
      add_product<exact>(d[1], a, x.y, y.y);
      add_product<exact>(d[2], a, x.z, y.z);
      add_product<exact>(d[3], a, x.w, y.w);
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) sums.value[block][i % 4 / 2][i % 2 * 4 + i / 4] = d[i / 4][i % 4];
  }
}

// Calls store(row, column, value) for each of a lane's sums.
template <typename Store>
__device__ inline void for_sums(const LanePart& part, int head_dim, const RowSums& sums,
                                const Store& store) {
#pragma unroll
  for (int i = 0; i < kColumnBlocks * 16; ++i) {
    const int column = part.columns + i / 16 * kTileVectors + i % 8;
    if (column < head_dim)
      store(part.row + i / 8 % 2 * 8, column, sums.value[i / 16][i / 8 % 2][i % 8]);
  }
}

// Each row combined over the 4 lanes that share it, and over the 4 warps; every lane gets its rows.
template <typename Combine>
__device__ inline void over_block(float value[2], const LanePart& part, float* lines,
                                  const Combine& combine) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    for (int offset = 2; offset > 0; offset /= 2) {
      value[i] = combine(value[i], __shfl_xor_sync(~0u, value[i], offset));
    }
  }
  const int warp = threadIdx.x / 32;
  if (part.quarter == 0) {
    for (int i = 0; i < 2; ++i) lines[warp * kTileRows + part.row + 8 * i] = value[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    value[i] = lines[part.row + 8 * i];
    for (int w = 1; w < 4; ++w)
      value[i] = combine(value[i], lines[w * kTileRows + part.row + 8 * i]);
  }
  __syncthreads();
}

// Running softmax over tiles of pairs, of a lane's rows.
struct ExactPart {
  float max[2];
  float sum[2];
  RowSums y;

  __device__ ExactPart() {
    for (int i = 0; i < 2; ++i) max[i] = -INFINITY, sum[i] = 0.0f;
  }
};

// Pairs of a tile: key(v) and value(v) are their stored rows, row r sees the first visible(r) of
// them.
template <PairType type, typename Rows, typename Visible>
__device__ inline void add_pairs(const TileMemory& m, const LanePart& part, int head_dim, int count,
                                 const Rows& key, const Rows& value, const Visible& visible,
                                 float scale, ExactPart& exact) {
  constexpr bool kExact = type == PairType::kF16;
  __syncthreads();
  float logit[2][8], peak[2];
  tile_product<kExact>(
      m, part, head_dim, count,
      [&](int v) { return [from = key(v)](int c) { return load_four<type>(from, c); }; }, logit);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    peak[i] = exact.max[i];
    const int seen = min(count, visible(part.row + 8 * i));
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      logit[i][j] = part.vector(j) < seen ? logit[i][j] * scale : -INFINITY;
      peak[i] = fmaxf(peak[i], logit[i][j]);
    }
  }
  over_block(peak, part, m.lines, [](float a, float b) { return fmaxf(a, b); });
  float rescale[2], added[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    rescale[i] = exact.max[i] == -INFINITY ? 0.0f : expf(exact.max[i] - peak[i]);
    exact.max[i] = peak[i];
    added[i] = 0.0f;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float w = logit[i][j] == -INFINITY ? 0.0f : expf(logit[i][j] - peak[i]);
      m.weights[part.vector(j) * kWeightStride + part.row + 8 * i] = w;
      added[i] += w;
    }
  }
  over_block(added, part, m.lines, [](float a, float b) { return a + b; });
#pragma unroll
  for (int i = 0; i < 2; ++i) exact.sum[i] = exact.sum[i] * rescale[i] + added[i];
  exact.y.scale(rescale);
  add_weighted<kExact>(
      m, part, head_dim, count, [&](int v, int c) { return load_four<type>(value(v), c); },
      exact.y);
}

}  // namespace lola

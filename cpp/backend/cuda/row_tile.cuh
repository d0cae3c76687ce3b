// Attention of 16 rows (queries, or keys asked for their recall) by a block of 4 warps, in float32.
//
// A product of rows with a tile of up to 128 vectors of shared memory gives each lane 4 by 4
// values; what is summed over the tile's vectors (values, or rows of Hs) lies in registers, 4 rows
// by 4 columns of every 128.
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
constexpr int kWeightStride = kTileRows + 4;  // floats; rows of weights [vectors, rows]

// Which part of a tile product or of a sum a lane holds.
struct LanePart {
  int rows;     // the first of its 4 rows
  int vectors;  // its vectors are this one and every eighth after it, 4 in all
  int columns;  // the first of its 4 columns, of every 128

  __device__ LanePart()
      : rows(static_cast<int>(threadIdx.x) % 32 / 8 * 4),
        vectors(static_cast<int>(threadIdx.x) / 32 * 32 + static_cast<int>(threadIdx.x) % 8),
        columns(static_cast<int>(threadIdx.x) / 32 * 32 + static_cast<int>(threadIdx.x) % 8 * 4) {}
};

// Sums over weighted vectors, 4 rows by 4 columns of every 128 a lane.
struct RowSums {
  float value[kColumnBlocks][4][4];

  __device__ RowSums() : value{} {}
  __device__ void scale(const float factor[4]) {
#pragma unroll
    for (int i = 0; i < kColumnBlocks * 16; ++i)
      value[i / 16][i / 4 % 4][i % 4] *= factor[i / 4 % 4];
  }
};

// Shared memory of a block.
struct TileMemory {
  float* rows;     // [kTileRows, stride]
  float* vectors;  // [most vectors of a tile, stride]
  float* weights;  // [max(kTileVectors, features), kWeightStride], of vectors for rows
  float* lines;    // [8, kTileRows] numbers of a row

  int stride;  // of rows and vectors: head_dim and 4 more, so that 8 vectors meet no bank twice

  __device__ TileMemory(float* shared, int head_dim, int most_vectors, int features) {
    stride = head_dim + 4;
    rows = shared;
    vectors = rows + kTileRows * stride;
    weights = vectors + most_vectors * stride;
    lines = weights + max(kTileVectors, features) * kWeightStride;
  }
};

inline int64_t tile_memory_bytes(int64_t head_dim, int64_t most_vectors, int64_t features) {
  return 4 * ((kTileRows + most_vectors) * (head_dim + 4) +
              std::max<int64_t>(kTileVectors, features) * kWeightStride + 8 * kTileRows);
}

// m.rows = row(r) [head_dim], float32, of the first `count` rows; zero for the others. A warp has
// four.
template <typename Row>
__device__ inline void load_rows(const TileMemory& m, int head_dim, int count, const Row& row) {
  constexpr int kRows = kTileRows * 32 / kTileThreads;
  const int first = threadIdx.x / 32 * kRows;
  for (int c = threadIdx.x % 32; c < head_dim; c += 32) {
    float x[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) x[r] = row(min(first + r, count - 1))[c];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      m.rows[(first + r) * m.stride + c] = first + r < count ? x[r] : 0.0f;
    }
  }
}

// m.vectors = row(v)(column) for the first `count` vectors, a warp per vector. Eight loads of a
// lane are on their way before the first is stored.
template <typename Row>
__device__ inline void load_vectors(const TileMemory& m, int head_dim, int count, const Row& row) {
  constexpr int kAtOnce = 8, kWarps = kTileThreads / 32;
  const int first = threadIdx.x / 32;
  for (int c = threadIdx.x % 32 * 4; c < head_dim; c += 128) {
    for (int begin = first; begin < count; begin += kAtOnce * kWarps) {
      float4 x[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) x[i] = row(min(begin + i * kWarps, count - 1))(c);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int v = begin + i * kWarps;
        if (v < count) *reinterpret_cast<float4*>(m.vectors + v * m.stride + c) = x[i];
      }
    }
  }
}

__device__ inline float dot4(const float4& a, const float4& b) {
  return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
}

// product[i][j] = row (part.rows + i) . vector (part.vectors + 8 j)
// of the first `count` vectors.
__device__ inline void tile_product(const TileMemory& m, const LanePart& part, int head_dim,
                                    int count, float product[4][4]) {
#pragma unroll
  for (int i = 0; i < 16; ++i) product[i / 4][i % 4] = 0.0f;
  if (static_cast<int>(threadIdx.x) / 32 * 32 >= count) return;
  for (int c = 0; c < head_dim; c += 4) {
    float4 a[4], b[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[i] = *reinterpret_cast<const float4*>(m.rows + (part.rows + i) * m.stride + c);
      b[i] = *reinterpret_cast<const float4*>(m.vectors + (part.vectors + 8 * i) * m.stride + c);
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) product[i / 4][i % 4] += dot4(a[i / 4], b[i % 4]);
  }
}

// sums += weights' vectors, for vectors that `vector(v, column)` gives as float4.
template <typename Vector>
__device__ inline void add_weighted(const TileMemory& m, const LanePart& part, int head_dim,
                                    int count, const Vector& vector, RowSums& sums) {
#pragma unroll
  for (int block = 0; block < kColumnBlocks; ++block) {
    const int column = part.columns + block * kTileVectors;
    if (column >= head_dim) continue;
#pragma unroll 16
    for (int v = 0; v < count; ++v) {
      const float4 w = *reinterpret_cast<const float4*>(m.weights + v * kWeightStride + part.rows);
      const float4 x = vector(v, column);
      const float weight[4] = {w.x, w.y, w.z, w.w}, value[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
      for (int i = 0; i < 16; ++i) sums.value[block][i / 4][i % 4] += weight[i / 4] * value[i % 4];
    }
  }
}

// Calls store(row, column, value) for each of a lane's sums.
template <typename Store>
__device__ inline void for_sums(const LanePart& part, int head_dim, const RowSums& sums,
                                const Store& store) {
#pragma unroll
  for (int i = 0; i < kColumnBlocks * 16; ++i) {
    const int column = part.columns + i / 16 * kTileVectors + i % 4;
    if (column < head_dim)
      store(part.rows + i / 4 % 4, column, sums.value[i / 16][i / 4 % 4][i % 4]);
  }
}

// Each row combined over the 8 lanes that share it, and over the 4 warps; every lane gets its rows.
template <typename Combine>
__device__ inline void over_block(float value[4], const LanePart& part, float* lines,
                                  const Combine& combine) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    for (int offset = 4; offset > 0; offset /= 2) {
      value[i] = combine(value[i], __shfl_xor_sync(~0u, value[i], offset));
    }
  }
  const int warp = threadIdx.x / 32;
  if (threadIdx.x % 8 == 0) {
    for (int i = 0; i < 4; ++i) lines[warp * kTileRows + part.rows + i] = value[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    value[i] = lines[part.rows + i];
    for (int w = 1; w < 4; ++w) value[i] = combine(value[i], lines[w * kTileRows + part.rows + i]);
  }
  __syncthreads();
}

// Running softmax over tiles of pairs, of a lane's rows.
struct ExactPart {
  float max[4];
  float sum[4];
  RowSums y;

  __device__ ExactPart() {
    for (int i = 0; i < 4; ++i) max[i] = -INFINITY, sum[i] = 0.0f;
  }
};

// Pairs of a tile: key(v) and value(v) are their stored rows, row r sees the first visible(r) of
// them.
template <PairType type, typename Rows, typename Visible>
__device__ inline void add_pairs(const TileMemory& m, const LanePart& part, int head_dim, int count,
                                 const Rows& key, const Rows& value, const Visible& visible,
                                 float scale, ExactPart& exact) {
  const auto load = [&](const Rows& row) {
    load_vectors(m, head_dim, count, [&](int v) {
      return [from = row(v)](int c) { return load_four<type>(from, c); };
    });
  };
  __syncthreads();
  load(key);
  __syncthreads();
  float logit[4][4], peak[4];
  tile_product(m, part, head_dim, count, logit);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    peak[i] = exact.max[i];
    const int seen = min(count, visible(part.rows + i));
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      logit[i][j] = part.vectors + 8 * j < seen ? logit[i][j] * scale : -INFINITY;
      peak[i] = fmaxf(peak[i], logit[i][j]);
    }
  }
  over_block(peak, part, m.lines, [](float a, float b) { return fmaxf(a, b); });
  float rescale[4], added[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    rescale[i] = exact.max[i] == -INFINITY ? 0.0f : expf(exact.max[i] - peak[i]);
    exact.max[i] = peak[i];
    added[i] = 0.0f;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float w = logit[i][j] == -INFINITY ? 0.0f : expf(logit[i][j] - peak[i]);
      m.weights[(part.vectors + 8 * j) * kWeightStride + part.rows + i] = w;
      added[i] += w;
    }
  }
  over_block(added, part, m.lines, [](float a, float b) { return a + b; });
#pragma unroll
  for (int i = 0; i < 4; ++i) exact.sum[i] = exact.sum[i] * rescale[i] + added[i];
  exact.y.scale(rescale);
  load(value);
  __syncthreads();
  add_weighted(
      m, part, head_dim, count,
      [&](int v, int c) { return *reinterpret_cast<const float4*>(m.vectors + v * m.stride + c); },
      exact.y);
}

}  // namespace lola

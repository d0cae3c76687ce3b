// Tensor-core products of tiles of rows (queries, or keys asked for their recall) with vectors in
// shared memory, each warp for itself and 16 rows.
//
// Products run as tf32 and are as exact as float32: each factor is cut in two that tf32 holds, and
// only the product of the two small parts is left out. Loops are unrolled only where that hides
// latency: fetching instructions costs short kernels more than it saves.
#pragma once

#include <cstdint>

#include "backend/cuda/cuda_check.cuh"
#include "backend/cuda/pair_storage.cuh"

namespace lola {

constexpr int kMaxHeadDim = 256;
constexpr int kWarpRows = 16;
constexpr int kGroupColumns = 32;  // of which a lane holds 8 neighbours

// How a block of rows is cut for heads of up to kDim values: everything fits the shared memory of
// small GPUs.
template <int kDim>
struct RowTile {
  static constexpr int kRows = kDim <= 128 ? 64 : 32;
  static constexpr int kWarps = kRows / kWarpRows;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kGroups = kDim / kGroupColumns;
};

// Calls f.template operator()<kDim>() for the least kDim that holds a head.
template <typename F>
void with_tile(int head_dim, const F& f) {
  if (head_dim <= 128) return f.template operator()<128>();
  return f.template operator()<kMaxHeadDim>();
}

// What a lane holds of 16 rows by 8 vectors: rows `row` and row + 8, vectors 2 quarter and the
// next.
struct Lane {
  int row, quarter;

  __device__ Lane()
      : row(static_cast<int>(threadIdx.x) % 32 / 4), quarter(static_cast<int>(threadIdx.x) % 4) {}
};

// A float as the sum of two numbers that tf32 holds.
struct Split {
  uint32_t high, low;
};

// The bits that tf32 has. A compiler that knew them would leave them away, as products do not read
// others, and copy the numbers to where a product takes them instead, again for each product.
static __constant__ uint32_t kTf32Bits = 0xFFFFE000u;

__device__ inline Split split(float x) {
  const uint32_t high = __float_as_uint(x) & kTf32Bits;
  return {high, __float_as_uint(x - __uint_as_float(high))};
}

__device__ inline void mma_tf32(float d[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, "
      "%9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The 16 by 8 factor of a warp: two elements of row `row`, each before that of row + 8.
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

// d[i] += a b[i]. exact: tf32 holds b as it is. Products that add to the same sums are kept apart
// (and volatile, or the compiler brings them together): each waits for the one before.
template <int count, bool exact>
__device__ inline void add_products(float (*d)[4], const SplitRows& a, const float (&b0)[count],
                                    const float (&b1)[count]) {
  Split first[count], second[count];
#pragma unroll
  for (int i = 0; i < count; ++i) {
    first[i] = exact ? Split{__float_as_uint(b0[i]), 0} : split(b0[i]);
    second[i] = exact ? Split{__float_as_uint(b1[i]), 0} : split(b1[i]);
  }
#pragma unroll
  for (int i = 0; i < count; ++i) mma_tf32(d[i], a.low, first[i].high, second[i].high);
#pragma unroll
  for (int i = 0; i < count && !exact; ++i) mma_tf32(d[i], a.high, first[i].low, second[i].low);
#pragma unroll
  for (int i = 0; i < count; ++i) mma_tf32(d[i], a.high, first[i].high, second[i].high);
}

// How stored pairs lie in shared memory: float16 as it is, all else as floats.
template <PairType type>
struct Staged {
  using Element = float;
};
template <>
struct Staged<PairType::kF16> {
  using Element = __half;
};
__device__ inline float4 four_at(const float* from) {
  return *reinterpret_cast<const float4*>(from);
}
__device__ inline float4 four_at(const __half* from) {
  return load_four<PairType::kF16>(reinterpret_cast<const uint8_t*>(from), 0);
}

// Elements from row to row of what add_dots() reads, and columns that it reads: those past head_dim
// are zero.
template <typename Element>
__host__ __device__ constexpr int dots_stride(int head_dim) {
  const int banks = 128 / static_cast<int>(sizeof(Element));  // elements in them
  return head_dim + (banks + 16 - head_dim % banks) % banks;
}
__host__ __device__ constexpr int dots_columns(int head_dim) { return (head_dim + 15) / 16 * 16; }

// Elements from row to row of what add_weighted() reads.
template <typename Element>
__host__ __device__ constexpr int weighted_stride(int head_dim) {
  return sizeof(Element) == 4 ? head_dim + 4 : head_dim + (32 + 8 - head_dim % 32) % 32;
}

// dots[t] += the warp's 16 rows times 8 vectors of tile t. exact: tf32 holds the vectors.
template <int kTiles, bool exact, typename Element>
__device__ inline void add_dots(const Lane& lane, const float* rows, int rows_stride,
                                const Element* vectors, int stride, int columns,
                                float (&dots)[kTiles][4]) {
  constexpr int kAtOnce = kTiles < 4 ? kTiles : 4;
  const float* own = rows + lane.row * rows_stride + lane.quarter * 4;
  const Element* vector = vectors + lane.row * stride + lane.quarter * 4;
#pragma unroll 2
  for (int c = 0; c < columns; c += 16) {
    const float4 a = four_at(own + c), b = four_at(own + 8 * rows_stride + c);
    const SplitRows one = split_rows(a.x, b.x, a.y, b.y), two = split_rows(a.z, b.z, a.w, b.w);
#pragma unroll
    for (int t = 0; t < kTiles; t += kAtOnce) {
      float x[4][kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const float4 four = four_at(vector + (t + i) * 8 * stride + c);
        x[0][i] = four.x, x[1][i] = four.y, x[2][i] = four.z, x[3][i] = four.w;
      }
      add_products<kAtOnce, exact>(dots + t, one, x[0], x[1]);
      add_products<kAtOnce, exact>(dots + t, two, x[2], x[3]);
    }
  }
}

// Sums of weighted vectors: of a lane's two rows 8 neighbouring columns of each group.
template <int kGroups>
struct RowSums {
  float part[kGroups][4][4];

  __device__ RowSums() : part{} {}
  __device__ void scale(const float factor[2]) {
#pragma unroll
    for (int i = 0; i < kGroups * 16; ++i) part[i / 16][i / 4 % 4][i % 4] *= factor[i % 4 / 2];
  }
  // Column 8 quarter + j of a group, of row row + 8 i.
  __device__ float& at(int group, int i, int j) { return part[group][j % 4][i * 2 + j / 4]; }
  __device__ float at(int group, int i, int j) const { return part[group][j % 4][i * 2 + j / 4]; }
};

// sums += weights (16 rows by 8 vectors) times the vectors, columns from `first` on.
template <int kGroups, bool exact, typename Element>
__device__ inline void add_weighted(const Lane& lane, const SplitRows& weights,
                                    const Element* vectors, int stride, int first, int head_dim,
                                    RowSums<kGroups>& sums) {
  const Element* vector = vectors + lane.quarter * 2 * stride;
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    if (first + group * kGroupColumns >= head_dim) break;
    const int column = min(first + group * kGroupColumns + lane.row * 4, head_dim - 4);
    const float4 x = four_at(vector + column), y = four_at(vector + stride + column);
    const float first_row[4] = {x.x, x.y, x.z, x.w}, second_row[4] = {y.x, y.y, y.z, y.w};
    add_products<4, exact>(sums.part[group], weights, first_row, second_row);
  }
}

// Over the four lanes that share rows.
template <typename Combine>
__device__ inline void over_row(float value[2], const Combine& combine) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    value[i % 2] = combine(value[i % 2], __shfl_xor_sync(~0u, value[i % 2], i < 2 ? 1 : 2));
  }
}

// 16 bytes on their way to shared memory, or zeros.
__device__ inline void copy_ahead(void* to, const void* from, bool there) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from),
               "r"(there ? 16 : 0)
               : "memory");
}
// The same of one float.
__device__ inline void copy_float_ahead(float* to, const float* from, bool there) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(at), "l"(from),
               "r"(there ? 4 : 0)
               : "memory");
}
__device__ inline void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until all but the latest `groups` of copies are there; for a block, before a barrier.
template <int groups>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
}

// to [kRows, stride] = columns [0, columns) of the stored rows row(r) of the first `count` >= 1,
// which have `width`; zero for others. Float16 is copied or becomes floats. By a block of kThreads.
template <PairType type, int kThreads, int kRows, int kMostColumns, typename Element, typename Row>
__device__ inline void stage_rows(Element* to, int stride, int columns, int width, int count,
                                  const Row& row) {
  constexpr int kUnit = 16 / sizeof(Element), kUnits = kMostColumns / kUnit;
  constexpr int kLanes = kUnits < 16 ? kUnits : 16;  // of a row
  constexpr int kStep = kThreads / kLanes, kCount = (kRows + kStep - 1) / kStep;
  constexpr int kAtOnce = kCount < 4 ? kCount : 4;  // rows that are looked up together
  static_assert(kCount % kAtOnce == 0);
  const int lane = static_cast<int>(threadIdx.x) % kLanes * kUnit;
  const int first = static_cast<int>(threadIdx.x) / kLanes;
#pragma unroll 1
  for (int batch = 0; batch < kCount; batch += kAtOnce) {
    const uint8_t* from[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) from[i] = row(min(first + (batch + i) * kStep, count - 1));
#pragma unroll
    for (int i = 0; i < kAtOnce * (kUnits / kLanes); ++i) {
      const int r = first + (batch + i % kAtOnce) * kStep;
      const int c = lane + i / kAtOnce * kLanes * kUnit;
      if ((kRows % kStep != 0 && r >= kRows) || c >= columns) continue;
      const uint8_t* source = from[i % kAtOnce];
      const bool there = r < count && c < width;
      Element* at = to + r * stride + c;
      if constexpr (type == PairType::kF32 || sizeof(Element) == 2) {
        copy_ahead(at, source + (there ? c * sizeof(Element) : 0), there);
      } else {
        *reinterpret_cast<float4*>(at) = there ? load_four<type>(source, c) : float4{};
      }
    }
  }
}

}  // namespace lola

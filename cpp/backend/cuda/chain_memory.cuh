// What a block of lola_chain.cu holds, and how blocks tell each other numbers.
#pragma once

#include "backend/cuda/lola_view.cuh"
#include "backend/cuda/row_tile.cuh"

namespace lola::chain {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kColumns = kGroupColumns;  // of a block
constexpr int kHalf = kColumns / 2;      // of a warp that absorbs, which has kWarpRows features
constexpr int kMostFeatures = kWarps / 2 * kWarpRows;
// Floats from two rows of Hs to the next two. They lie as products read them: columns 4 c and
// 4 c + 1 of the first row and of the second for every c, then the same of columns 4 c + 2 and
// 4 c + 3.
constexpr int kStateStride = 2 * kColumns + 8;

// Pairs lie in slots: as many as compete at one boundary and leave the window at the next.
template <PairType type>
struct Memory {
  using Element = typename Staged<type>::Element;
  static constexpr int kStride = kColumns + 16 / static_cast<int>(sizeof(Element));
  int slots, features, phi_stride;  // features: and zeros, to whole warps of them
  float* phi;                       // [slots, phi_stride]
  float* state;                     // [features / 2, kStateStride]
  float* sum;                       // [features]
  Element* v;                       // [slots, kStride]
  uint32_t* keys;                   // [most], in the order of the scores
  int* order;                       // [2, most]: slots of the eligible pairs, now and next
  int* lost;                        // [most - capacity]: slots
  int* ring;                        // [slots]: those that are free; the first is taken first
  int* numbers;                     // [slots], of the pairs
  float* norms;                     // [slots], of their keys
  int* warps;                       // [kWarps]

  static __host__ __device__ int slots_of(const LolaView& view, int64_t most) {
    return static_cast<int>(2 * most - view.sparse_capacity);
  }
  static __host__ __device__ int padded(int features) {
    return (features + kWarpRows - 1) / kWarpRows * kWarpRows;
  }
  static __host__ __device__ int phi_stride_of(int padded_features) {
    return padded_features + (32 + 8 - padded_features % 32) % 32;
  }
  __device__ Memory(float* shared, const LolaView& view, int64_t most)
      : slots(slots_of(view, most)),
        features(padded(view.features)),
        phi_stride(phi_stride_of(features)),
        phi(shared),
        state(phi + slots * phi_stride),
        sum(state + features / 2 * kStateStride),
        v(reinterpret_cast<Element*>(sum + features)),
        keys(reinterpret_cast<uint32_t*>(v + slots * kStride)),
        order(reinterpret_cast<int*>(keys + padded_choice(most))),
        lost(order + 2 * most),
        ring(lost + most - view.sparse_capacity),
        numbers(ring + slots),
        norms(reinterpret_cast<float*>(numbers + slots)),
        warps(reinterpret_cast<int*>(norms + slots)) {}
  static int64_t bytes(const LolaView& view, int64_t most) {
    const int64_t slots = slots_of(view, most), features = padded(view.features);
    const int64_t of_slot =
        4 * (phi_stride_of(padded(view.features)) + 3) + kStride * int64_t{sizeof(Element)};
    return slots * of_slot + 4 * (features / 2 * kStateStride + features + padded_choice(most) +
                                  3 * most - view.sparse_capacity + kWarps);
  }
};

// A warp's part of Hs and s. A lane has two rows of four columns.
struct OwnState {
  float4 rows[2];
  float sum[2];
};

// A number on its way to other blocks, with a tag that tells that it is there.
__device__ inline void post(uint64_t* to, float value, uint32_t tag) {
  const uint64_t word = static_cast<uint64_t>(tag) << 32 | __float_as_uint(value);
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(word) : "memory");
}
__device__ inline uint64_t peek(const uint64_t* from) {
  uint64_t word;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(word) : "l"(from) : "memory");
  return word;
}
__device__ inline bool has_come(uint64_t word, uint32_t tag) { return word >> 32 == tag; }
__device__ inline float number_in(uint64_t word) {
  return __uint_as_float(static_cast<uint32_t>(word));
}

__device__ inline float2 two_at(const float* from) {
  return *reinterpret_cast<const float2*>(from);
}
__device__ inline float2 two_at(const __half* from) {
  return __half22float2(*reinterpret_cast<const __half2*>(from));
}

}  // namespace lola::chain

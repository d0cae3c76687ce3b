// How the blocks of a cluster that answers a query share its pairs, maps and hidden states, and
// what they send each other.
#pragma once

#include "backend/cuda/bulk_copy.cuh"
#include "backend/cuda/lola_view.cuh"

namespace lola {

constexpr int kClusterThreads = 256;
constexpr int kMostClusterBlocks = 16;
constexpr int kOutputs = 32;  // that a block joins, of one head

template <int kOwnHeads, int kOwnDim>
struct ClusterShape {
  static constexpr int kHeads = kOwnHeads, kDim = kOwnDim;
  static constexpr int kBlocks = kHeads * kDim / kOutputs;
  static constexpr int kExactWarps = 4;  // each has a part of the columns of all heads
  static constexpr int kLinearWarps = kClusterThreads / 32 - kExactWarps;
  static constexpr int kLinearParts = kLinearWarps / kHeads;  // warps of a head
  static constexpr int kLinearShares = kBlocks * kLinearParts;
  static constexpr int kRow = 2 * kDim;       // bytes of a stored key
  static constexpr int kPairRow = kRow + 16;  // in shared memory, so that 8 rows meet all banks
  static constexpr int kLaneColumns = kDim / 32;
  static constexpr int kRowsAtOnce = 4;  // of a map or a hidden state, by a warp
  static_assert(kBlocks <= kMostClusterBlocks && kLinearShares <= 32);
};

// Of `count`, what is a block's at most.
template <int kBlocks>
__host__ __device__ constexpr int share_of(int64_t count) {
  return (static_cast<int>(count) + kBlocks - 1) / kBlocks;
}

// Sets of rows that are weighted with features: of both signs, flushed and pending.
__host__ __device__ inline int planes_of(const LolaView& view) {
  return view.features > view.map.map_size ? 2 : 1;
}
__host__ __device__ inline int sets_of(const LolaView& view) {
  return planes_of(view) * (view.pending_state < 0 ? 1 : 2);
}

// For how many rows of a head's map a block has room.
template <typename S>
__host__ __device__ inline int room_of(const LolaView& view) {
  const int rows = share_of<S::kBlocks>(view.map.map_size);
  return (rows + S::kRowsAtOnce - 1) / S::kRowsAtOnce * S::kRowsAtOnce;
}

// Shared memory of a block, the same in all of a cluster.
template <typename S>
struct ClusterMemory {
  uint8_t* pairs;         // [2, pairs, kPairRow]: keys, then values
  uint8_t* queries;       // [kHeads, 2, kPairRow]: scaled, in two float16 that add up to them
  float* rows;            // [1 + sets, room, kHeads, kDim]: of the maps, then the hidden states
  float* q;               // [kHeads, kDim]
  float* exact;           // from all blocks [kBlocks, kOutputs]
  float* linear;          // from all warps that have the block's head [kLinearShares, kOutputs]
  float2* exact_numbers;  // [kBlocks]: largest logit, sum of exponentials
  float* linear_numbers;  // [kLinearShares]: phi's
  float* mapped;          // from all blocks [kHeads, map_size]: what activations make phi of
  float* hidden_sums;     // [sets, room, kHeads]
  float* end;

  __host__ __device__ ClusterMemory(uint8_t* shared, const LolaView& view) {
    const int own_pairs = share_of<S::kBlocks>(view.ring_capacity + view.sparse_capacity);
    const int own_rows = room_of<S>(view), sets = sets_of(view);
    pairs = shared;
    queries = pairs + 2 * own_pairs * S::kPairRow;
    rows = reinterpret_cast<float*>(queries + 2 * S::kHeads * S::kPairRow);
    q = rows + (1 + sets) * own_rows * S::kHeads * S::kDim;
    exact = q + S::kHeads * S::kDim;
    linear = exact + S::kBlocks * kOutputs;
    exact_numbers = reinterpret_cast<float2*>(linear + S::kLinearShares * kOutputs);
    linear_numbers = reinterpret_cast<float*>(exact_numbers + S::kBlocks);
    mapped = linear_numbers + S::kLinearShares;
    hidden_sums = mapped + S::kHeads * view.map.map_size;
    end = hidden_sums + sets * own_rows * S::kHeads;
  }
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
// Barriers that show_barriers() has shown are there for all of the cluster after both of these.
// They order nothing else, which would wait for memory.
__device__ inline void arrive_at_cluster() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ inline void wait_for_cluster() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Numbers for another block of the cluster, counted by its barrier as they arrive.
__device__ inline uint32_t address_in(const void* at, int block) {
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(there)
               : "r"(shared_address(at)), "r"(block));
  return there;
}
__device__ inline void send(float* to, float value, Barrier& barrier, int block) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(
                   address_in(to, block)),
               "f"(value), "r"(address_in(&barrier, block))
               : "memory");
}
__device__ inline void send(float2* to, float2 value, Barrier& barrier, int block) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(
          address_in(to, block)),
      "f"(value.x), "f"(value.y), "r"(address_in(&barrier, block))
      : "memory");
}
__device__ inline void send(float4* to, float4 value, Barrier& barrier, int block) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(address_in(to, block)),
      "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w), "r"(address_in(&barrier, block))
      : "memory");
}
#endif

}  // namespace lola

// How the blocks of a cluster that answers a query share its pairs, maps and hidden states, and
// what they send each other.
#pragma once

#include "backend/cuda/bulk_copy.cuh"
#include "backend/cuda/lola_view.cuh"

namespace lola {

constexpr int kClusterThreads = 256;
constexpr int kMostClusterBlocks = 16;
constexpr int kClusterNumbers = 3;  // of a head: largest logit, sum of exponentials, phi's

template <int kOwnHeads, int kOwnDim>
struct ClusterShape {
  static constexpr int kHeads = kOwnHeads, kDim = kOwnDim;
  static constexpr int kWarpOutputs = kHeads * kDim / 32;
  static constexpr int kBlocks =
      kWarpOutputs < kMostClusterBlocks ? kWarpOutputs : kMostClusterBlocks;
  static constexpr int kOutputs = kHeads * kDim / kBlocks;     // that a block joins
  static constexpr int kParts = kClusterThreads / (kDim / 2);  // of a block: two columns a thread
  static constexpr int kRow = 2 * kDim;                        // bytes of a stored key
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

// Shared memory of a block, the same in all of a cluster.
template <typename S>
struct ClusterMemory {
  uint8_t* pairs;      // [2, pairs, row]: keys, then values
  float* rows;         // [1 + sets, mapped, kHeads, kDim]: of the maps, then of the hidden states
  float* exact;        // [kParts, kHeads, kDim]
  float* linear;       // [kParts, kDim], of parts that each have one head
  float2* sums;        // from all blocks [kBlocks, kOutputs]: exact, linear
  float* q;            // [kHeads, kDim]
  float* weights;      // [pairs, kHeads]
  float* numbers;      // from all blocks [kBlocks, kClusterNumbers, kHeads]
  float* phi;          // [kHeads, features]
  float* hidden_sums;  // [sets, mapped, kHeads]
  float* own;          // [kClusterNumbers, kHeads]
  float* end;

  __host__ __device__ ClusterMemory(uint8_t* shared, const LolaView& view) {
    const int own_pairs = share_of<S::kBlocks>(view.ring_capacity + view.sparse_capacity);
    const int mapped = share_of<S::kBlocks>(view.map.map_size), sets = sets_of(view);
    pairs = shared;
    rows = reinterpret_cast<float*>(pairs + 2 * own_pairs * S::kRow);
    exact = rows + (1 + sets) * mapped * S::kHeads * S::kDim;
    linear = exact + S::kParts * S::kHeads * S::kDim;
    sums = reinterpret_cast<float2*>(linear + S::kParts * S::kDim);
    q = reinterpret_cast<float*>(sums + S::kBlocks * S::kOutputs);
    weights = q + S::kHeads * S::kDim;
    numbers = weights + own_pairs * S::kHeads;
    phi = numbers + S::kBlocks * kClusterNumbers * S::kHeads;
    hidden_sums = phi + S::kHeads * view.features;
    own = hidden_sums + sets * mapped * S::kHeads;
    end = own + kClusterNumbers * S::kHeads;
  }
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
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
#endif

}  // namespace lola

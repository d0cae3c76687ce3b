// How pairs that compete for the sparse cache are scored and ranked.
#pragma once

#include <cstdint>
#include <iterator>
#include <string_view>
#include <utility>

#include "backend/cuda/lola_boundary.cuh"
#include "memory/policies/policy_table.h"

namespace lola {

inline int index_of(const CachePolicy& policy) {
  int index = 0;
  while (std::string_view(kCachePolicies[index].name) != policy.name) ++index;
  return index;
}

// What a policy may know of a pair, but for its error.
__device__ inline PairFacts facts_of(const LolaView& view, const DeviceBoundary& boundary, int head,
                                     int number, float key_norm2) {
  const int64_t position =
      position_of(view, boundary.memory, boundary.numbers, view.owner_of(head), number);
  return {.recall_error = 0.0f,
          .key_norm2 = key_norm2,
          .kappa = view.kappa[head],
          .head_dim = view.head_dim,
          .position = position,
          .age = boundary.seen - position,
          .head = head,
          .seed = view.seed};
}

// The score that the policy of an index in the table gives.
__device__ inline float score_of(int policy, const PairFacts& facts) {
  float score = 0.0f;
  const auto ask = [&]<size_t own>() {
    constexpr CachePolicy kPolicy = kCachePolicies[own];
    if constexpr (kPolicy.score != nullptr) {
      if (policy == static_cast<int>(own)) score = kPolicy.score(facts);
    }
  };
  [&]<size_t... policies>(std::index_sequence<policies...>) {
    (ask.template operator()<policies>(), ...);
  }
  (std::make_index_sequence<std::size(kCachePolicies)>());
  return score;
}

// Larger for larger scores; never 0.
__device__ inline uint32_t rank_key(float score) {
  const uint32_t bits = __float_as_uint(score + 0.0f);  // -0 becomes 0
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ inline float score_of_key(uint32_t key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7FFFFFFFu : ~key);
}

// How many of keys [count] rank above key i: the larger ones and, of equal ones, the older. Past
// count, to a multiple of 32, they are 0. By kLanes <= 2 neighbours with the same i; whole warps.
template <int kLanes>
__device__ inline int rank_of(const uint32_t* keys, int count, int i) {
  constexpr int kAtOnce = 4;  // times four keys
  const int lane = threadIdx.x % kLanes, near = i / 4 * 4;
  const uint32_t own = keys[i];
  int above = 0;
#pragma unroll 1
  for (int j = lane * 4; j < padded_choice(count); j += kLanes * kAtOnce * 4) {
    uint4 fours[kAtOnce];
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      fours[n] = *reinterpret_cast<const uint4*>(keys + j + n * kLanes * 4);
    }
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      const uint4 four = fours[n];
      const uint32_t than = j + n * kLanes * 4 < near ? own - 1 : own;
      above += (four.x > than) + (four.y > than) + (four.z > than) + (four.w > than);
    }
  }
#pragma unroll
  for (int n = 0; n < 3; ++n) above += lane == 0 && near + n < i && keys[near + n] == own;
  if constexpr (kLanes == 2) above += __shfl_xor_sync(~0u, above, 1);
  return above;
}

// How many threads before this one have `is`, and in all (total); by a block of kWarps. warps:
// shared.
template <int kWarps>
__device__ inline int count_before(bool is, int* warps, int& total) {
  const unsigned ballot = __ballot_sync(~0u, is);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (lane == 0) warps[warp] = __popc(ballot);
  __syncthreads();
  const int own = lane < kWarps ? warps[lane] : 0;
  total = __reduce_add_sync(~0u, own);
  const int before = __reduce_add_sync(~0u, lane < warp ? own : 0);
  __syncthreads();
  return before + __popc(ballot & ((1u << lane) - 1));
}

}  // namespace lola

// How pairs that compete for the sparse cache are scored and ranked.
#pragma once

#include <cstdint>
#include <iterator>
#include <string_view>
#include <utility>

#include "backend/cuda/lola_ops.cuh"
#include "memory/policies/policy_table.h"

namespace lola {

inline int index_of(const CachePolicy& policy) {
  int index = 0;
  while (std::string_view(kCachePolicies[index].name) != policy.name) ++index;
  return index;
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
  }(std::make_index_sequence<std::size(kCachePolicies)>());
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

// How many of keys [begin, end) are larger than `than`; multiples of 4.
__device__ inline int count_larger(const uint32_t* keys, int begin, int end, uint32_t than) {
  int found = 0;
#pragma unroll 4
  for (int j = begin; j < end; j += 4) {
    const uint4 four = *reinterpret_cast<const uint4*>(keys + j);
    found += (four.x > than) + (four.y > than) + (four.z > than) + (four.w > than);
  }
  return found;
}

// How many of keys [count] rank above key i: the larger ones and, of equal ones, the older. Past
// count, to a multiple of 32, they are 0.
__device__ inline int rank_of(const uint32_t* keys, int count, int i) {
  const uint32_t own = keys[i];
  const int near = i / 32 * 32;  // of this warp
  int above = count_larger(keys, 0, near, own - 1) +
              count_larger(keys, near + 32, padded_choice(count), own);
  for (int j = near; j < near + 32; ++j) above += keys[j] > own || (keys[j] == own && j < i);
  return above;
}

// How many threads before this one have `is`, and in all (total); by a
// block of kWarps. warps: shared.
template <int kWarps>
__device__ inline int count_before(bool is, int* warps, int& total) {
  const unsigned ballot = __ballot_sync(~0u, is);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (lane == 0) warps[warp] = __popc(ballot);
  __syncthreads();
  int before = __popc(ballot & ((1u << lane) - 1));
  total = 0;
  for (int w = 0; w < kWarps; ++w) {
    before += w < warp ? warps[w] : 0;
    total += warps[w];
  }
  __syncthreads();
  return before;
}

}  // namespace lola

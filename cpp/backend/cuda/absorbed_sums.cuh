// How what was absorbed becomes a part of a hidden state.
#pragma once

#include "backend/cuda/row_tile.cuh"

namespace lola {

// Eight neighbouring columns of a row.
struct EightColumns {
  float4 first, second;

  __device__ EightColumns() : first{}, second{} {}
  __device__ explicit EightColumns(const float* from)
      : first(four_at(from)), second(four_at(from + 4)) {}
  template <typename Value>
  __device__ explicit EightColumns(const Value& value)
      : first{value(0), value(1), value(2), value(3)},
        second{value(4), value(5), value(6), value(7)} {}
  __device__ void add(const EightColumns& other) {
    first.x += other.first.x, first.y += other.first.y, first.z += other.first.z;
    first.w += other.first.w;
    second.x += other.second.x, second.y += other.second.y, second.z += other.second.z;
    second.w += other.second.w;
  }
  __device__ void store(float* to) const {
    reinterpret_cast<float4*>(to)[0] = first;
    reinterpret_cast<float4*>(to)[1] = second;
  }
};

__device__ inline void add_to(float& a, float b) { a += b; }
__device__ inline void add_to(EightColumns& a, const EightColumns& b) { a.add(b); }
__device__ inline void store(float* to, float value) { *to = value; }
__device__ inline void store(float* to, const EightColumns& value) { value.store(to); }

// Where sum `at` of a hidden state is, or null.
__device__ inline float* moved(const float* sums, int64_t at) {
  return sums == nullptr ? nullptr : const_cast<float*>(sums) + at;
}

// to = from and what was absorbed. Where there are pending sums it waits in them, unless they are
// flushed; imagined states (no pending ones to write) hold all.
template <typename T>
__device__ inline void write_sums(T main, T pending, const T& absorbed, bool flush, float* to,
                                  float* to_pending) {
  add_to(pending, absorbed);
  const bool waits = to_pending != nullptr && !flush;
  if (!waits) add_to(main, pending);
  store(to, main);
  if (to_pending != nullptr) store(to_pending, waits ? pending : T{});
}

}  // namespace lola

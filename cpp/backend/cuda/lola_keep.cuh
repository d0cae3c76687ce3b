// The pairs that stay exact move to where a sparse cache has them.
#pragma once

#include "backend/cuda/lola_view.cuh"

namespace lola {

constexpr int kMovesInFlight = 8;  // units of a row that a thread holds

// Copies the numbered rows to the front of the cache, in order. A row only moves to a place at or
// before its own, so what a batch overwrites was read by it or by a batch before.
template <typename Unit, int kThreads>
__device__ void move_units(const LolaView& view, const RunScratch& scratch, uint8_t* memory,
                           const PairNumbers& pairs, const Owner& owner, const int* numbers,
                           int count, bool value) {
  const int units = static_cast<int>(view.row_bytes / static_cast<int64_t>(sizeof(Unit)));
  auto* to = reinterpret_cast<Unit*>(
      cache_row(view, memory, value ? view.cache_v : view.cache_k, owner.index, 0));
  // Rows of up to kThreads units: several at a time, a thread per unit.
  const int rows = max(1, kThreads / units), lanes = min(units, kThreads);
  const int row = static_cast<int>(threadIdx.x) / lanes,
            lane = static_cast<int>(threadIdx.x) % lanes;
  const bool moves = row < rows;
#pragma unroll 1
  for (int begin = 0; begin < count; begin += rows * kMovesInFlight) {
#pragma unroll 1
    for (int unit = lane; unit < units; unit += lanes) {
      Unit held[kMovesInFlight];
#pragma unroll
      for (int i = 0; i < kMovesInFlight; ++i) {
        const int place = begin + i * rows + row;
        if (!moves || place >= count) continue;
        const uint8_t* from =
            numbered_row(view, scratch, memory, pairs, owner, numbers[place], value);
        held[i] = reinterpret_cast<const Unit*>(from)[unit];
      }
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kMovesInFlight; ++i) {
        const int place = begin + i * rows + row;
        if (moves && place < count) to[static_cast<int64_t>(place) * units + unit] = held[i];
      }
      __syncthreads();
    }
  }
}

template <int kThreads>
__device__ inline void move_rows(const LolaView& view, const RunScratch& scratch, uint8_t* memory,
                                 const PairNumbers& pairs, const Owner& owner, const int* numbers,
                                 int count, bool value) {
  if (view.row_bytes % 16 == 0) {
    move_units<uint4, kThreads>(view, scratch, memory, pairs, owner, numbers, count, value);
  } else {
    move_units<uint16_t, kThreads>(view, scratch, memory, pairs, owner, numbers, count, value);
  }
}

}  // namespace lola

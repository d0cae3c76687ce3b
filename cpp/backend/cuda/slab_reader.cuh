// What a warp of a wide product reads of its 16 rows.
#pragma once

#include "backend/cuda/weight_decode.cuh"

namespace lola {

// What a lane reads of a row tile, step by step: load_piece(here, 0, 0, 0) and (here, 0, 0, 32).
template <Encoding e>
struct SlabReader {
  DeviceMatrix here;

  static constexpr int kPlaces = static_cast<int>(kSlabPlaces);
  static constexpr int kCodeVectors = code_vectors(e);
  static constexpr int kHighBytes = high_words(e) * 4;  // of a piece
  static constexpr int kScaleBytes = e == Encoding::kInteger ? 16 : e == Encoding::kF16 ? 0 : 2;

  __device__ SlabReader(const DeviceMatrix& matrix, int tile, int step) : here(matrix) {
    const int lane = threadIdx.x % 32;
    const int64_t slab = static_cast<int64_t>(tile) * matrix.steps + step;
    here.codes += slab * kPlaces * kCodeVectors + lane;
    here.high += (slab * kPlaces + lane) * kHighBytes;
    here.scales += (slab * kPlaces + lane) * kScaleBytes;
    here.supers += (static_cast<int64_t>(tile) * matrix.blocks + step / 2) * kSlabRows + lane / 4;
  }
  // To the step after `step`, or nowhere.
  __device__ void go_on(int step, bool moves) {
    const int slabs = moves ? 1 : 0;
    here.codes += slabs * kPlaces * kCodeVectors;
    here.high += slabs * kPlaces * kHighBytes;
    here.scales += slabs * kPlaces * kScaleBytes;
    here.supers += (slabs & step) * static_cast<int>(kSlabRows);
  }
  // `count` slabs, from `ahead` after this one on, to the second-level cache; by the first lane.
  __device__ void prefetch(int ahead, int count) const {
    if (threadIdx.x % 32 != 0 || count <= 0) return;
    const auto bring = [&](const void* at, int bytes) {
      if (bytes == 0) return;
      asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(
                       static_cast<const uint8_t*>(at) + ahead * kPlaces * bytes),
                   "r"(count * kPlaces * bytes));
    };
    bring(here.codes, kCodeVectors * 16);
    bring(here.high, kHighBytes);
    bring(here.scales, kScaleBytes);
  }
};

}  // namespace lola

// What a warp of a wide product reads of its 16 rows.
#pragma once

#include "backend/cuda/weight_decode.cuh"

namespace lola {

// What a lane reads of a row tile, step by step: load_piece(here, 0, 0, 0) and (here, 0, 0, 32).
template <Encoding e>
struct SlabReader {
  DeviceMatrix here;

  static constexpr bool kByRows = e == Encoding::kF16;
  static constexpr int kPlaces = static_cast<int>(kSlabPlaces);
  static constexpr int kCodeVectors = code_vectors(e);
  static constexpr int kHighBytes = high_words(e) * 4;  // of a piece
  static constexpr int kScaleBytes = e == Encoding::kInteger ? 16 : e == Encoding::kF16 ? 0 : 2;

  __device__ SlabReader(const DeviceMatrix& matrix, int tile, int step) : here(matrix) {
    const int lane = threadIdx.x % 32;
    const int64_t slab = static_cast<int64_t>(tile) * matrix.steps + step;
    const int64_t row = static_cast<int64_t>(tile) * kSlabRows + lane / 4;
    here.codes += kByRows ? (row * matrix.steps + step) * kHalfChunks + lane % 4
                          : slab * kPlaces * kCodeVectors + lane;
    here.high += (slab * kPlaces + lane) * kHighBytes;
    here.scales += (slab * kPlaces + lane) * kScaleBytes;
    here.supers += (static_cast<int64_t>(tile) * matrix.blocks + step / 2) * kSlabRows + lane / 4;
  }
  // To the step after `step`, or nowhere.
  __device__ void go_on(int step, bool moves) {
    const int slabs = moves ? 1 : 0;
    here.codes += slabs * (kByRows ? static_cast<int>(kHalfChunks) : kPlaces * kCodeVectors);
    here.high += slabs * kPlaces * kHighBytes;
    here.scales += slabs * kPlaces * kScaleBytes;
    here.supers += (slabs & step) * static_cast<int>(kSlabRows);
  }
  // `count` slabs, from `ahead` after this one on, to the second-level cache.
  __device__ void prefetch(int ahead, int count) const {
    const int lane = threadIdx.x % 32;
    if (count <= 0) return;
    const auto bring = [count](const void* at, int64_t first, int bytes) {
      if (bytes == 0) return;
      asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(
                       static_cast<const uint8_t*>(at) + first * bytes),
                   "r"(count * bytes));
    };
    if constexpr (kByRows) {
      constexpr int kBytes = static_cast<int>(kHalfChunks) * 16;
      if (lane % 4 != 0) return;
      bring(here.codes, ahead, kBytes);
      bring(here.codes, int64_t{8} * here.steps + ahead, kBytes);
    } else if (lane == 0) {
      bring(here.codes, ahead, kPlaces * kCodeVectors * 16);
      bring(here.high, ahead, kPlaces * kHighBytes);
      bring(here.scales, ahead, kPlaces * kScaleBytes);
    }
  }
};

}  // namespace lola

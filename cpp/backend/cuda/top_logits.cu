// Compiled without fused multiply-adds, so that exponentials have the bits that the CPU gives them.
#include "backend/cuda/top_logits.cuh"
#include "base/exp_negative.h"

namespace lola {
namespace {

constexpr int kThreads = 512;
constexpr int kLoads = 8;         // of a thread, on their way at the same time
constexpr int kParts = 32;        // of a row, for the greatest
constexpr int kTermBlock = 1024;  // logits summed pairwise in float, as in exp_sum()
constexpr int kMostPeaks = 8192;  // the greatest of `width` logits each
constexpr int kMostCollected = 2048;
constexpr int kSelectThreads = 1024;

// What is known of some logits: the largest, its first place (its bits as a float), the sum of
// exp(l - largest), and 0 unless one is not a number or infinite.
__device__ inline float4 joined(const float4& a, const float4& b) {
  const bool a_wins = a.x > b.x || (a.x == b.x && __float_as_int(a.y) < __float_as_int(b.y));
  const float greater = a_wins ? a.x : b.x, less = a_wins ? b.x : a.x;
  const float first = a_wins ? a.z : b.z, second = a_wins ? b.z : a.z;
  const float rescaled = second == 0.0f ? 0.0f : second * expf(less - greater);
  return {greater, a_wins ? a.y : b.y, first + rescaled, a.w + b.w};
}

__device__ inline float4 joined_over_warp(float4 value) {
  for (int offset = 16; offset > 0; offset /= 2) {
    const float4 other = {
        __shfl_xor_sync(~0u, value.x, offset), __shfl_xor_sync(~0u, value.y, offset),
        __shfl_xor_sync(~0u, value.z, offset), __shfl_xor_sync(~0u, value.w, offset)};
    value = joined(value, other);
  }
  return value;
}

__device__ inline float4 joined_parts(const float4* parts, int64_t row) {
  return joined_over_warp(parts[row * kParts + threadIdx.x % kParts]);
}

__device__ inline bool is_sound(const float4& known) {
  return known.w == 0.0f && known.x > -INFINITY;
}

__device__ inline TopRow* row_of(const TopShape& shape, uint8_t* found, int64_t row) {
  return reinterpret_cast<TopRow*>(found + row * shape.row_bytes());
}

__device__ inline float4 nothing_known() {
  return {-INFINITY, __int_as_float(0x7FFFFFFF), 0.0f, 0.0f};
}

__global__ void __launch_bounds__(kThreads)
    keep_kernel(const float* logits, int vocabulary, float* const* destinations, float4* parts) {
  wait_for_previous_kernel();
  const int64_t row = blockIdx.y;
  const float* in = logits + row * vocabulary;
  float* out = destinations[row];
  const int range = (vocabulary + kParts - 1) / kParts;
  const int begin = blockIdx.x * range, end = min(vocabulary, begin + range);
  float4 known = nothing_known();
  for (int first = begin + threadIdx.x; first < end; first += kLoads * kThreads) {
    float values[kLoads];  // -infinity adds nothing to what is known
#pragma unroll
    for (int n = 0; n < kLoads; ++n) {
      const int i = first + n * kThreads;
      values[n] = i < end ? in[i] : -INFINITY;
    }
    const float before = known.x;
#pragma unroll
    for (int n = 0; n < kLoads; ++n) {
      const int i = first + n * kThreads;
      if (i < end) out[i] = values[n];
      if (!(values[n] < INFINITY)) known.w += 1.0f;
      if (values[n] > known.x) {
        known.x = values[n];
        known.y = __int_as_float(i);
      }
    }
    if (known.z != 0.0f) known.z *= expf(before - known.x);
#pragma unroll
    for (int n = 0; n < kLoads; ++n) {
      if (values[n] > -INFINITY) known.z += expf(values[n] - known.x);
    }
  }
  constexpr int kWarps = kThreads / 32;
  __shared__ float4 warps[kWarps];
  known = joined_over_warp(known);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = known;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  known = joined_over_warp(threadIdx.x < kWarps ? warps[threadIdx.x] : nothing_known());
  if (threadIdx.x == 0) parts[row * kParts + blockIdx.x] = known;
}

__device__ inline void put_greatest(const float4& known, TopRow* row) {
  row->total = known.z;
  row->count = is_sound(known) ? 1 : 0;
  *row->candidates() = {known.x, __float_as_int(known.y)};
}

// A warp per row.
__global__ void greatest_kernel(const float4* parts, const __grid_constant__ TopShape shape,
                                uint8_t* found) {
  wait_for_previous_kernel();
  const float4 known = joined_parts(parts, blockIdx.x);
  if (threadIdx.x == 0) put_greatest(known, row_of(shape, found, blockIdx.x));
}

// The order of floats as that of integers, 0 of either sign being equal.
__device__ inline uint32_t ordered(float value) {
  const uint32_t bits = __float_as_uint(value + 0.0f);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

__host__ __device__ inline int64_t term_blocks(int64_t vocabulary) {
  return (vocabulary + kTermBlock - 1) / kTermBlock;
}
__host__ __device__ inline int64_t peak_count(int64_t vocabulary, int width) {
  return term_blocks(vocabulary) * (kTermBlock / width);
}

// A thread per logit of a term block: its sum of exponentials, and the peaks in it.
__global__ void __launch_bounds__(kTermBlock)
    terms_kernel(const float* logits, int vocabulary, int width, const float4* parts, float* sums,
                 uint32_t* peaks) {
  __shared__ float terms[kTermBlock];
  __shared__ uint32_t keys[kTermBlock];
  wait_for_previous_kernel();
  const int64_t row = blockIdx.y;
  const int i = blockIdx.x * kTermBlock + threadIdx.x;
  const float max = joined_parts(parts, row).x;
  const float logit = i < vocabulary ? logits[row * vocabulary + i] : -INFINITY;
  terms[threadIdx.x] = i < vocabulary ? exp_negative(logit - max) : 0.0f;
  keys[threadIdx.x] = i < vocabulary ? ordered(logit) : 0;
  for (int half = kTermBlock / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) terms[threadIdx.x] += terms[threadIdx.x + half];
  }
  if (threadIdx.x == 0) sums[row * gridDim.x + blockIdx.x] = terms[0];
  const int in_block = kTermBlock / width;
  if (static_cast<int>(threadIdx.x) >= in_block) return;
  uint32_t peak = 0;
  for (int n = 0; n < width; ++n) peak = umax(peak, keys[threadIdx.x * width + n]);
  peaks[(row * gridDim.x + blockIdx.x) * in_block + threadIdx.x] = peak;
}

// Shared memory of select_kernel.
struct Selection {
  uint64_t sorted[kMostCollected];
  int collected;
  int places[256];
  uint32_t prefix;    // of the key that is looked for, as far as it is known
  int left;           // its place among the keys with that prefix
  uint32_t peaks[1];  // more follow
};

// The wanted-th greatest of the peaks, digit by digit; 0 where there are fewer.
__device__ uint32_t nth_greatest(Selection& s, int count, int wanted) {
  const uint32_t* keys = s.peaks;
  if (wanted > count) return 0;
  if (threadIdx.x == 0) s.prefix = 0, s.left = wanted;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = threadIdx.x; i < 256; i += blockDim.x) s.places[i] = 0;
    __syncthreads();
    const uint32_t known = s.prefix;
    const uint32_t mask = shift == 24 ? 0 : ~0u << (shift + 8);
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
      if ((keys[i] & mask) == known) atomicAdd(&s.places[(keys[i] >> shift) & 255], 1);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int digit = 255;
      for (; s.places[digit] < s.left; --digit) s.left -= s.places[digit];
      s.prefix = known | static_cast<uint32_t>(digit) << shift;
    }
    __syncthreads();
  }
  return s.prefix;
}

// Ascending, count a power of two, in shared memory.
__device__ void bitonic_sort(uint64_t* keys, int count) {
  for (int size = 2; size <= count; size *= 2) {
    for (int step = size / 2; step > 0; step /= 2) {
      __syncthreads();
      for (int n = threadIdx.x; n < count / 2; n += blockDim.x) {
        const int i = n / step * step * 2 + n % step, j = i + step;
        const bool ascending = (i & size) == 0;
        if ((keys[i] > keys[j]) == ascending) {
          const uint64_t key = keys[i];
          keys[i] = keys[j];
          keys[j] = key;
        }
      }
    }
  }
  __syncthreads();
}

// A block per row. Logits no less than the `best`-th greatest peak are `best` at least, and seldom
// many more; where they are too many for the sort, only the greatest is told.
__global__ void __launch_bounds__(kSelectThreads)
    select_kernel(const float* logits, const __grid_constant__ TopShape shape, int width,
                  const float4* parts, const float* sums, const uint32_t* peaks, uint8_t* found) {
  extern __shared__ uint64_t shared[];
  Selection& s = *reinterpret_cast<Selection*>(shared);
  wait_for_previous_kernel();
  const int64_t row = blockIdx.x;
  const int vocabulary = static_cast<int>(shape.vocabulary);
  const int count = static_cast<int>(peak_count(vocabulary, width));
  TopRow* out = row_of(shape, found, row);
  const float4 known = joined_parts(parts, row);
  if (threadIdx.x == 0) put_greatest(known, out), s.collected = 0;
  if (!is_sound(known)) return;
  for (int i = threadIdx.x; i < count; i += blockDim.x) s.peaks[i] = peaks[row * count + i];
  __syncthreads();
  const uint32_t least = nth_greatest(s, count, static_cast<int>(shape.best));
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    if (s.peaks[i] < least) continue;
    for (int n = i * width; n < min(vocabulary, (i + 1) * width); ++n) {
      const uint32_t key = ordered(logits[row * vocabulary + n]);
      if (key < least) continue;
      const int place = atomicAdd(&s.collected, 1);
      if (place < kMostCollected) {
        s.sorted[place] = static_cast<uint64_t>(~key) << 32 | static_cast<uint32_t>(n);
      }
    }
  }
  __syncthreads();
  const int places = s.collected;
  if (places > kMostCollected) return;
  int room = 1;
  while (room < places) room *= 2;
  for (int i = places + threadIdx.x; i < room; i += blockDim.x) s.sorted[i] = ~uint64_t{0};
  bitonic_sort(s.sorted, room);
  const int kept = min(places, static_cast<int>(shape.best));
  for (int i = threadIdx.x; i < kept; i += blockDim.x) {
    const auto id = static_cast<int32_t>(s.sorted[i] & 0x7FFFFFFFu);
    out->candidates()[i] = {logits[row * vocabulary + id], id};
  }
  if (threadIdx.x != 0) return;
  double total = 0.0;
  for (int i = 0; i < term_blocks(vocabulary); ++i)
    total += sums[row * term_blocks(vocabulary) + i];
  out->total = total;
  out->count = kept;
}

// Logits of a peak.
int width_of(int64_t vocabulary) {
  int width = 1;
  while (width < kTermBlock && peak_count(vocabulary, width) > kMostPeaks) width *= 2;
  return width;
}

// Scratch: parts, sums of term blocks, peaks.
int64_t part_bytes(const TopShape& shape) { return shape.rows * kParts * 16; }
int64_t sum_bytes(const TopShape& shape) { return shape.rows * term_blocks(shape.vocabulary) * 4; }

}  // namespace

int64_t best_found(int64_t wanted, int64_t vocabulary) {
  return peak_count(vocabulary, width_of(vocabulary)) > kMostPeaks ? 1 : wanted;
}

int64_t keep_scratch_bytes(const TopShape& shape) {
  if (shape.best == 1) return part_bytes(shape);
  const int64_t peaks = peak_count(shape.vocabulary, width_of(shape.vocabulary));
  return part_bytes(shape) + sum_bytes(shape) + shape.rows * peaks * 4;
}

void keep_logits(const Stream& stream, const float* logits, const TopShape& shape,
                 float* const* destinations, uint8_t* scratch, uint8_t* found) {
  const auto vocabulary = static_cast<int>(shape.vocabulary);
  auto* parts = reinterpret_cast<float4*>(scratch);
  launch(stream, keep_kernel, grid_of(kParts, shape.rows), kThreads, 0, logits, vocabulary,
         destinations, parts);
  if (shape.best == 1) {
    launch(stream, greatest_kernel, grid_of(shape.rows), 32, 0, parts, shape, found);
    return;
  }
  const int width = width_of(shape.vocabulary);
  auto* sums = reinterpret_cast<float*>(scratch + part_bytes(shape));
  auto* peaks = reinterpret_cast<uint32_t*>(scratch + part_bytes(shape) + sum_bytes(shape));
  launch(stream, terms_kernel, grid_of(term_blocks(shape.vocabulary), shape.rows), kTermBlock, 0,
         logits, vocabulary, width, parts, sums, peaks);
  const int64_t shared =
      static_cast<int64_t>(sizeof(Selection)) + peak_count(shape.vocabulary, width) * 4;
  launch(stream, select_kernel, grid_of(shape.rows), kSelectThreads, shared, logits, shape, width,
         parts, sums, peaks, found);
}

}  // namespace lola

// Products with 129 to some hundred tokens on GPUs of compute capability 9.0: a warp decodes 16
// rows into registers and multiplies them with 256 tokens. All of a product's tiles, step after
// step of their columns, are cut into equal parts, one for each cluster of blocks; where a tile is
// cut, the last of its blocks to come adds up what all of them found.
#include <algorithm>

#include "backend/cuda/cluster_ring.cuh"
#include "backend/cuda/last_block.cuh"
#include "backend/cuda/matmul.cuh"
#include "backend/cuda/slab_reader.cuh"
#include "backend/cuda/wgmma.cuh"

namespace lola {
namespace {

constexpr int kTokens = 1 << kWidestBits;  // of a tile
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kBlocks = 2;  // of a cluster, one above the other
constexpr int kBlockRows = kWarps * static_cast<int>(kSlabRows);
constexpr int kTileRows = kBlocks * kBlockRows;
constexpr int kStepColumns = static_cast<int>(kSlabPieces * kPieceWeights);
constexpr int kStepBytes = kTokens * kStepColumns * 2;
constexpr int kStages = 3;
constexpr int kAlignment = 1024;  // of swizzled rows
constexpr int kSharedBytes = kStages * kStepBytes + kAlignment;
constexpr int kSums = kTokens / 2;  // of a lane
constexpr int kLeastSteps = 4;      // of a cluster

// How the steps of all tiles are cut among clusters.
struct Cut {
  int steps;  // of a tile
  int64_t all;
  int clusters;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// A cluster works on the steps from its first to the first of the next.
__device__ inline int first_step(const Cut& cut, int cluster) {
  return static_cast<int>(cut.all * cluster / cut.clusters);
}
__device__ inline int cluster_of(const Cut& cut, int step) {
  return static_cast<int>(((step + 1) * int64_t{cut.clusters} - 1) / cut.all);
}

using Ring = ClusterRing<kStepBytes, kStages, kBlocks, kWarps>;

// Where a step lies: in which tile, and of which job.
struct TilePlace {
  int whole, index, row_tile;  // the tile among all; its job; among the job's tiles

  __device__ TilePlace(const DeviceJobs& jobs, const Cut& cut, int step, int token_tiles)
      : whole(step / cut.steps), index(0), row_tile(whole / token_tiles) {
    for (; index + 1 < jobs.count; ++index) {
      const int tiles = (jobs.job[index].matrix.rows + kTileRows - 1) / kTileRows;
      if (row_tile < tiles) break;
      row_tile -= tiles;
    }
  }
};

// The sums of a lane over all blocks that share its tile; false in all but the last of them. A
// block has room for two parts: of the tile that it begins in and, second, of the one that it ends
// in.
__device__ inline bool join_parts(float* sums, const Cut& cut, int tile_begin, int parts,
                                  const WidestScratch& scratch) {
  constexpr int kVectors = kSums / 4, kAtOnce = 16;
  const int first = cluster_of(cut, tile_begin);
  const auto place = [&](int part) {
    const int second = part == 0 && first_step(cut, first) < tile_begin ? 1 : 0;
    return ((first + part) * kBlocks + static_cast<int>(blockIdx.x) % kBlocks) * 2 + second;
  };
  const auto part_of = [&](int part) {
    return scratch.partials + int64_t{place(part)} * kVectors * kThreads + threadIdx.x;
  };
  float4* own = part_of(static_cast<int>(blockIdx.x) / kBlocks - first);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const float* from = sums + i * 4;
    __stcg(own + i * kThreads, float4{from[0], from[1], from[2], from[3]});
  }
  if (!is_last(scratch.counters + place(0), parts)) return false;
#pragma unroll
  for (int i = 0; i < kSums; ++i) sums[i] = 0.0f;
#pragma unroll 1
  for (int part = 0; part < parts; ++part) {
    const float4* from = part_of(part);
#pragma unroll
    for (int base = 0; base < kVectors; base += kAtOnce) {
      float4 more[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) more[i] = __ldcg(from + (base + i) * kThreads);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        float* to = sums + (base + i) * 4;
        to[0] += more[i].x, to[1] += more[i].y, to[2] += more[i].z, to[3] += more[i].w;
      }
    }
  }
  return true;
}

// The sums of a lane to their places, `first_token` and `first_row` on.
__device__ inline void put_sums(float* sums, const DeviceJob& job, int first_token, int tokens,
                                int first_row) {
  constexpr int kAtOnce = 32;  // loads on their way together
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int token = first_token + lane % 4 * 2;
  const int row = first_row + warp * static_cast<int>(kSlabRows) + lane / 4;
  const auto token_of = [&](int i) { return token + i / 4 * 8 + i % 2; };
  const auto row_of = [&](int i) { return row + i / 2 % 2 * 8; };
  const auto place = [&](int i) {
    const bool there = token_of(i) < tokens && row_of(i) < job.matrix.rows;
    return there ? job.out + int64_t{token_of(i)} * job.out_stride + row_of(i) : nullptr;
  };
  float bias[2];
  for (int i = 0; i < 2; ++i) {
    const bool there = job.bias != nullptr && row_of(i * 2) < job.matrix.rows;
    bias[i] = there ? job.bias[row_of(i * 2)] : 0.0f;
  }
#pragma unroll
  for (int base = 0; base < kSums; base += kAtOnce) {
    float before[kAtOnce] = {};
#pragma unroll
    for (int i = 0; i < kAtOnce && job.accumulate; ++i) {
      if (const float* at = place(base + i)) before[i] = *at;
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const float value = sums[base + i] * (1.0f / kActivationScale) + bias[i / 2 % 2];
      if (float* at = place(base + i)) *at = before[i] + value;
    }
  }
}

// What a block multiplies of one tile, from the step `at` of all on.
struct WideTile {
  const DeviceJobs& jobs;
  const HalfRows& x;
  const Cut& cut;
  const WidestScratch& scratch;
  const Ring& ring;
  int number;  // of its first step among the ring's
  int at, steps;

  __device__ int token_tiles() const { return (x.tokens + kTokens - 1) / kTokens; }
  __device__ TilePlace place() const { return TilePlace(jobs, cut, at, token_tiles()); }
  __device__ int block_tile(const TilePlace& place) const {
    return place.row_tile * kBlocks + static_cast<int>(blockIdx.x) % kBlocks;
  }

  template <Encoding e>
  __device__ void run() const {
    float sums[kSums] = {};
    multiply_all<e>(sums);
    finish_all(sums);
  }

  __device__ void finish_all(float* sums) const {
    const TilePlace tile = place();
    const int begin = tile.whole * cut.steps;
    const int parts = cluster_of(cut, begin + cut.steps - 1) - cluster_of(cut, begin) + 1;
    if (parts > 1 && !join_parts(sums, cut, begin, parts, scratch)) return;
    const DeviceJob& job = jobs.job[tile.index];
    const int first_token = tile.whole % token_tiles() * kTokens;
    const int first_row = block_tile(tile) * kBlockRows;
    put_sums(sums, job, first_token, x.tokens, first_row);
  }

  template <Encoding e>
  __device__ void multiply_all(float* sums) const {
    constexpr int kFar = 4;  // steps that are prefetched together
    const TilePlace tile = place();
    const DeviceMatrix& matrix = jobs.job[tile.index].matrix;
    const int last = (matrix.rows - 1) / static_cast<int>(kSlabRows);
    const int own = min(block_tile(tile) * kWarps + static_cast<int>(threadIdx.x) / 32, last);
    const int begin = at - tile.whole * cut.steps;
    SlabReader<e> reader(matrix, own, begin);
    reader.prefetch(1, min(2 * kFar, steps) - 1);
    Piece<e> pieces[2];
    load<e>(reader, pieces);
    if (number == 0) {
      wait_for_previous_kernel();
      for (int i = 0; i < ring.kAhead; ++i) ring.fetch();
    }
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      const uint32_t tokens = wgmma_operand(ring.wait(number + step));
      reader.go_on(begin + step, step + 1 < steps);
      multiply<e>(pieces, tokens, reader, sums);
      if (step > 0) ring.let_go(number + step - 1);
      ring.fetch();  // what is multiplied meanwhile hides this
      if (step % kFar == 0) reader.prefetch(2 * kFar - 1, min(kFar, steps - step - 2 * kFar));
    }
    wgmma_wait<0>();
    ring.let_go(number + steps - 1);
  }

  template <Encoding e>
  __device__ void load(const SlabReader<e>& reader, Piece<e> (&pieces)[2]) const {
    pieces[0] = load_piece<e>(reader.here, 0, 0, 0);
    pieces[1] = load_piece<e>(reader.here, 0, 0, 32);
  }

  // Then the pieces are the reader's. All but the last product is done.
  template <Encoding e>
  __device__ void multiply(Piece<e> (&pieces)[2], uint32_t tokens, const SlabReader<e>& reader,
                           float* sums) const {
    constexpr bool kInPlace = e == Encoding::kF16;  // products read the pieces themselves
    constexpr bool kEarly = code_vectors(e) == 1;   // there are registers for two steps' pieces
    Piece<e> next[2];
    const Factors upper = factors_of<e>(pieces[0]), lower = factors_of<e>(pieces[1]);
    __half2 a[2][2][4];  // by turns, so that one word is decoded while the other is multiplied
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      __half2 u[4], l[4];
      decode_eight<e>(pieces[0], upper, word, u);
      decode_eight<e>(pieces[1], lower, word, l);
      if (word == 1 && kEarly) load<e>(reader, next);
      if (word == 3 && !kEarly && !kInPlace) load<e>(reader, pieces);
      wgmma_wait<1>();
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        a[word % 2][i / 2][i % 2 * 2] = u[i];
        a[word % 2][i / 2][i % 2 * 2 + 1] = l[i];
      }
      wgmma_fence();
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int k = word * 2 + half;
        wgmma<kTokens>(sums, a[word % 2][half], tokens + k / 4 * kTokens * 8 + k % 4 * 2);
      }
      wgmma_commit();
    }
    if constexpr (kInPlace) {
      wgmma_wait<0>();
      load<e>(reader, pieces);
    }
    if constexpr (kEarly) pieces[0] = next[0], pieces[1] = next[1];
  }
};

#endif

// Grid: the blocks of all clusters. Tiles are of a cluster's rows; tiles of the same rows and other
// tokens stand together. The jobs are of the encodings e and f.
template <Encoding e, Encoding f>
__global__ void __launch_bounds__(kThreads, 1)
    widest_kernel(const __grid_constant__ DeviceJobs jobs, const __grid_constant__ HalfRows x,
                  const __grid_constant__ Cut cut, const __grid_constant__ WidestScratch scratch) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ uint8_t unaligned[];
  __shared__ Barrier full[kStages], free[kStages];
  __shared__ RingFetch fetched;
  uint8_t* shared =
      unaligned +
      (kAlignment - 1 - (__cvta_generic_to_shared(unaligned) + kAlignment - 1) % kAlignment);
  const int cluster = blockIdx.x / kBlocks;
  const int begin = first_step(cut, cluster), end = first_step(cut, cluster + 1);
  const int around = (x.tokens + kTokens - 1) / kTokens * cut.steps;
  const Ring ring{shared, full, free, &fetched};
  ring.begin({reinterpret_cast<const uint8_t*>(x.data), around, begin % around, end - begin, 0});
#pragma unroll 1
  for (int at = begin; at < end;) {
    const int steps = min(end - at, cut.steps - at % cut.steps);
    const WideTile tile{jobs, x, cut, scratch, ring, at - begin, at, steps};
    if (e == f || jobs.job[tile.place().index].matrix.encoding == e) {
      tile.run<e>();
    } else {
      tile.run<f>();
    }
    at += steps;
  }
  cluster_sync();  // none may be gone while another writes to it
#endif
}

template <Encoding e, Encoding f>
void launch_widest(const Stream& stream, const DeviceJobs& jobs, const HalfRows& x,
                   int multiprocessors, const WidestScratch& scratch) {
  int64_t tiles = 0;
  for (int i = 0; i < jobs.count; ++i) tiles += ceil_div(jobs.job[i].matrix.rows, kTileRows);
  const int steps = jobs.job[0].matrix.steps;
  const int64_t all = tiles * ceil_div(x.tokens, kTokens) * steps;
  const int64_t clusters = std::min<int64_t>(multiprocessors / kBlocks, ceil_div(all, kLeastSteps));
  launch_cluster(stream, widest_kernel<e, f>, grid_of(clusters * kBlocks), kThreads, kSharedBytes,
                 kBlocks, jobs, x, Cut{steps, all, static_cast<int>(clusters)}, scratch);
}

// jobs: all of one encoding, of those in the list.
template <Encoding... encodings, typename... Arguments>
void launch_one_of(Encoding encoding, const Arguments&... arguments) {
  ((encoding == encodings ? launch_widest<encodings, encodings>(arguments...) : void()), ...);
}

// Whether all jobs are of the encodings e and f.
bool are_of(const DeviceJobs& jobs, Encoding e, Encoding f) {
  return std::all_of(jobs.job, jobs.job + jobs.count, [&](const DeviceJob& job) {
    return job.matrix.encoding == e || job.matrix.encoding == f;
  });
}

}  // namespace

WidestSizes widest_sizes(int multiprocessors) {
  const int64_t blocks = multiprocessors;
  return {blocks * 2 * kSums / 4 * kThreads, blocks * 2};
}

void gemm_widest(const Stream& stream, const DeviceJobs& jobs, const HalfRows& x,
                 int multiprocessors, const WidestScratch& scratch) {
  using enum Encoding;
  for (int begin = 0, end = 0; begin < jobs.count; begin = end) {
    const Encoding encoding = jobs.job[begin].matrix.encoding;
    DeviceJobs alike{};
    while (end < jobs.count && jobs.job[end].matrix.encoding == encoding) {
      alike.job[alike.count++] = jobs.job[end++];
    }
    if (alike.count < jobs.count && are_of(jobs, kQ4_K, kQ6_K)) {  // as in mixed files
      return launch_widest<kQ4_K, kQ6_K>(stream, jobs, x, multiprocessors, scratch);
    }
    launch_one_of<kQ4_0, kIQ4_NL, kMXFP4, kIQ4_XS, kQ4_K, kQ5_K, kQ6_K, kQ8_0, kInteger, kF16>(
        encoding, stream, alike, x, multiprocessors, scratch);
  }
}

}  // namespace lola

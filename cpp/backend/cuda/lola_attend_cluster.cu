// Attention of a single query in one kernel, with its rotation, its features and the pair that
// enters. A cluster of blocks answers the query heads that share pairs: each brings its share of
// pairs, of the maps and of the hidden states to shared memory before the query is there, and sends
// what the others need of it to theirs.
//
// A block runs through its code once, and an instruction that it has not run before takes some ten
// cycles: sizes are known to the compiler where a division would stand else, loops are seldom
// unrolled, and half of the warps answer with pairs while the others do so with hidden states.
#include "backend/cuda/cluster_exact.cuh"
#include "backend/cuda/cluster_linear.cuh"
#include "backend/cuda/matmul.cuh"

namespace lola {
namespace {

constexpr int64_t kMostShared = 160 * 1024;

template <typename S>
__global__ void __launch_bounds__(kClusterThreads, 2)
    cluster_kernel(const __grid_constant__ LolaView view, const DevicePiece* pieces,
                   const __grid_constant__ AttentionRows rows,
                   const __grid_constant__ RopeRows rope,
                   const __grid_constant__ ProductCopy copy) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(16) uint8_t cluster_shared[];
  __shared__ Barrier mapped, joined;
  if (threadIdx.x == 0) {
    mapped.set(1), joined.set(1);
    show_barriers();
    mapped.expect(static_cast<int>(view.map.map_size) * S::kHeads * 4);
    joined.expect(S::kBlocks * (kOutputs * 4 + 8) + S::kLinearShares * (kOutputs * 4 + 4));
  }
  arrive_at_cluster();
  const DevicePiece piece = *pieces;
  const bool linear = piece.absorbed > 0;
  const ClusterBlock<S> block(view, piece, cluster_shared);
  block.bring(linear);
  const int joined_head = block.rank * kOutputs / S::kDim;
  const float gate = view.gate[block.first_head + min(joined_head, block.heads - 1)];
  const Turn turn = turn_of(rope, piece.row, static_cast<int>(threadIdx.x) % S::kDim);
  const auto sources = block.find_query(rows);
  wait_for_previous_kernel();
  block.take_query(sources, turn);
  wait_for_copies<0>();
  wait_for_cluster();
  __syncthreads();
  // From here on no warp waits for another of its block.
  const int warp = threadIdx.x / 32;
  if (warp < S::kExactWarps) {
    answer_exact(block, warp, joined);
  } else {
    answer_linear(block, warp - S::kExactWarps, linear, mapped, joined);
  }
  if (warp == 1) block.keep_newest();
  const AttentionOutput output{rows.out, copy, view.heads * S::kDim};
  if (block.first_head == 0 && block.rank == 0) output.pad(piece.row);
  if (warp > 0) return;
  block.join(output, linear, gate, joined);
#endif
}

// Calls f.template operator()<S>() with the shape of the heads.
template <typename F>
auto with_shape(const LolaView& view, const F& f) {
  const int heads = view.head_scope || view.group == 1 ? 1 : view.group == 2 ? 2 : 4;
  if (view.head_dim == 64) {
    return heads == 1   ? f.template operator()<ClusterShape<1, 64>>()
           : heads == 2 ? f.template operator()<ClusterShape<2, 64>>()
                        : f.template operator()<ClusterShape<4, 64>>();
  }
  return heads == 1   ? f.template operator()<ClusterShape<1, 128>>()
         : heads == 2 ? f.template operator()<ClusterShape<2, 128>>()
                      : f.template operator()<ClusterShape<4, 128>>();
}

template <typename S>
int64_t shared_bytes(const LolaView& view) {
  return reinterpret_cast<int64_t>(ClusterMemory<S>(nullptr, view).end);
}

// Clusters of more than eight blocks run where a part of the GPU has the multiprocessors for one.
template <typename S>
bool runs(const LolaView& view) {
  const int64_t bytes = shared_bytes<S>(view);
  if (bytes > kMostShared) return false;
  cuda_check(
      cudaFuncSetAttribute(cluster_kernel<S>, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
      "cluster of a kernel");
  return most_clusters(cluster_kernel<S>, kClusterThreads, bytes, S::kBlocks) > 0;
}

}  // namespace

bool answers_in_cluster(const CudaDevice& device, const LolaView& view, const PieceSpan& pieces) {
  return kHasWide && device.has_wgmma() && pieces.count == 1 && view.type == PairType::kF16 &&
         (view.head_dim == 64 || view.head_dim == 128) &&
         with_shape(view, [&]<typename S>() { return runs<S>(view); });
}

void lola_attend_cluster(const Stream& stream, const LolaView& view, const PieceSpan& pieces,
                         const AttentionRows& rows, const RopeRows& rope, const ProductCopy& copy) {
  with_shape(view, [&]<typename S>() {
    const int64_t units = ceil_div(view.group, S::kHeads);
    launch_cluster(stream, cluster_kernel<S>, grid_of(S::kBlocks, units, view.kv_heads),
                   kClusterThreads, shared_bytes<S>(view), S::kBlocks, view, pieces.data, rows,
                   rope, copy);
  });
}

}  // namespace lola

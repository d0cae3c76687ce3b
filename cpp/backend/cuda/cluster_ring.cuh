// Tokens on their way to the shared memories of a cluster, whose blocks all read the same: each of
// them fetches its share for all.
#pragma once

#include "backend/cuda/bulk_copy.cuh"

namespace lola {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// What only the thread that fetches needs, in shared memory: registers are scarce.
struct RingFetch {
  const uint8_t* from;  // [around, bytes of a stage]
  int around, next;     // what is fetched next; after the last comes the first
  int left;             // to be fetched
  int count;            // fetched
};

// kBytes: of a stage. kWarps: of a block, which all read every stage.
template <int kBytes, int kStages, int kBlocks, int kWarps>
struct ClusterRing {
  static constexpr int kAhead = kStages - 1;  // fetched

  uint8_t* stages;       // [kStages, kBytes]
  Barrier *full, *free;  // [kStages]
  RingFetch* fetched;

  __device__ void begin(const RingFetch& all) const {
    if (threadIdx.x == 0) {
      for (int i = 0; i < kStages; ++i) full[i].set(1), free[i].set(kWarps * kBlocks);
      *fetched = all;
      show_barriers();
    }
    cluster_sync();
  }
  __device__ void fetch() const {
    if (threadIdx.x != 0 || fetched->left == 0) return;
    constexpr int kShare = kBytes / kBlocks;
    const int stage = fetched->count % kStages, share = cluster_rank() * kShare;
    free[stage].wait((fetched->count / kStages + 1) % 2);
    full[stage].expect(kBytes);
    bulk_copy_to_all(stages + stage * kBytes + share,
                     fetched->from + int64_t{fetched->next} * kBytes + share, kShare, full[stage],
                     (1u << kBlocks) - 1);
    fetched->next = fetched->next + 1 < fetched->around ? fetched->next + 1 : 0;
    ++fetched->count;
    --fetched->left;
  }
  // The address of what came as number i, once it is there.
  __device__ uint32_t wait(int i) const {
    full[i % kStages].wait(i / kStages % 2);
    __syncwarp();
    return shared_address(stages + i % kStages * kBytes);
  }
  // This warp does not need any more what came as number i.
  __device__ void let_go(int i) const {
    if (threadIdx.x % 32 < kBlocks) free[i % kStages].arrive_in(threadIdx.x % 32);
  }
};
#endif

}  // namespace lola

// What a pass is told from the host: its tokens, angles and plan, in device memory by one upload,
// and small uploads that do not wait for the GPU.
#pragma once

#include <span>
#include <vector>

#include "backend/cuda/cuda_device.cuh"
#include "backend/cuda/lola_plan.h"

namespace lola {

// Pinned memory that uploads are copied from, in turns: while the GPU reads one, the host fills the
// other.
class UploadBuffers {
 public:
  explicit UploadBuffers(const CudaDevice& device) : device_(device) {}
  ~UploadBuffers();
  UploadBuffers(const UploadBuffers&) = delete;
  UploadBuffers& operator=(const UploadBuffers&) = delete;

  // Takes the other buffer, once the uploads of two turns ago are done.
  void turn();
  void upload(void* to, const void* from_host, int64_t bytes);

 private:
  struct Turn {
    std::vector<std::pair<void*, int64_t>> blocks;  // pinned, and their bytes
    size_t block = 0;
    int64_t used = 0;  // of that block
    cudaEvent_t done = nullptr;
  };

  const CudaDevice& device_;
  Turn turns_[2];
  int now_ = 0;
};

// Device memory of one pass. Passes of the same shape lie at the same addresses.
class PassInputs {
 public:
  explicit PassInputs(const CudaDevice& device) : memory_(device) {}

  // run_bytes: as plan_pass() takes it.
  void set(std::span<const PassTask> tasks, std::span<const int32_t> tokens,
           std::span<const float> angles, int64_t run_bytes, UploadBuffers& uploads, bool& grown);

  const PassPlan& plan() const { return plan_; }
  const int32_t* tokens() const { return tokens_; }
  const float* angles() const { return angles_; }
  float* const* kept() const { return kept_; }  // logits of the tasks that keep them
  int64_t kept_count() const { return kept_count_; }
  int64_t best() const { return best_; }  // of their logits, the most that one asks for
  PieceSpan pieces(const PlanRun& run) const {
    return {pieces_ + run.first_piece, static_cast<int>(run.pieces), run.most_tokens};
  }
  ChainSpan chains(const PlanRun& run) const {
    return {chains_ + run.first_chain, static_cast<int>(run.chains)};
  }
  PieceSpan whole_tasks(const PlanGroup& group) const {
    return {pieces_ + group.first_whole, static_cast<int>(group.tasks.size()), group.most_tokens};
  }
  // All of a run of one chain.
  BoundarySpan chain_boundaries(const PlanRun& run) const {
    return {boundaries_ + run.rounds.front().first_boundary, static_cast<int>(run.rounds.size())};
  }
  BoundarySpan boundaries(const PlanRun::Round& round) const {
    return {boundaries_ + round.first_boundary, static_cast<int>(round.boundaries)};
  }

 private:
  DeviceScratch memory_;
  PassPlan plan_;
  const int32_t* tokens_ = nullptr;
  const float* angles_ = nullptr;
  const DevicePiece* pieces_ = nullptr;
  const DeviceBoundary* boundaries_ = nullptr;
  const DeviceChain* chains_ = nullptr;
  float* const* kept_ = nullptr;
  int64_t kept_count_ = 0;
  int64_t best_ = 1;
};

}  // namespace lola

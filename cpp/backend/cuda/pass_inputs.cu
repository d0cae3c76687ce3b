#include <algorithm>
#include <bit>
#include <cstring>

#include "backend/cuda/pass_inputs.cuh"

namespace lola {

UploadBuffers::~UploadBuffers() {
  for (Turn& turn : turns_) {
    if (turn.done != nullptr) cudaEventSynchronize(turn.done);
    for (const auto& [block, bytes] : turn.blocks) cudaFreeHost(block);
    if (turn.done != nullptr) cudaEventDestroy(turn.done);
  }
}

void UploadBuffers::turn() {
  Turn& old = turns_[now_];
  if (old.done == nullptr) {
    cuda_check(cudaEventCreateWithFlags(&old.done, cudaEventDisableTiming), "event");
  }
  cuda_check(cudaEventRecord(old.done, device_.stream().handle), "event");
  now_ = 1 - now_;
  Turn& next = turns_[now_];
  if (next.done != nullptr) cuda_check(cudaEventSynchronize(next.done), "pass");
  next.block = 0;
  next.used = 0;
}

void UploadBuffers::upload(void* to, const void* from_host, int64_t bytes) {
  constexpr int64_t kBlockBytes = int64_t{1} << 20;
  Turn& turn = turns_[now_];
  while (turn.block < turn.blocks.size() && turn.used + bytes > turn.blocks[turn.block].second) {
    ++turn.block;
    turn.used = 0;
  }
  if (turn.block == turn.blocks.size()) {
    void* block = nullptr;
    const int64_t size = std::max(bytes, kBlockBytes);
    cuda_check(cudaMallocHost(&block, static_cast<size_t>(size)), "pinned memory");
    turn.blocks.emplace_back(block, size);
  }
  uint8_t* from = static_cast<uint8_t*>(turn.blocks[turn.block].first) + turn.used;
  turn.used += (bytes + 255) / 256 * 256;
  std::memcpy(from, from_host, static_cast<size_t>(bytes));
  cuda_check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyHostToDevice,
                             device_.stream().handle),
             "upload");
}

void PassInputs::set(std::span<const PassTask> tasks, std::span<const int32_t> tokens,
                     std::span<const float> angles, int64_t run_bytes, UploadBuffers& uploads,
                     bool& grown) {
  plan_ = plan_pass(tasks, run_bytes);
  std::vector<float*> kept;
  best_ = 1;
  for (const PassTask& task : tasks) {
    if (task.logits == nullptr) continue;
    kept.push_back(task.logits);
    best_ = std::max(best_, task.best);
  }
  // Few different numbers, so that passes seldom differ in nothing else.
  best_ = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(std::min(best_, kMostBest))));
  kept_count_ = static_cast<int64_t>(kept.size());
  std::vector<uint8_t> bytes;
  const auto add = [&bytes](const void* data, size_t size) {
    const size_t at = (bytes.size() + 255) / 256 * 256;
    bytes.resize(at + size);
    if (size > 0) std::memcpy(bytes.data() + at, data, size);
    return at;
  };
  const size_t token_at = add(tokens.data(), tokens.size_bytes());
  const size_t angles_at = add(angles.data(), angles.size_bytes());
  const size_t kept_at = add(kept.data(), kept.size() * sizeof(float*));
  const size_t pieces_at = add(plan_.pieces.data(), plan_.pieces.size() * sizeof(DevicePiece));
  const size_t boundaries_at =
      add(plan_.boundaries.data(), plan_.boundaries.size() * sizeof(DeviceBoundary));
  const size_t chains_at = add(plan_.chains.data(), plan_.chains.size() * sizeof(DeviceChain));
  uint8_t* memory = memory_.get<uint8_t>(static_cast<int64_t>(bytes.size()), grown);
  uploads.upload(memory, bytes.data(), static_cast<int64_t>(bytes.size()));
  tokens_ = reinterpret_cast<const int32_t*>(memory + token_at);
  angles_ = reinterpret_cast<const float*>(memory + angles_at);
  kept_ = reinterpret_cast<float* const*>(memory + kept_at);
  pieces_ = reinterpret_cast<const DevicePiece*>(memory + pieces_at);
  boundaries_ = reinterpret_cast<const DeviceBoundary*>(memory + boundaries_at);
  chains_ = reinterpret_cast<const DeviceChain*>(memory + chains_at);
}

}  // namespace lola

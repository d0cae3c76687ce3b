// The bytes of a session: on the backends of the stages, or all in host memory while it is spilled.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/buffer.h"
#include "models/session_layout.h"
#include "models/workspace.h"

namespace lola {

class SessionMemory {
 public:
  // DeviceError where a backend has no room.
  SessionMemory(const Model& model, const SessionLayout& layout);

  // Backend memory; not while spilled.
  uint8_t* stage(size_t index) const { return stages_[index].as<uint8_t>(); }
  float* logits() const { return logits_.as<float>(); }

  bool spilled() const { return !host_.empty(); }
  // `used` is what has to be kept; the rest is zero afterwards. The logits are the caller's to
  // keep.
  void spill(std::span<const MemoryRange> used, Workspaces& workspaces);
  void restore(std::span<const MemoryRange> used, Workspaces& workspaces);

  // Spilled or not.
  void read(const MemoryRange& range, void* to_host, Workspaces& workspaces) const;
  // Of another session, into one that is not spilled.
  void copy(const MemoryRange& range, const SessionMemory& from, Workspaces& workspaces);
  void write(const MemoryRange& range, const void* from_host, Workspaces& workspaces);

 private:
  void allocate();

  const Model& model_;
  std::vector<int64_t> stage_bytes_;
  std::vector<Buffer> stages_;
  Buffer logits_;             // [vocabulary], of the last token, in the last stage
  std::vector<Buffer> host_;  // of each stage while spilled, else empty
};

}  // namespace lola

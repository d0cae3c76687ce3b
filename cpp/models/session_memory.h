// The bytes of a session: on the backends of the stages, or all in host memory while it is spilled.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/buffer.h"
#include "models/session_layout.h"
#include "models/workspace.h"

namespace lola {

// All of a session's memory in host memory; as long as nothing is written, zero and not resident.
class HostImage {
 public:
  HostImage(const SessionLayout& layout, int64_t tokens);

  uint8_t* at(const MemoryRange& range) const;
  int64_t pages() const { return static_cast<int64_t>(stages_.front().pages.size()); }

 private:
  struct Stage {
    Buffer fixed;
    std::vector<Buffer> pages;
  };

  std::vector<Stage> stages_;
};

class SessionMemory {
 public:
  // The part that does not grow; kNothing where fork() comes next. DeviceError where a backend has
  // no room.
  SessionMemory(const Model& model, const SessionLayout& layout, Fill fill = Fill::kZeros);

  // Backend memory; not while spilled.
  uint8_t* fixed(size_t stage) const { return stages_[stage].fixed.as<uint8_t>(); }
  uint8_t* const* pages(size_t stage) const { return stages_[stage].table.as<uint8_t*>(); }
  float* logits() const { return logits_.as<float>(); }

  // Takes pages until they hold `tokens`, where there are softmax layers. DeviceError where a
  // backend has no room.
  void grow(int64_t tokens, Workspaces& workspaces);
  int64_t pages() const;

  // A copy of what another session holds after `tokens` tokens. Pages that are full never change
  // again, and are shared.
  void fork(const SessionMemory& from, int64_t tokens, Workspaces& workspaces);

  bool spilled() const { return host_ != nullptr; }
  // The logits are the caller's to keep.
  void spill(int64_t tokens, Workspaces& workspaces);
  void restore(Workspaces& workspaces);

  // Of a session that is not spilled.
  HostImage image(int64_t tokens, Workspaces& workspaces) const;
  void load(const HostImage& image, Workspaces& workspaces);
  // Of the part that does not grow; spilled or not.
  void read(const MemoryRange& range, void* to_host, Workspaces& workspaces) const;

  const HostImage& host() const { return *host_; }  // while spilled

 private:
  struct Stage {
    Buffer fixed;
    std::vector<std::shared_ptr<Buffer>> pages;
    Buffer table;  // [room for pages] where they are, on the backend
  };

  void allocate(Fill fill);
  void add_page(size_t stage, std::shared_ptr<Buffer> page, Executor& executor);
  std::shared_ptr<Buffer> new_page(size_t stage, Fill fill) const;

  const Model& model_;
  const SessionLayout& layout_;
  std::vector<Stage> stages_;
  Buffer logits_;                    // [vocabulary], of the last token, in the last stage
  std::unique_ptr<HostImage> host_;  // while spilled
};

}  // namespace lola

#include "models/session_memory.h"

#include <cstdlib>
#include <cstring>

#include "base/error.h"
#include "models/model.h"

namespace lola {
namespace {

// Zero pages: what is never written is never resident.
Buffer host_buffer(int64_t bytes) {
  void* data = std::calloc(1, static_cast<size_t>(bytes));
  if (data == nullptr && bytes > 0) {
    throw DeviceError(message("spilled session: the system has no ", bytes, " bytes left"));
  }
  return Buffer(data, bytes, [](void* taken) { std::free(taken); });
}

}  // namespace

SessionMemory::SessionMemory(const Model& model, const SessionLayout& layout)
    : model_(model), stage_bytes_(layout.stage_bytes()) {
  allocate();
}

void SessionMemory::allocate() {
  std::vector<Buffer> stages;
  for (size_t i = 0; i < stage_bytes_.size(); ++i) {
    stages.push_back(model_.stages()[i].backend->allocate(stage_bytes_[i], "session"));
  }
  const int64_t vocabulary = model_.hyperparameters().vocabulary;
  logits_ =
      model_.stages().last().allocate(vocabulary * static_cast<int64_t>(sizeof(float)), "session");
  stages_ = std::move(stages);
}

void SessionMemory::spill(std::span<const MemoryRange> used, Workspaces& workspaces) {
  std::vector<Buffer> host;
  for (const int64_t bytes : stage_bytes_) host.push_back(host_buffer(bytes));
  for (const MemoryRange& range : used) {
    read(range, host[range.stage].as<uint8_t>() + range.offset, workspaces);
  }
  host_ = std::move(host);
  stages_.clear();
  logits_ = Buffer();
}

void SessionMemory::restore(std::span<const MemoryRange> used, Workspaces& workspaces) {
  allocate();
  for (const MemoryRange& range : used) {
    write(range, host_[range.stage].as<uint8_t>() + range.offset, workspaces);
  }
  host_.clear();
}

void SessionMemory::read(const MemoryRange& range, void* to_host, Workspaces& workspaces) const {
  if (spilled()) {
    const uint8_t* from = host_[range.stage].as<uint8_t>() + range.offset;
    if (range.bytes > 0) std::memcpy(to_host, from, static_cast<size_t>(range.bytes));
    return;
  }
  workspaces[range.stage].executor().download(to_host, stage(range.stage) + range.offset,
                                              range.bytes);
}

void SessionMemory::copy(const MemoryRange& range, const SessionMemory& from,
                         Workspaces& workspaces) {
  if (from.spilled()) {
    write(range, from.host_[range.stage].as<uint8_t>() + range.offset, workspaces);
    return;
  }
  workspaces[range.stage].executor().copy(stage(range.stage) + range.offset,
                                          from.stage(range.stage) + range.offset, range.bytes);
}

void SessionMemory::write(const MemoryRange& range, const void* from_host, Workspaces& workspaces) {
  workspaces[range.stage].executor().upload(stage(range.stage) + range.offset, from_host,
                                            range.bytes);
}

}  // namespace lola

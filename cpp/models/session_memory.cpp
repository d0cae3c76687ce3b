#include "models/session_memory.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "models/model.h"

namespace lola {
namespace {

constexpr int64_t kPointer = static_cast<int64_t>(sizeof(uint8_t*));

Buffer host_buffer(int64_t bytes) {
  void* data = std::calloc(1, static_cast<size_t>(std::max<int64_t>(bytes, 1)));
  if (data == nullptr) {
    throw DeviceError(message("session: the system has no ", bytes, " bytes of memory left"));
  }
  return Buffer(data, bytes, [](void* taken) { std::free(taken); });
}

}  // namespace

HostImage::HostImage(const SessionLayout& layout, int64_t tokens) {
  for (const StageBytes& bytes : layout.stages()) {
    stages_.push_back({host_buffer(bytes.fixed), {}});
    for (int64_t page = 0; layout.has_kv() && page < page_count(tokens); ++page) {
      stages_.back().pages.push_back(host_buffer(bytes.page));
    }
  }
}

uint8_t* HostImage::at(const MemoryRange& range) const {
  const Stage& stage = stages_[range.stage];
  const Buffer& part =
      range.page == kNoPage ? stage.fixed : stage.pages[static_cast<size_t>(range.page)];
  return part.as<uint8_t>() + range.offset;
}

SessionMemory::SessionMemory(const Model& model, const SessionLayout& layout, Fill fill)
    : model_(model), layout_(layout) {
  allocate(fill);
}

void SessionMemory::allocate(Fill fill) {
  std::vector<Stage> stages(model_.stages().size());
  for (size_t i = 0; i < stages.size(); ++i) {
    stages[i].fixed =
        model_.stages()[i].backend->allocate(layout_.stages()[i].fixed, "session", fill);
  }
  const int64_t vocabulary = model_.hyperparameters().vocabulary;
  logits_ = model_.stages().last().allocate(vocabulary * static_cast<int64_t>(sizeof(float)),
                                            "session", fill);
  stages_ = std::move(stages);
}

std::shared_ptr<Buffer> SessionMemory::new_page(size_t stage, Fill fill) const {
  return std::make_shared<Buffer>(model_.stages()[stage].backend->allocate(
      layout_.stages()[stage].page, "page of a session's KV cache", fill));
}

void SessionMemory::add_page(size_t index, std::shared_ptr<Buffer> page, Executor& executor) {
  Stage& stage = stages_[index];
  const auto count = static_cast<int64_t>(stage.pages.size());
  if ((count + 1) * kPointer > stage.table.bytes()) {
    constexpr int64_t kFirstRoom = 64;
    Buffer larger = model_.stages()[index].backend->allocate(
        std::max(kFirstRoom, 2 * count) * kPointer, "table of pages");
    executor.copy(larger.as<uint8_t>(), stage.table.as<uint8_t>(), count * kPointer);
    stage.table = std::move(larger);
  }
  uint8_t* const address = page->as<uint8_t>();
  executor.upload(stage.table.as<uint8_t*>() + count, &address, kPointer);
  stage.pages.push_back(std::move(page));
}

void SessionMemory::grow(int64_t tokens, Workspaces& workspaces) {
  for (size_t i = 0; layout_.has_kv() && i < stages_.size(); ++i) {
    while (std::ssize(stages_[i].pages) < page_count(tokens)) {
      add_page(i, new_page(i, Fill::kZeros), workspaces[i].executor());
    }
  }
}

int64_t SessionMemory::pages() const {
  return spilled() ? host_->pages() : std::ssize(stages_.front().pages);
}

void SessionMemory::fork(const SessionMemory& from, int64_t tokens, Workspaces& workspaces) {
  if (from.spilled()) return load(*from.host_, workspaces);
  for (size_t i = 0; i < stages_.size(); ++i) {
    Executor& executor = workspaces[i].executor();
    executor.copy(fixed(i), from.fixed(i), stages_[i].fixed.bytes());
    for (int64_t page = 0; layout_.has_kv() && page < page_count(tokens); ++page) {
      std::shared_ptr<Buffer> held = from.stages_[i].pages[static_cast<size_t>(page)];
      if ((page + 1) * kKvPageTokens > tokens) {
        const std::shared_ptr<Buffer> other = std::exchange(held, new_page(i, Fill::kNothing));
        executor.copy(held->as<uint8_t>(), other->as<uint8_t>(), held->bytes());
      }
      add_page(i, std::move(held), executor);
    }
  }
}

void SessionMemory::spill(int64_t tokens, Workspaces& workspaces) {
  host_ = std::make_unique<HostImage>(image(tokens, workspaces));
  stages_.clear();
  logits_ = Buffer();
}

void SessionMemory::restore(Workspaces& workspaces) {
  allocate(Fill::kNothing);
  try {
    load(*host_, workspaces);
  } catch (...) {
    stages_.clear();
    logits_ = Buffer();
    throw;
  }
  host_.reset();
}

HostImage SessionMemory::image(int64_t tokens, Workspaces& workspaces) const {
  HostImage image(layout_, tokens);
  for (size_t i = 0; i < stages_.size(); ++i) {
    Executor& executor = workspaces[i].executor();
    executor.download(image.at({i, kNoPage, 0, 0}), fixed(i), stages_[i].fixed.bytes());
    for (int64_t page = 0; page < image.pages(); ++page) {
      const Buffer& held = *stages_[i].pages[static_cast<size_t>(page)];
      executor.download(image.at({i, page, 0, 0}), held.as<uint8_t>(), held.bytes());
    }
  }
  return image;
}

void SessionMemory::load(const HostImage& image, Workspaces& workspaces) {
  grow(image.pages() * kKvPageTokens, workspaces);
  for (size_t i = 0; i < stages_.size(); ++i) {
    Executor& executor = workspaces[i].executor();
    executor.upload(fixed(i), image.at({i, kNoPage, 0, 0}), stages_[i].fixed.bytes());
    for (int64_t page = 0; page < image.pages(); ++page) {
      const Buffer& held = *stages_[i].pages[static_cast<size_t>(page)];
      executor.upload(held.as<uint8_t>(), image.at({i, page, 0, 0}), held.bytes());
    }
  }
}

void SessionMemory::read(const MemoryRange& range, void* to_host, Workspaces& workspaces) const {
  if (!spilled()) {
    workspaces[range.stage].executor().download(to_host, fixed(range.stage) + range.offset,
                                                range.bytes);
  } else if (range.bytes > 0) {
    std::memcpy(to_host, host_->at(range), static_cast<size_t>(range.bytes));
  }
}

}  // namespace lola

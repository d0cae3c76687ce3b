#include "models/session.h"

#include <utility>

#include "base/error.h"
#include "models/workspace.h"

namespace lola {
namespace {

constexpr int64_t kAlignment = 64;  // bytes, a cache line
constexpr int64_t kMaxSessionBytes = int64_t{1} << 46;

SessionConfig checked(const Model& model, SessionConfig config) {
  config.lola.sparse_size = sparse_capacity(config.lola);
  for (const AttentionLayer& layer : model.attention().layers) {
    if (layer.lola) validate(config.lola, layer.lola->shape);
  }
  return config;
}

}  // namespace

SessionLayout::SessionLayout(const Model& model, const SessionConfig& config) {
  if (config.context_length < 1) {
    throw UsageError(
        message("context_length: found ", config.context_length, ", wanted 1 or more"));
  }
  const Hyperparameters& h = model.hyperparameters();
  logits_bytes_ = h.vocabulary * static_cast<int64_t>(sizeof(float));
  for (const AttentionLayer& layer : model.attention().layers) {
    if (layer.lola && !lola_) lola_.emplace(layer.lola->shape, config.lola);
    if (!layer.lola && !kv_) {
      const AttentionShape shape{h.heads, h.kv_heads, h.head_dim, 0};
      kv_.emplace(shape, config.lola.pair_type, config.context_length);
    }
    const int64_t bytes = layer.lola ? lola_->bytes() : kv_->bytes();
    offsets_.push_back(memory_bytes_);
    is_lola_.push_back(layer.lola.has_value());
    if (bytes > kMaxSessionBytes - memory_bytes_ - kAlignment) {
      throw UsageError(
          message("session: its memory would be more than ", kMaxSessionBytes, " bytes"));
    }
    memory_bytes_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
  }
}

std::vector<MemoryRange> SessionLayout::used(int64_t layer, int64_t position) const {
  if (is_lola(layer)) return {{offset(layer), lola_->bytes()}};
  std::vector<MemoryRange> ranges;
  for (const MemorySection& section : kv_->sections()) {
    const int64_t head_bytes = section.bytes / section.shape[0];
    for (int64_t head = 0; head < section.shape[0]; ++head) {
      ranges.push_back(
          {offset(layer) + section.offset + head * head_bytes, position * kv_->row_bytes()});
    }
  }
  return ranges;
}

Session::Session(std::shared_ptr<const Model> model, const SessionConfig& config)
    : model_(std::move(model)),
      config_(checked(*model_, config)),
      layout_(*model_, config_),
      memory_(model_->backend().allocate(layout_.memory_bytes(), "session")),
      logits_(model_->backend().allocate(
          model_->hyperparameters().vocabulary * static_cast<int64_t>(sizeof(float)), "session")) {}

std::span<const float> Session::logits() const {
  if (!has_logits_) return {};
  return host_logits_.empty() ? logits(model_->borrow_workspace()->executor()) : host_logits_;
}

std::span<const float> Session::logits(Executor& executor) const {
  if (has_logits_ && host_logits_.empty()) {
    host_logits_.resize(static_cast<size_t>(model_->hyperparameters().vocabulary));
    executor.download(host_logits_.data(), logits_.as<float>(), logits_.bytes());
  }
  return host_logits_;
}

void Session::set_logits(std::span<const float> logits, Executor& executor) {
  forget_logits();
  has_logits_ = true;
  host_logits_.assign(logits.begin(), logits.end());
  executor.upload(logits_.as<float>(), logits.data(), logits_.bytes());
}

void Session::forget_logits() {
  has_logits_ = false;
  host_logits_.clear();
  greedy_ = {-1, 0.0f};
}

std::unique_ptr<Session> Session::fork() const {
  const auto lock = use();
  auto copy = std::make_unique<Session>(model_, config_);
  const Model::WorkspaceHandle workspace = model_->borrow_workspace();
  Executor& executor = workspace->executor();
  for (const MemoryRange& range : used_memory()) {
    executor.copy(copy->memory_.as<uint8_t>() + range.offset, memory_.as<uint8_t>() + range.offset,
                  range.bytes);
  }
  if (has_logits_) executor.copy(copy->logits_.as<float>(), logits_.as<float>(), logits_.bytes());
  copy->position_ = position_;
  copy->has_logits_ = has_logits_;
  copy->greedy_ = greedy_;
  return copy;
}

std::vector<MemoryRange> Session::used_memory() const {
  std::vector<MemoryRange> ranges;
  for (int64_t layer = 0; layer < layout_.layers(); ++layer) {
    for (const MemoryRange& range : layout_.used(layer, position_)) {
      if (!ranges.empty() && ranges.back().offset + ranges.back().bytes == range.offset) {
        ranges.back().bytes += range.bytes;
      } else {
        ranges.push_back(range);
      }
    }
  }
  return ranges;
}

std::unique_lock<std::mutex> Session::use() const {
  std::unique_lock lock(in_use_, std::try_to_lock);
  if (!lock.owns_lock()) {
    throw UsageError(
        "session: another thread is using it; one conversation is one thread at a time, "
        "fork() gives a copy");
  }
  return lock;
}

}  // namespace lola

#include "models/session_layout.h"

#include <numeric>

#include "base/error.h"
#include "models/model.h"

namespace lola {
namespace {

constexpr int64_t kAlignment = 64;  // bytes, a cache line
constexpr int64_t kMaxSessionBytes = int64_t{1} << 46;

}  // namespace

SessionLayout::SessionLayout(const Model& model, const SessionConfig& config)
    : stage_bytes_(model.stages().size(), 0) {
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
    stages_.push_back(model.stages().of_layer(layers()));
    int64_t& taken = stage_bytes_[stages_.back()];
    offsets_.push_back(taken);
    is_lola_.push_back(layer.lola.has_value());
    if (bytes > kMaxSessionBytes - taken - kAlignment) {
      throw UsageError(
          message("session: its memory would be more than ", kMaxSessionBytes, " bytes"));
    }
    taken += (bytes + kAlignment - 1) / kAlignment * kAlignment;
  }
}

int64_t SessionLayout::bytes() const {
  return std::accumulate(stage_bytes_.begin(), stage_bytes_.end(), logits_bytes_);
}

std::vector<MemoryRange> SessionLayout::used(int64_t layer, int64_t position) const {
  const size_t stage = stages_[static_cast<size_t>(layer)];
  if (is_lola(layer)) return {{stage, offset(layer), lola_->bytes()}};
  std::vector<MemoryRange> ranges;
  for (const MemorySection& section : kv_->sections()) {
    const int64_t head_bytes = section.bytes / section.shape[0];
    for (int64_t head = 0; head < section.shape[0]; ++head) {
      ranges.push_back(
          {stage, offset(layer) + section.offset + head * head_bytes, position * kv_->row_bytes()});
    }
  }
  return ranges;
}

std::vector<MemoryRange> SessionLayout::used(int64_t position) const {
  std::vector<MemoryRange> ranges;
  for (int64_t layer = 0; layer < layers(); ++layer) {
    for (const MemoryRange& range : used(layer, position)) {
      if (!ranges.empty() && ranges.back().stage == range.stage &&
          ranges.back().offset + ranges.back().bytes == range.offset) {
        ranges.back().bytes += range.bytes;
      } else {
        ranges.push_back(range);
      }
    }
  }
  return ranges;
}

}  // namespace lola

#include "models/session_layout.h"

#include <algorithm>

#include "base/error.h"
#include "models/model.h"

namespace lola {
namespace {

constexpr int64_t kAlignment = 64;  // bytes, a cache line
constexpr int64_t kMaxSessionBytes = int64_t{1} << 46;
constexpr int64_t kMaxContext = int64_t{1} << 32;

}  // namespace

SessionLayout::SessionLayout(const Model& model, const SessionConfig& config)
    : stages_(model.stages().size(), StageBytes{0, 0}) {
  if (config.context_length < 1 || config.context_length > kMaxContext) {
    throw UsageError(
        message("context_length: found ", config.context_length, ", wanted 1 to ", kMaxContext));
  }
  const Hyperparameters& h = model.hyperparameters();
  logits_bytes_ = h.vocabulary * static_cast<int64_t>(sizeof(float));
  for (const AttentionLayer& layer : model.attention().layers) {
    if (layer.lola && !lola_) lola_.emplace(layer.lola->shape, config.lola);
    if (!layer.lola && !kv_) {
      kv_.emplace(AttentionShape{h.heads, h.kv_heads, h.head_dim, 0}, config.lola.pair_type);
    }
    const size_t stage = model.stages().of_layer(layers());
    int64_t& taken = layer.lola ? stages_[stage].fixed : stages_[stage].page;
    places_.push_back({stage, taken, layer.lola.has_value()});
    const int64_t bytes = layer.lola ? lola_->bytes() : kv_->bytes();
    const int64_t copies = layer.lola ? 1 : page_count(config.context_length);
    if (bytes > kMaxSessionBytes / copies - taken - kAlignment) {
      throw UsageError(
          message("session: its memory would be more than ", kMaxSessionBytes, " bytes"));
    }
    taken += (bytes + kAlignment - 1) / kAlignment * kAlignment;
  }
}

int64_t SessionLayout::bytes(int64_t tokens) const {
  int64_t bytes = logits_bytes_;
  for (const StageBytes& stage : stages_) bytes += stage.fixed + page_count(tokens) * stage.page;
  return bytes;
}

std::vector<MemoryRange> SessionLayout::ranges(int64_t layer, const MemorySection& section,
                                               int64_t position) const {
  const Place& at = place(layer);
  const int64_t offset = at.offset + section.offset;
  if (at.lola) return {{at.stage, kNoPage, offset, section.bytes}};
  std::vector<MemoryRange> ranges;
  const int64_t row_bytes = kv_->row_bytes();
  for (int64_t head = 0; head < section.shape[0]; ++head) {
    for (int64_t page = 0; page < page_count(position); ++page) {
      const int64_t rows = std::min(kKvPageTokens, position - page * kKvPageTokens);
      ranges.push_back(
          {at.stage, page, offset + head * kKvPageTokens * row_bytes, rows * row_bytes});
    }
  }
  return ranges;
}

}  // namespace lola

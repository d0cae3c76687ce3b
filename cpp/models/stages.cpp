#include "models/stages.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <utility>

#include "base/error.h"

namespace lola {
namespace {

// The layer that a tensor "blk.<layer>.<suffix>" belongs to.
std::optional<int64_t> layer_of(const std::string& name) {
  constexpr std::string_view kPrefix = "blk.";
  if (!name.starts_with(kPrefix)) return std::nullopt;
  int64_t layer = 0;
  const auto [end, error] =
      std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), layer);
  if (error != std::errc() || end == name.data() + name.size() || *end != '.') return std::nullopt;
  return layer;
}

// What the weights of some layers take on a backend.
class WeightBytes {
 public:
  WeightBytes(const GgufFile& file, const GgufFile* adapter, int64_t layers)
      : file_(file), adapter_(adapter), layers_(layers) {}

  int64_t of(const Backend& backend, int64_t begin, int64_t end) const {
    if (begin == end) return 0;
    int64_t bytes = 0;
    for (const GgufTensor& tensor : file_.tensors()) {
      const auto layer = layer_of(tensor.name);
      if (layer && *layer >= begin && *layer < end) bytes += stored(backend, tensor);
    }
    if (adapter_ != nullptr) {
      for (const GgufTensor& tensor : adapter_->tensors()) {
        const auto layer = layer_of(tensor.name);
        if (layer && *layer >= begin && *layer < end) bytes += floats(tensor);
      }
    }
    return bytes + ends(backend, begin == 0, end == layers_);
  }

 private:
  // The embedding and the output matrix, which are one where the file has no other.
  int64_t ends(const Backend& backend, bool first, bool last) const {
    const GgufTensor* embedding = file_.find_tensor("token_embd.weight");
    const GgufTensor* output = file_.find_tensor("output.weight");
    const GgufTensor* products = output != nullptr ? output : embedding;
    int64_t bytes = last && products != nullptr ? stored(backend, *products) : 0;
    const bool shared = last && output == nullptr;
    if (first && !shared && embedding != nullptr) {
      bytes += stored(backend, *embedding, WeightUse::kRows);
    }
    return bytes;
  }

  static int64_t stored(const Backend& backend, const GgufTensor& tensor,
                        WeightUse use = WeightUse::kProducts) {
    if (tensor.shape.size() != 2) return floats(tensor);
    return backend.stored_bytes({tensor.format, nullptr, tensor.shape[0], tensor.shape[1]}, use);
  }

  static int64_t floats(const GgufTensor& tensor) {
    int64_t count = 1;
    for (const int64_t size : tensor.shape) count *= size;
    return count * static_cast<int64_t>(sizeof(float));
  }

  const GgufFile& file_;
  const GgufFile* adapter_;
  int64_t layers_;
};

// The most layers, from the last one on, that take no more than `room`.
int64_t most_layers(const WeightBytes& bytes, const Backend& backend, int64_t layers,
                    int64_t room) {
  int64_t count = 0;
  while (count < layers && bytes.of(backend, layers - count - 1, layers) <= room) ++count;
  return count;
}

}  // namespace

size_t Stages::of_layer(int64_t layer) const {
  size_t index = 0;
  while (layer >= stages_[index].end) ++index;
  return index;
}

int64_t Stages::pass_tokens() const {
  int64_t tokens = stages_.front().backend->pass_tokens();
  for (const Stage& stage : stages_) tokens = std::min(tokens, stage.backend->pass_tokens());
  return tokens;
}

std::string Stages::describe() const {
  if (size() == 1) return first().describe();
  std::string text;
  for (const Stage& stage : stages_) {
    text += message(text.empty() ? "" : "; ", "layers ", stage.begin, " to ", stage.end - 1, ": ",
                    stage.backend->describe());
  }
  return text;
}

bool Stages::run_behind() const {
  return std::all_of(stages_.begin(), stages_.end(),
                     [](const Stage& stage) { return stage.backend->runs_behind(); });
}

Stages place_layers(const GgufFile& file, const GgufFile* adapter, const Hyperparameters& h,
                    int64_t device_layers, const std::shared_ptr<Backend>& device,
                    const MakeBackend& host) {
  const WeightBytes bytes(file, adapter, h.layers);
  const int64_t free = device->free_bytes();
  if (device_layers == kAllLayers) device_layers = h.layers;
  if (device_layers == kLayersThatFit) {
    device_layers = most_layers(bytes, *device, h.layers, free - free / 10);
  }
  if (device_layers < 0 || device_layers > h.layers) {
    throw UsageError(message("gpu_layers: found ", device_layers, ", wanted 0 to ", h.layers));
  }
  const auto check_room = [&](const Stage& stage) {
    const int64_t needed = bytes.of(*stage.backend, stage.begin, stage.end);
    const int64_t found = stage.backend->free_bytes();
    if (needed <= found) return;
    std::string hint;
    if (host && stage.backend == device) {
      const int64_t most = most_layers(bytes, *device, h.layers, found);
      hint = message("; gpu_layers=", most, " would fit");
    }
    throw DeviceError(message("weights of ", file.path(), ": layers ", stage.begin, " to ",
                              stage.end - 1, " need ", needed, " bytes on ",
                              stage.backend->describe(), ", which has ", found, " free", hint));
  };
  const int64_t split = h.layers - device_layers;
  std::vector<Stage> stages;
  if (split < h.layers) {
    stages.push_back({device, split, h.layers});
    check_room(stages.back());
  }
  if (split > 0) {
    stages.insert(stages.begin(), {host(), 0, split});
    check_room(stages.front());
  }
  return Stages(std::move(stages));
}

}  // namespace lola

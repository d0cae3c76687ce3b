// Which backend runs which layers: where a model does not fit a card, its first layers stay on the
// CPU.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "gguf/gguf_reader.h"
#include "models/hyperparameters.h"

namespace lola {

// Neighbouring layers on one backend. A pass goes through the stages in turn: the first embeds the
// tokens, the last makes the logits, and rows of hidden values go from each to the next.
struct Stage {
  std::shared_ptr<Backend> backend;
  int64_t begin, end;  // layers [begin, end)
};

class Stages {
 public:
  explicit Stages(std::vector<Stage> stages) : stages_(std::move(stages)) {}

  size_t size() const { return stages_.size(); }
  const Stage& operator[](size_t index) const { return stages_[index]; }
  Backend& first() const { return *stages_.front().backend; }
  Backend& last() const { return *stages_.back().backend; }
  size_t of_layer(int64_t layer) const;
  Backend& backend_of(int64_t layer) const { return *stages_[of_layer(layer)].backend; }

  // The most tokens that a pass should take.
  int64_t pass_tokens() const;
  std::string describe() const;
  // Whether all backends run behind the host.
  bool run_behind() const;

 private:
  std::vector<Stage> stages_;
};

inline constexpr int64_t kAllLayers = -1;
inline constexpr int64_t kLayersThatFit = -2;

using MakeBackend = std::function<std::shared_ptr<Backend>()>;

// The last `device_layers` layers and the output matrix on `device`, the layers before them on what
// `host` makes. kLayersThatFit leaves a tenth of the device's free memory to sessions and
// activations. DeviceError with the numbers where one has no room for its weights, before any is
// taken. adapter: null where there is none; host: empty where all layers are on the device.
Stages place_layers(const GgufFile& file, const GgufFile* adapter, const Hyperparameters& h,
                    int64_t device_layers, const std::shared_ptr<Backend>& device,
                    const MakeBackend& host);

}  // namespace lola

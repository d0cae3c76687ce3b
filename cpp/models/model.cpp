#include "models/model.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "base/error.h"
#include "base/text.h"
#include "models/fingerprint.h"
#include "models/workspace.h"

namespace lola {

std::shared_ptr<const Model> Model::load(const std::string& path, const ModelOptions& options) {
  auto file = GgufFile::open(path);
  std::shared_ptr<const GgufFile> adapter;
  if (!options.adapter_path.empty()) {
    if (is_one_file(*file)) {
      throw UsageError(message(
          path, " already holds a LoLA adapter; a second one was given: ", options.adapter_path));
    }
    adapter = GgufFile::open(options.adapter_path);
    const std::string type = adapter->find_string("adapter.type").value_or("");
    if (type != "lola") {
      throw FormatError(
          message(options.adapter_path, ": adapter.type: found ", quote(type), ", wanted 'lola'"));
    }
  }
  return std::shared_ptr<const Model>(new Model(std::move(file), std::move(adapter), options));
}

Model::Model(std::shared_ptr<const GgufFile> file, std::shared_ptr<const GgufFile> adapter,
             const ModelOptions& options)
    : file_(std::move(file)),
      adapter_(std::move(adapter)),
      hyperparameters_(read_hyperparameters(*file_)),
      rope_(hyperparameters_.rope),
      stages_(make_stages(options)),
      fingerprint_(lola::fingerprint(*file_, adapter_.get())),
      weights_(load_weights(*file_, hyperparameters_, stages_, options.progress)) {
  const GgufFile* lola_file = is_one_file(*file_) ? file_.get() : adapter_.get();
  attention_ = lola_file == nullptr ? plain_attention(hyperparameters_)
                                    : load_attention(*lola_file, hyperparameters_, stages_);
  for (int64_t i = 0; i < hyperparameters_.layers; ++i) {
    const AttentionLayer& layer = attention_.layers[static_cast<size_t>(i)];
    if (layer.lola) stages_.backend_of(i).check(layer.lola->shape);
  }
  if (adapter_) apply_lora(*adapter_, hyperparameters_, stages_, weights_);
}

Stages Model::make_stages(const ModelOptions& options) const {
  const Hyperparameters& h = hyperparameters_;
  const auto make = [&](const std::string& device) {
    auto backend = make_backend(device, {options.threads});
    backend->check({h.heads, h.kv_heads, h.head_dim, 0});
    return backend;
  };
  const bool split = options.device != "cpu" || options.device_layers != kAllLayers;
  return place_layers(*file_, adapter_.get(), h, options.device_layers, make(options.device),
                      split ? MakeBackend([&] { return make("cpu"); }) : MakeBackend());
}

Model::~Model() = default;

int64_t Model::weight_bytes() const {
  return static_cast<int64_t>(file_->file_bytes() + (adapter_ ? adapter_->file_bytes() : 0));
}

Model::WorkspacesHandle Model::borrow_workspaces() const {
  std::unique_ptr<Workspaces> workspaces;
  {
    std::lock_guard lock(workspace_mutex_);
    auto& idle = idle_workspaces_;
    auto found = std::find_if(idle.rbegin(), idle.rend(),
                              [](const auto& each) { return !each->back().is_at_work(); });
    if (found == idle.rend()) found = idle.rbegin();
    if (found != idle.rend()) {
      workspaces = std::move(*found);
      idle.erase(std::next(found).base());
    }
  }
  if (workspaces) {
    workspaces->back().wait();
  } else {
    workspaces = std::make_unique<Workspaces>();
    for (size_t i = 0; i < stages_.size(); ++i) {
      workspaces->emplace_back(*this, *stages_[i].backend);
    }
  }
  return {workspaces.release(), [this](Workspaces* used) {
            std::lock_guard lock(workspace_mutex_);
            idle_workspaces_.emplace_back(used);
          }};
}

}  // namespace lola

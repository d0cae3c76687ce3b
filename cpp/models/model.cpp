#include "models/model.h"

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
      backend_(make_backend(options.device, {options.threads})),
      hyperparameters_(read_hyperparameters(*file_)),
      rope_(hyperparameters_.rope),
      fingerprint_(lola::fingerprint(*file_, adapter_.get())),
      weights_(load_checked_weights()) {
  const GgufFile* lola_file = is_one_file(*file_) ? file_.get() : adapter_.get();
  attention_ = lola_file == nullptr ? plain_attention(hyperparameters_)
                                    : load_attention(*lola_file, hyperparameters_, *backend_);
  for (const AttentionLayer& layer : attention_.layers) {
    if (layer.lola) backend_->check(layer.lola->shape);
  }
  if (adapter_) apply_lora(*adapter_, hyperparameters_, *backend_, weights_);
}

Weights Model::load_checked_weights() const {
  const Hyperparameters& h = hyperparameters_;
  backend_->check({h.heads, h.kv_heads, h.head_dim, 0});
  int64_t bytes = 0;
  for (const GgufTensor& tensor : file_->tensors()) {
    if (tensor.shape.size() != 2) continue;
    bytes += backend_->stored_bytes(*tensor.format, tensor.shape[0], tensor.shape[1]);
  }
  backend_->require(bytes, "weights of " + file_->path());
  return load_weights(*file_, h, *backend_);
}

Model::~Model() = default;

int64_t Model::weight_bytes() const {
  return static_cast<int64_t>(file_->file_bytes() + (adapter_ ? adapter_->file_bytes() : 0));
}

Model::WorkspaceHandle Model::borrow_workspace() const {
  std::unique_ptr<Workspace> workspace;
  {
    std::lock_guard lock(workspace_mutex_);
    if (!idle_workspaces_.empty()) {
      workspace = std::move(idle_workspaces_.back());
      idle_workspaces_.pop_back();
    }
  }
  if (!workspace) workspace = std::make_unique<Workspace>(*this);
  return {workspace.release(), [this](Workspace* used) {
            std::lock_guard lock(workspace_mutex_);
            idle_workspaces_.emplace_back(used);
          }};
}

}  // namespace lola

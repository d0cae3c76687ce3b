#include "models/session.h"

#include <utility>

#include "base/error.h"

namespace lola {
namespace {

SessionConfig checked(const Model& model, SessionConfig config) {
  config.lola.sparse_size = sparse_capacity(config.lola);
  for (const AttentionLayer& layer : model.attention().layers) {
    if (layer.lola) validate(config.lola, layer.lola->shape);
  }
  return config;
}

}  // namespace

Session::Session(std::shared_ptr<const Model> model, const SessionConfig& config)
    : model_(std::move(model)),
      config_(checked(*model_, config)),
      layout_(*model_, config_),
      memory_(*model_, layout_) {}

Session::Session(const Session* like)
    : model_(like->model_),
      config_(like->config_),
      layout_(like->layout_),
      memory_(*model_, layout_, Fill::kNothing) {}

std::span<const float> Session::logits() const {
  if (!has_logits_) return {};
  return host_logits_.empty() ? logits(model_->borrow_workspaces()->back().executor())
                              : host_logits_;
}

std::span<const float> Session::logits(Executor& executor) const {
  if (has_logits_ && host_logits_.empty()) {
    host_logits_.resize(static_cast<size_t>(model_->hyperparameters().vocabulary));
    executor.download(host_logits_.data(), memory_.logits(), logits_bytes());
  }
  return host_logits_;
}

int64_t Session::logits_bytes() const {
  return model_->hyperparameters().vocabulary * static_cast<int64_t>(sizeof(float));
}

void Session::set_logits(std::span<const float> logits, Executor& executor) {
  forget_logits();
  has_logits_ = true;
  host_logits_.assign(logits.begin(), logits.end());
  executor.upload(memory_.logits(), logits.data(), logits_bytes());
}

void Session::forget_logits() {
  has_logits_ = false;
  host_logits_.clear();
  found_.reset();
}

std::unique_ptr<Session> Session::fork() const {
  const auto lock = use();
  std::unique_ptr<Session> copy(new Session(this));
  const auto workspaces = model_->borrow_workspaces();
  copy->memory_.fork(memory_, position_, *workspaces);
  copy->position_ = position_;
  copy->has_logits_ = has_logits_;
  copy->found_ = found_;
  copy->found_row_ = found_row_;
  copy->best_wanted_ = best_wanted_;
  if (!has_logits_) return copy;
  Executor& last = workspaces->back().executor();
  if (spilled()) {
    copy->host_logits_ = host_logits_;
    last.upload(copy->memory_.logits(), host_logits_.data(), logits_bytes());
  } else {
    last.copy(copy->memory_.logits(), memory_.logits(), logits_bytes());
  }
  return copy;
}

void Session::spill() {
  const auto lock = use();
  if (spilled()) return;
  const auto workspaces = model_->borrow_workspaces();
  logits(workspaces->back().executor());  // stay in host memory
  memory_.spill(position_, *workspaces);
}

void Session::restore(Workspaces& workspaces) {
  if (!spilled()) return;
  memory_.restore(workspaces);
  if (has_logits_) {
    workspaces.back().executor().upload(memory_.logits(), host_logits_.data(), logits_bytes());
  }
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

#include "models/workspace.h"

#include <algorithm>
#include <utility>

#include "models/model.h"

namespace lola {
namespace {

int64_t largest_rank(const Weights& weights) {
  int64_t rank = 0;
  for (const DecoderLayer& layer : weights.layers) {
    for (const Linear* linear :
         {&layer.q, &layer.k, &layer.v, &layer.output, &layer.gate, &layer.up, &layer.down}) {
      rank = std::max(rank, linear->lora_a.rows);
    }
  }
  return rank;
}

}  // namespace

Workspace::Workspace(const Model& model, Backend& backend)
    : model_(model), backend_(backend), executor_(backend.make_executor()) {}

bool Workspace::is_at_work() const {
  const auto found = found_.lock();
  return found && !found->is_read();
}

void Workspace::wait() const {
  if (const auto found = found_.lock()) found->read();
}

void Workspace::reserve(int64_t rows, int64_t logit_rows) {
  const Hyperparameters& h = model_.hyperparameters();
  if (rows > rows_) {
    const int64_t q_dim = h.heads * h.head_dim;
    const int64_t kv_dim = h.kv_heads * h.head_dim;
    const std::pair<float**, int64_t> arrays[] = {
        {&x, h.dim},        {&normed, h.dim}, {&q, q_dim},
        {&k, kv_dim},       {&v, kv_dim},     {&attended, q_dim},
        {&gate, h.ffn_dim}, {&up, h.ffn_dim}, {&lora, largest_rank(model_.weights())}};
    int64_t width = 0;
    for (const auto& [array, columns] : arrays) width += columns;
    const int64_t bytes = rows * width * static_cast<int64_t>(sizeof(float));
    rows_ = 0;
    activations_ = Buffer();
    activations_ = backend_.allocate_activations(bytes);
    float* next = activations_.as<float>();
    for (const auto& [array, columns] : arrays) {
      *array = next;
      next += rows * columns;
    }
    rows_ = rows;
  }
  if (logit_rows > logit_rows_) {
    const int64_t bytes = logit_rows * h.vocabulary * static_cast<int64_t>(sizeof(float));
    logit_rows_ = 0;
    logits_ = Buffer();
    logits_ = backend_.allocate(bytes, "logits");
    logits = logits_.as<float>();
    logit_rows_ = logit_rows;
  }
}

}  // namespace lola

// The activations of one pass in one stage and the executor that computes them. Every array is
// [rows, width], float32.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "models/found_logits.h"
#include "models/hyperparameters.h"

namespace lola {

class Model;

class Workspace {
 public:
  Workspace(const Model& model, Backend& backend);

  // Makes room for a pass of `rows` tokens, `logit_rows` of which go through the output matrix.
  void reserve(int64_t rows, int64_t logit_rows);

  Executor& executor() { return *executor_; }

  // What its latest pass found, which is read before the next begins.
  void leave(const std::shared_ptr<FoundLogits>& found) { found_ = found; }
  bool is_at_work() const;
  // Waits for that pass, where a session still wants what it finds.
  void wait() const;

  float* x = nullptr;         // [rows, dim] residual stream
  float* normed = nullptr;    // [rows, dim]
  float* q = nullptr;         // [rows, heads * head_dim]
  float* k = nullptr;         // [rows, kv_heads * head_dim]
  float* v = nullptr;         // [rows, kv_heads * head_dim]
  float* attended = nullptr;  // [rows, heads * head_dim]
  float* gate = nullptr;      // [rows, ffn_dim]
  float* up = nullptr;        // [rows, ffn_dim]
  float* lora = nullptr;      // [rows, largest rank]
  float* logits = nullptr;    // [logit_rows, vocabulary]

 private:
  const Model& model_;
  Backend& backend_;
  std::unique_ptr<Executor> executor_;
  std::weak_ptr<FoundLogits> found_;
  Buffer activations_;
  Buffer logits_;
  int64_t rows_ = 0;
  int64_t logit_rows_ = 0;
};

using Workspaces = std::vector<Workspace>;  // of one pass: one of each stage

}  // namespace lola

// One pass over the weights: the decoder's block diagram, top to bottom.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "models/session.h"
#include "models/workspace.h"

namespace lola {

// Is told what goes into the attention of each layer: some rows of q, k and v in host memory, laid
// out as in AttentionRows.
using AttentionObserver = std::function<void(int64_t layer, int64_t rows, const float* q,
                                             const float* k, const float* v)>;

// The tokens of one session in a pass.
struct Segment {
  Session* session;
  std::span<const int32_t> tokens;
  bool keep_logits;                   // store the last row's logits in the session
  float* logprobs;                    // [tokens] or null: of tokens[i] given all before it
  float* hidden;                      // [tokens, dim] or null: after the last norm
  const AttentionObserver* observer;  // or null
};

class Pass {
 public:
  Pass(const Model& model, Workspaces& workspaces, std::span<const Segment> segments);

  // The sessions have seen their tokens then; a GPU may still be at it until what is returned has
  // been read.
  std::shared_ptr<FoundLogits> run();

 private:
  void enter(size_t stage);
  void run_stage();
  std::shared_ptr<FoundLogits> finish();
  void attention(int64_t layer);
  void feed_forward(int64_t layer);
  void keep_logits();
  void score();
  void score(const Segment& segment, int64_t row);
  void give_hidden();
  void linear(const float* x, std::initializer_list<std::pair<const Linear*, float*>> outputs,
              bool accumulate = false);
  void norm_heads(float* x, int64_t heads, const Buffer& weight);
  void attend(int64_t layer);
  const float* normed_rows(int64_t row, int64_t rows);
  void observe(int64_t layer);
  const float* output_rows(int64_t row, int64_t rows);

  bool repeatable() const;

  const Model& model_;
  const Hyperparameters& h_;
  Workspaces& workspaces_;
  std::span<const Segment> segments_;
  int64_t rows_ = 0;
  std::vector<int32_t> tokens_;
  std::vector<float> angles_;  // cosines [rows, rotated pairs], then the sines

  // Of the stage that the pass is in.
  size_t stage_ = 0;
  Workspace* w_ = nullptr;
  Executor* executor_ = nullptr;
  const float* cosine_ = nullptr;  // of angles_
  std::vector<PassTask> tasks_;
};

}  // namespace lola

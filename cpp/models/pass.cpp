#include "models/pass.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <utility>

namespace lola {
namespace {

constexpr int64_t kScoreRows = 32;  // rows of logits held at once while scoring

// log softmax(logits)[target]
float log_probability(std::span<const float> logits, int32_t target) {
  const float peak = *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  for (float logit : logits) sum += std::exp(static_cast<double>(logit) - peak);
  return static_cast<float>(static_cast<double>(logits[static_cast<size_t>(target)]) - peak -
                            std::log(sum));
}

}  // namespace

Pass::Pass(const Model& model, Workspaces& workspaces, std::span<const Segment> segments)
    : model_(model), h_(model.hyperparameters()), workspaces_(workspaces), segments_(segments) {
  int64_t logit_rows = 0;
  bool scores = false;
  for (const Segment& segment : segments_) {
    Session& session = *segment.session;
    session.restore(workspaces_);
    session.memory_.grow(session.position_ + static_cast<int64_t>(segment.tokens.size()),
                         workspaces_);
    rows_ += static_cast<int64_t>(segment.tokens.size());
    logit_rows += segment.keep_logits ? 1 : 0;
    scores = scores || segment.logprobs != nullptr;
  }
  // All of it before a memory changes: a pass that fails half way could not be repeated.
  for (Workspace& workspace : workspaces_) {
    const bool last = &workspace == &workspaces_.back();
    workspace.reserve(rows_, last ? std::max(logit_rows, scores ? kScoreRows : 0) : 0);
  }
  const int64_t pairs = model_.rope().pairs();
  angles_.resize(static_cast<size_t>(2 * rows_ * pairs));
  for (const Segment& segment : segments_) {
    for (size_t i = 0; i < segment.tokens.size(); ++i) {
      const int64_t at = static_cast<int64_t>(tokens_.size()) * pairs;
      model_.rope().angles(segment.session->position_ + static_cast<int64_t>(i),
                           angles_.data() + at, angles_.data() + rows_ * pairs + at);
      tokens_.push_back(segment.tokens[i]);
    }
  }
}

std::shared_ptr<FoundLogits> Pass::run() {
  for (size_t stage = 0; stage < workspaces_.size(); ++stage) {
    enter(stage);
    std::vector<int64_t> key;
    if (repeatable()) {
      // The first and the last of the activations tell where the others are.
      key = {rows_, reinterpret_cast<int64_t>(w_->x), reinterpret_cast<int64_t>(w_->lora),
             reinterpret_cast<int64_t>(w_->logits)};
    }
    executor_->run(key, [this] { run_stage(); });
  }
  return finish();
}

void Pass::run_stage() {
  if (stage_ == 0) executor_->embed(model_.weights().token_embedding, w_->x);
  const Stage& stage = model_.stages()[stage_];
  for (int64_t layer = stage.begin; layer < stage.end; ++layer) {
    attention(layer);
    feed_forward(layer);
  }
  if (stage.end < h_.layers) return;
  score();
  give_hidden();
  keep_logits();
}

bool Pass::repeatable() const {
  return std::all_of(segments_.begin(), segments_.end(), [](const Segment& segment) {
    return segment.keep_logits && segment.tokens.size() == 1 && segment.hidden == nullptr &&
           segment.observer == nullptr;
  });
}

// Tells the executor of a stage what its operations work on; x comes from the stage before.
void Pass::enter(size_t stage) {
  const int64_t row_bytes = h_.dim * static_cast<int64_t>(sizeof(float));
  std::vector<uint8_t> x(stage == 0 ? 0 : static_cast<size_t>(rows_ * row_bytes));
  if (stage > 0) executor_->download(x.data(), w_->x, rows_ * row_bytes);
  stage_ = stage;
  w_ = &workspaces_[stage];
  executor_ = &w_->executor();
  const bool last = stage + 1 == workspaces_.size();
  tasks_.clear();
  int64_t row = 0;
  for (const Segment& segment : segments_) {
    Session& session = *segment.session;
    const auto tokens = static_cast<int64_t>(segment.tokens.size());
    tasks_.push_back(
        {&session.config_.lola, session.layout_.has_lola() ? &session.layout_.lola() : nullptr,
         session.memory_.fixed(stage), session.memory_.pages(stage), session.position_, row, tokens,
         last && segment.keep_logits ? session.memory_.logits() : nullptr, session.best_wanted_});
    row += tokens;
  }
  cosine_ = executor_->begin_pass(tasks_, tokens_, angles_);
  executor_->upload(w_->x, x.data(), static_cast<int64_t>(x.size()));
}

void Pass::attention(int64_t index) {
  const DecoderLayer& layer = model_.weights().layers[static_cast<size_t>(index)];
  const auto norm = layer.attention_norm.as<const float>();

  executor_->rms_norm(w_->x, rows_, h_.dim, norm, h_.norm_eps, w_->normed);
  linear(w_->normed, {{&layer.q, w_->q}, {&layer.k, w_->k}, {&layer.v, w_->v}});
  norm_heads(w_->q, h_.heads, layer.q_norm);
  norm_heads(w_->k, h_.kv_heads, layer.k_norm);
  executor_->rope({w_->q,
                   w_->k,
                   rows_,
                   {h_.heads, h_.kv_heads, h_.head_dim, 0},
                   cosine_,
                   cosine_ + rows_ * model_.rope().pairs(),
                   model_.rope().pairs(),
                   h_.architecture->rope_layout});
  observe(index);
  attend(index);
  linear(w_->attended, {{&layer.output, w_->x}}, true);
}

void Pass::attend(int64_t layer) {
  const DecoderLayer& own = model_.weights().layers[static_cast<size_t>(layer)];
  const WeightMatrix* next[] = {&own.output.weight, &own.gate.weight, &own.up.weight,
                                &own.down.weight};
  executor_->announce(next);
  const AttentionRows rows{w_->q, w_->k, w_->v, w_->attended};
  const AttentionLayer& attention = model_.attention().layers[static_cast<size_t>(layer)];
  std::vector<LolaTask> lola;
  std::vector<SoftmaxTask> softmax;
  int64_t row = 0;
  for (const Segment& segment : segments_) {
    Session& session = *segment.session;
    const int64_t tokens = static_cast<int64_t>(segment.tokens.size());
    const int64_t offset = session.layout_.offset(layer);
    if (attention.lola) {
      lola.push_back({&session.config_.lola, &session.layout_.lola(),
                      session.memory_.fixed(stage_) + offset, session.position_, row, tokens});
    } else {
      softmax.push_back({&session.layout_.kv(),
                         {session.memory_.pages(stage_), offset},
                         session.position_,
                         row,
                         tokens});
    }
    row += tokens;
  }
  const auto start = std::chrono::steady_clock::now();
  if (attention.lola) {
    executor_->lola_attention(*attention.lola, lola, rows);
  } else {
    executor_->softmax_attention({h_.heads, h_.kv_heads, h_.head_dim, 0}, softmax, rows);
  }
  const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
  for (const Segment& segment : segments_) segment.session->attention_seconds_ += spent.count();
}

void Pass::observe(int64_t layer) {
  int64_t row = 0;
  for (const Segment& segment : segments_) {
    const int64_t rows = static_cast<int64_t>(segment.tokens.size());
    if (segment.observer != nullptr) {
      const auto host = [&](const float* values, int64_t heads) {
        std::vector<float> copy(static_cast<size_t>(rows * heads * h_.head_dim));
        executor_->download(copy.data(), values + row * heads * h_.head_dim,
                            static_cast<int64_t>(copy.size() * sizeof(float)));
        return copy;
      };
      (*segment.observer)(layer, rows, host(w_->q, h_.heads).data(),
                          host(w_->k, h_.kv_heads).data(), host(w_->v, h_.kv_heads).data());
    }
    row += rows;
  }
}

void Pass::feed_forward(int64_t index) {
  const DecoderLayer& layer = model_.weights().layers[static_cast<size_t>(index)];
  executor_->rms_norm(w_->x, rows_, h_.dim, layer.ffn_norm.as<const float>(), h_.norm_eps,
                      w_->normed);
  linear(w_->normed, {{&layer.gate, w_->gate}, {&layer.up, w_->up}});
  executor_->silu_gate(w_->gate, w_->up, rows_, h_.ffn_dim);
  linear(w_->gate, {{&layer.down, w_->x}}, true);
}

// out = x W' + bias for weights that share x, then the adapter's low-rank part. accumulate: out
// gains it all.
void Pass::linear(const float* x, std::initializer_list<std::pair<const Linear*, float*>> outputs,
                  bool accumulate) {
  std::vector<MatmulJob> jobs;
  for (const auto& [linear, out] : outputs) {
    jobs.push_back(
        {&linear->weight, linear->bias.as<const float>(), out, linear->weight.rows, accumulate});
  }
  executor_->matmul(x, rows_, jobs);
  for (const auto& [linear, out] : outputs) {
    if (linear->lora_a.rows == 0) continue;
    const MatmulJob down{&linear->lora_a, nullptr, w_->lora, linear->lora_a.rows, false};
    const MatmulJob up{&linear->lora_b, nullptr, out, linear->weight.rows, true};
    executor_->matmul(x, rows_, {&down, 1});
    executor_->matmul(w_->lora, rows_, {&up, 1});
  }
}

// Each head of each row is a row of head_dim values.
void Pass::norm_heads(float* x, int64_t heads, const Buffer& weight) {
  if (weight.bytes() == 0) return;
  executor_->rms_norm(x, rows_ * heads, h_.head_dim, weight.as<const float>(), h_.norm_eps, x);
}

// [rows, dim] after the last norm, of `rows` rows of x from `row` on, in the workspace.
const float* Pass::normed_rows(int64_t row, int64_t rows) {
  executor_->rms_norm(w_->x + row * h_.dim, rows, h_.dim,
                      model_.weights().output_norm.as<const float>(), h_.norm_eps, w_->normed);
  return w_->normed;
}

// logits [rows, vocabulary] of the same.
const float* Pass::output_rows(int64_t row, int64_t rows) {
  const MatmulJob job{&model_.weights().output, nullptr, w_->logits, h_.vocabulary, false};
  executor_->matmul(normed_rows(row, rows), rows, {&job, 1});
  return w_->logits;
}

// The rows of the tokens whose logits are kept move to the front, so no row is overwritten before
// it is read.
void Pass::keep_logits() {
  int64_t kept = 0;
  for (const PassTask& task : tasks_) {
    if (task.logits == nullptr) continue;
    executor_->copy(w_->x + kept++ * h_.dim, w_->x + (task.row + task.tokens - 1) * h_.dim,
                    h_.dim * static_cast<int64_t>(sizeof(float)));
  }
  if (kept > 0) executor_->keep_logits(output_rows(0, kept), h_.vocabulary);
}

void Pass::score() {
  int64_t row = 0;
  for (const Segment& segment : segments_) {
    if (segment.logprobs != nullptr) score(segment, row);
    row += static_cast<int64_t>(segment.tokens.size());
  }
}

// Row i predicts token i + 1; the first token is predicted by the logits kept from before.
void Pass::score(const Segment& segment, int64_t first_row) {
  const int64_t tokens = static_cast<int64_t>(segment.tokens.size());
  const std::span<const float> before = segment.session->logits(*executor_);
  segment.logprobs[0] = before.empty() ? std::numeric_limits<float>::quiet_NaN()
                                       : log_probability(before, segment.tokens[0]);
  std::vector<float> host(static_cast<size_t>(kScoreRows * h_.vocabulary));
  for (int64_t begin = 0; begin < tokens; begin += kScoreRows) {
    const int64_t rows = std::min(kScoreRows, tokens - begin);
    const float* logits = output_rows(first_row + begin, rows);
    executor_->download(host.data(), logits,
                        rows * h_.vocabulary * static_cast<int64_t>(sizeof(float)));
    for (int64_t i = 0; i < rows; ++i) {
      const std::span<const float> row(host.data() + i * h_.vocabulary,
                                       static_cast<size_t>(h_.vocabulary));
      if (begin + i + 1 < tokens) {
        segment.logprobs[begin + i + 1] =
            log_probability(row, segment.tokens[static_cast<size_t>(begin + i + 1)]);
      } else {
        segment.session->set_logits(row, *executor_);
      }
    }
  }
}

void Pass::give_hidden() {
  int64_t row = 0;
  for (const Segment& segment : segments_) {
    const int64_t tokens = static_cast<int64_t>(segment.tokens.size());
    if (segment.hidden != nullptr) {
      executor_->download(segment.hidden, normed_rows(row, tokens),
                          tokens * h_.dim * static_cast<int64_t>(sizeof(float)));
    }
    row += tokens;
  }
}

std::shared_ptr<FoundLogits> Pass::finish() {
  const auto found = std::make_shared<FoundLogits>(*executor_);
  w_->leave(found);
  size_t kept = 0;
  for (const Segment& segment : segments_) {
    Session& session = *segment.session;
    session.position_ += static_cast<int64_t>(segment.tokens.size());
    if (segment.logprobs != nullptr) continue;
    session.forget_logits();  // those from before are not of the last token any more
    session.has_logits_ = segment.keep_logits;
    if (!segment.keep_logits) continue;
    session.found_ = found;
    session.found_row_ = kept++;
  }
  return found;
}

}  // namespace lola

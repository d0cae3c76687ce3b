#include "models/batch.h"

#include <algorithm>
#include <set>
#include <vector>

#include "base/error.h"

namespace lola {
namespace {

// The next pass, of pass_tokens rows at most: every session that has tokens left gets a fair share.
std::vector<Segment> next_pass(std::span<const Advance> advances, int64_t pass_tokens,
                               std::vector<size_t>& done) {
  std::vector<size_t> open;
  for (size_t i = 0; i < advances.size(); ++i) {
    if (done[i] < advances[i].tokens.size()) open.push_back(i);
  }
  // Shortest first, so that what one does not need goes to the longer ones.
  const auto left = [&](size_t i) { return advances[i].tokens.size() - done[i]; };
  std::stable_sort(open.begin(), open.end(), [&](size_t a, size_t b) { return left(a) < left(b); });
  std::vector<Segment> segments;
  size_t rows = static_cast<size_t>(pass_tokens);
  for (size_t n = 0; n < open.size() && rows > 0; ++n) {
    const size_t i = open[n];
    const size_t share = std::max<size_t>(1, rows / (open.size() - n));
    const size_t count = std::min(left(i), share);
    const auto from_here = [&](float* values, int64_t width) {
      return values == nullptr ? nullptr : values + static_cast<int64_t>(done[i]) * width;
    };
    float* logprobs = from_here(advances[i].logprobs, 1);
    const int64_t dim = advances[i].session->model()->hyperparameters().dim;
    const bool last = done[i] + count == advances[i].tokens.size();
    segments.push_back({advances[i].session, advances[i].tokens.subspan(done[i], count),
                        last && logprobs == nullptr, logprobs, from_here(advances[i].hidden, dim),
                        advances[i].observer});
    done[i] += count;
    rows -= count;
  }
  return segments;
}

}  // namespace

void check_tokens(const Session& session, std::span<const int32_t> tokens) {
  const int64_t vocabulary = session.model()->hyperparameters().vocabulary;
  for (int32_t token : tokens) {
    if (token < 0 || token >= vocabulary) {
      throw UsageError(message("tokens: found id ", token, ", wanted 0 to ", vocabulary - 1));
    }
  }
  const int64_t capacity = session.config().context_length;
  const int64_t end = session.position() + static_cast<int64_t>(tokens.size());
  if (session.layout().has_kv() && end > capacity) {
    throw UsageError(message("session is full: ", session.position(), " tokens seen and ",
                             tokens.size(), " more, but the KV cache of its softmax layers ",
                             "holds context_length = ", capacity));
  }
}

void advance_batch(std::span<const Advance> advances, const Progress& progress, Return when) {
  if (advances.empty()) return;
  const Model& model = *advances.front().session->model();
  std::set<const Session*> seen;
  std::vector<std::unique_lock<std::mutex>> locks;
  for (const Advance& advance : advances) {
    if (!seen.insert(advance.session).second) {
      throw UsageError("batch: a session stands in it twice");
    }
    locks.push_back(advance.session->use());
    if (advance.session->model().get() != &model) {
      throw UsageError("batch: all sessions must be of the same model");
    }
    check_tokens(*advance.session, advance.tokens);
  }
  const Model::WorkspacesHandle workspaces = model.borrow_workspaces();
  std::vector<size_t> done(advances.size(), 0);
  int64_t total = 0;
  const int64_t pass_tokens = model.stages().pass_tokens();
  auto segments = next_pass(advances, pass_tokens, done);
  while (!segments.empty()) {
    const auto found = Pass(model, *workspaces, segments).run();
    for (const Segment& segment : segments) total += static_cast<int64_t>(segment.tokens.size());
    segments = next_pass(advances, pass_tokens, done);
    if (when == Return::kWhenOver || !segments.empty()) found->check();
    if (progress) progress(total);
  }
}

}  // namespace lola

#include "backend/cuda/lola_plan.h"

#include <algorithm>
#include <bit>

namespace lola {
namespace {

bool alike(const PlanGroup& group, const PassTask& task) {
  const LolaConfig &a = group.config, &b = *task.config;
  return a.window_size == b.window_size && a.chunk_size == b.chunk_size &&
         a.sparse_size == b.sparse_size && a.scope == b.scope && a.policy == b.policy &&
         a.mixing == b.mixing && a.affine == b.affine && a.pair_type == b.pair_type &&
         a.seed == b.seed;
}

int32_t slot_of(const LolaConfig& config, int64_t position) {
  return static_cast<int32_t>(position % (config.window_size + config.chunk_size));
}

DevicePiece piece_of(const PassTask& task, int64_t done, int64_t tokens) {
  const int64_t position = task.position + done;
  const MemoryCounts counts = counts_at(*task.config, position);
  return {task.memory,
          task.pages,
          position,
          window_begin(*task.config, position),
          counts.absorbed,
          static_cast<int32_t>(counts.cache),
          static_cast<int32_t>(task.row + done),
          static_cast<int32_t>(tokens),
          slot_of(*task.config, window_begin(*task.config, position))};
}

DeviceBoundary boundary_of(const PassTask& task, int64_t seen) {
  const LolaConfig& config = *task.config;
  const int64_t last_boundary = seen - config.chunk_size;
  const int64_t first_leaving = window_begin(config, last_boundary);
  const MemoryCounts before = counts_at(config, last_boundary);
  return {task.memory,
          seen,
          first_leaving,
          before.absorbed,
          static_cast<int32_t>(before.cache),
          static_cast<int32_t>(window_begin(config, seen) - first_leaving),
          slot_of(config, first_leaving)};
}

class Planner {
 public:
  Planner(std::span<const PassTask> tasks, PassPlan& plan) : tasks_(tasks), plan_(plan) {}

  void rounds(PlanGroup& group) {
    std::vector<int64_t> done(group.tasks.size(), 0);
    while (round(group, done)) {
    }
  }

  void whole_tasks(PlanGroup& group) {
    group.first_whole = static_cast<int64_t>(plan_.pieces.size());
    for (const size_t i : group.tasks)
      plan_.pieces.push_back(piece_of(tasks_[i], 0, tasks_[i].tokens));
  }

 private:
  bool round(PlanGroup& group, std::vector<int64_t>& done) {
    PlanGroup::Round round{static_cast<int64_t>(plan_.pieces.size()), 0,
                           static_cast<int64_t>(plan_.boundaries.size()), 0, 0};
    const int64_t chunk = group.config.chunk_size;
    for (size_t i = 0; i < group.tasks.size(); ++i) {
      const PassTask& task = tasks_[group.tasks[i]];
      const int64_t now = task.position + done[i];
      const int64_t to_boundary = chunk - now % chunk;
      const int64_t tokens = std::min(task.tokens - done[i], to_boundary);
      if (tokens == 0) continue;
      plan_.pieces.push_back(piece_of(task, done[i], tokens));
      round.most_tokens = std::max(round.most_tokens, static_cast<int>(tokens));
      done[i] += tokens;
      if (tokens != to_boundary) continue;
      const DeviceBoundary boundary = boundary_of(task, now + tokens);
      if (boundary.leaving > 0) plan_.boundaries.push_back(boundary);
    }
    round.pieces = static_cast<int64_t>(plan_.pieces.size()) - round.first_piece;
    const auto boundaries = static_cast<uint64_t>(plan_.boundaries.size()) -
                            static_cast<uint64_t>(round.first_boundary);
    round.boundaries = boundaries == 0 ? 0 : static_cast<int64_t>(std::bit_ceil(boundaries));
    plan_.boundaries.resize(static_cast<size_t>(round.first_boundary + round.boundaries));
    if (round.pieces > 0) group.rounds.push_back(round);
    return round.pieces > 0;
  }

  std::span<const PassTask> tasks_;
  PassPlan& plan_;
};

}  // namespace

std::vector<int64_t> PassPlan::shape() const {
  std::vector<int64_t> numbers;
  for (const PlanGroup& group : groups) {
    const LolaConfig& c = group.config;
    numbers.insert(numbers.end(),
                   {static_cast<int64_t>(group.tasks.size()), c.window_size, c.chunk_size,
                    c.sparse_size, static_cast<int64_t>(c.scope),
                    reinterpret_cast<int64_t>(c.policy), static_cast<int64_t>(c.mixing), c.affine,
                    static_cast<int64_t>(c.pair_type), static_cast<int64_t>(c.seed)});
    for (const PlanGroup::Round& round : group.rounds) {
      numbers.insert(numbers.end(), {round.pieces, round.boundaries, round.most_tokens});
    }
  }
  return numbers;
}

PassPlan plan_pass(std::span<const PassTask> tasks) {
  PassPlan plan;
  for (size_t i = 0; i < tasks.size(); ++i) {
    auto group = std::find_if(plan.groups.begin(), plan.groups.end(),
                              [&](const PlanGroup& g) { return alike(g, tasks[i]); });
    if (group == plan.groups.end()) {
      plan.groups.push_back({*tasks[i].config, {}, {}, 0, 0});
      group = plan.groups.end() - 1;
    }
    group->tasks.push_back(i);
    group->most_tokens = std::max(group->most_tokens, static_cast<int>(tasks[i].tokens));
  }
  Planner planner(tasks, plan);
  for (PlanGroup& group : plan.groups) {
    planner.rounds(group);
    planner.whole_tasks(group);
  }
  return plan;
}

}  // namespace lola

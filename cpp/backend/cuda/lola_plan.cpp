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

int64_t places(size_t count) { return count == 0 ? 0 : static_cast<int64_t>(std::bit_ceil(count)); }

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
          slot_of(*task.config, window_begin(*task.config, position)),
          {},
          {}};
}

PairNumbers numbers_of(const PassTask& task, int64_t done) {
  const int64_t position = task.position + done, oldest = window_begin(*task.config, position);
  return {static_cast<int32_t>(counts_at(*task.config, position).cache),
          static_cast<int32_t>(task.position - oldest), slot_of(*task.config, oldest),
          static_cast<int32_t>(task.row), oldest};
}

DeviceBoundary boundary_of(const PassTask& task, int64_t seen, const PairNumbers& numbers) {
  const LolaConfig& config = *task.config;
  const int64_t last_boundary = seen - config.chunk_size;
  const int64_t first_leaving = window_begin(config, last_boundary);
  const MemoryCounts before = counts_at(config, last_boundary);
  return {task.memory,
          numbers,
          seen,
          before.absorbed,
          static_cast<int32_t>(before.cache),
          static_cast<int32_t>(window_begin(config, seen) - first_leaving),
          numbers.cached + static_cast<int32_t>(first_leaving - numbers.position),
          0,
          {},
          {}};
}

// Bytes of scratch memory that boundaries take.
struct Costs {
  int64_t pair = 0;   // features of one
  int64_t state = 0;  // one version of the hidden states

  explicit Costs(const LayerMemoryLayout& layout) {
    for (const MemorySection& section : layout.sections()) {
      if (section.name == "hidden_sum") pair = section.bytes;
      if (section.name.starts_with("hidden_") || section.name.starts_with("pending_")) {
        state += section.bytes;
      }
    }
  }
};

// The runs of one group.
class RunPlanner {
 public:
  RunPlanner(std::span<const PassTask> tasks, int64_t run_bytes, PlanGroup& group, PassPlan& plan)
      : tasks_(tasks),
        config_(group.config),
        costs_(*tasks[group.tasks.front()].layout),
        run_bytes_(run_bytes),
        group_(group),
        plan_(plan),
        done_(group.tasks.size(), 0) {}

  void plan() {
    while (begin_run()) {
      for (size_t i = 0; i < done_.size(); ++i) add_task(i);
      end_run();
    }
  }

 private:
  struct Chain {
    PairNumbers numbers;
    std::vector<DeviceBoundary> boundaries;
  };

  const PassTask& task(size_t i) const { return tasks_[group_.tasks[i]]; }

  bool begin_run() {
    chains_.clear();
    room_ = run_bytes_;
    run_ = {};
    run_.first_piece = static_cast<int64_t>(plan_.pieces.size());
    run_.first_chain = static_cast<int64_t>(plan_.chains.size());
    run_.attends_own = true;
    for (size_t i = 0; i < done_.size(); ++i) {
      if (done_[i] < task(i).tokens) return true;
    }
    return false;
  }

  // Pieces and boundaries of a task, as far as there is room.
  void add_task(size_t i) {
    Chain chain{numbers_of(task(i), done_[i]), {}};
    const int64_t chunk = config_.chunk_size;
    while (done_[i] < task(i).tokens) {
      const int64_t to_boundary = chunk - (task(i).position + done_[i]) % chunk;
      const int64_t tokens = std::min(task(i).tokens - done_[i], to_boundary);
      const DeviceBoundary next =
          boundary_of(task(i), task(i).position + done_[i] + tokens, chain.numbers);
      const bool passes = tokens == to_boundary && next.leaving > 0;
      if (passes && !take_room(chain.boundaries.empty())) break;
      add_piece(i, tokens, chain);
      if (passes) add_boundary(next, chain);
    }
    if (!chain.boundaries.empty()) chains_.push_back(std::move(chain));
  }

  bool take_room(bool first) {
    const int64_t pairs = config_.chunk_size + (first ? sparse_capacity(config_) : 0);
    const int64_t cost = pairs * costs_.pair + costs_.state;
    if (cost > room_ && run_.versions > 0) return false;
    room_ -= cost;
    return true;
  }

  void add_piece(size_t i, int64_t tokens, const Chain& chain) {
    DevicePiece piece = piece_of(task(i), done_[i], tokens);
    piece.numbers = chain.numbers;
    if (!chain.boundaries.empty()) {
      piece.version = chain.boundaries.back().to;
      run_.attends_own = false;
    }
    plan_.pieces.push_back(piece);
    run_.most_tokens = std::max(run_.most_tokens, static_cast<int>(tokens));
    done_[i] += tokens;
  }

  void add_boundary(DeviceBoundary boundary, Chain& chain) {
    if (!chain.boundaries.empty()) boundary.from = chain.boundaries.back().to;
    const auto version = static_cast<int32_t>(run_.versions++);
    boundary.to = {version, version};
    chain.boundaries.push_back(boundary);
  }

  int64_t most_pairs(size_t boundaries) const {
    return sparse_capacity(config_) + static_cast<int64_t>(boundaries) * config_.chunk_size;
  }

  void end_run() {
    run_.pieces = static_cast<int64_t>(plan_.pieces.size()) - run_.first_piece;
    run_.feature_rows = 0;
    size_t longest = 0;
    for (Chain& chain : chains_) {
      longest = std::max(longest, chain.boundaries.size());
      for (DeviceBoundary& boundary : chain.boundaries) {
        boundary.feature_row = static_cast<int32_t>(run_.feature_rows);
        if (run_.attends_own) boundary.to.state = kOwn;
      }
      run_.feature_rows += most_pairs(chain.boundaries.size());
      add_chain(chain);
    }
    run_.chains = places(chains_.size());
    plan_.chains.resize(static_cast<size_t>(run_.first_chain + run_.chains));
    for (size_t i = 0; i < longest; ++i) add_round(i);
    // As if the empty places were taken too.
    run_.most_pairs = most_pairs(longest);
    run_.feature_rows = std::max(run_.feature_rows, run_.chains * most_pairs(1));
    run_.versions = std::max(run_.versions, run_.chains);
    group_.runs.push_back(run_);
  }

  void add_chain(const Chain& chain) {
    const DeviceBoundary &first = chain.boundaries.front(), &last = chain.boundaries.back();
    const int64_t cached = counts_at(config_, last.seen).cache;
    plan_.chains.push_back({first.memory, chain.numbers, last.first + last.leaving,
                            first.feature_row, static_cast<int32_t>(cached), last.to});
  }

  void add_round(size_t i) {
    PlanRun::Round round{static_cast<int64_t>(plan_.boundaries.size()), 0};
    for (const Chain& chain : chains_) {
      if (i < chain.boundaries.size()) plan_.boundaries.push_back(chain.boundaries[i]);
    }
    const auto begin = static_cast<size_t>(round.first_boundary);
    round.boundaries = places(plan_.boundaries.size() - begin);
    plan_.boundaries.resize(begin + static_cast<size_t>(round.boundaries));
    run_.rounds.push_back(round);
  }

  std::span<const PassTask> tasks_;
  const LolaConfig& config_;
  const Costs costs_;
  const int64_t run_bytes_;
  PlanGroup& group_;
  PassPlan& plan_;
  std::vector<int64_t> done_;  // tokens, of each task
  PlanRun run_{};              // that is being planned
  std::vector<Chain> chains_;  // its
  int64_t room_ = 0;           // bytes that it has left
};

void add_whole_tasks(std::span<const PassTask> tasks, PlanGroup& group, PassPlan& plan) {
  group.first_whole = static_cast<int64_t>(plan.pieces.size());
  for (const size_t i : group.tasks) {
    plan.pieces.push_back(piece_of(tasks[i], 0, tasks[i].tokens));
    const int64_t last = tasks[i].position + tasks[i].tokens - 1;
    plan.pieces.back().absorbed = counts_at(group.config, last).absorbed;
  }
}

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
    for (const PlanRun& run : group.runs) {
      numbers.insert(numbers.end(), {run.pieces, run.most_tokens, run.chains, run.most_pairs,
                                     run.feature_rows, run.versions, run.attends_own});
      for (const PlanRun::Round& round : run.rounds) numbers.push_back(round.boundaries);
    }
  }
  return numbers;
}

PassPlan plan_pass(std::span<const PassTask> tasks, int64_t run_bytes) {
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
  for (PlanGroup& group : plan.groups) {
    if (tasks[group.tasks.front()].layout != nullptr) {
      RunPlanner(tasks, run_bytes, group, plan).plan();
    }
    add_whole_tasks(tasks, group, plan);
  }
  return plan;
}

}  // namespace lola

// What the attention kernels of a pass work on: its sessions cut into pieces at their chunk
// boundaries.
//
// Boundaries follow one another, but attention may wait: a pass is done in runs. Within a run each
// boundary leaves what it read as it was and writes the next version, then all pieces are attended
// at once, each with the version at its beginning.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"

namespace lola {

// How the exact pairs of a session are numbered in a run, and where they are: first those of the
// sparse cache as it is when the run begins, then all others, from the oldest in the window on.
struct PairNumbers {
  int32_t cached;      // pairs of the sparse cache
  int32_t ring_pairs;  // after them, pairs that entered before the pass; negative: they have left
  int32_t ring_slot;   // of the first of these
  int32_t pass_row;    // of the pair after these in the pass
  int64_t position;    // of the pair of number `cached`
};

constexpr int32_t kOwn = -1;  // a session's memory, as it is

// Which versions of the sparse caches and of the hidden states: places in scratch memory, or kOwn.
struct Version {
  int32_t cache = kOwn, state = kOwn;
};

// Tokens of one session of which none but the last may be at a boundary. Lies in device memory.
struct DevicePiece {
  uint8_t* memory;        // the session's
  uint8_t* const* pages;  // of its softmax layers
  int64_t position;       // of the first token
  int64_t window_begin;   // position of the oldest pair in the window
  int64_t absorbed;       // pairs in the hidden state
  int32_t cached;         // pairs in each sparse cache
  int32_t row;            // of the first token
  int32_t tokens;
  int32_t window_slot;  // of the oldest pair in the ring
  PairNumbers numbers;
  Version version;
};

// Memory null: a place left empty, so that passes of nearly the same shape have the same kernels.
struct DeviceBoundary {
  uint8_t* memory;
  PairNumbers numbers;
  int64_t seen;         // tokens so far
  int64_t absorbed;     // pairs in the hidden state before
  int32_t cached;       // pairs in each sparse cache before
  int32_t leaving;      // pairs
  int32_t first;        // number of the first of them
  int32_t feature_row;  // of the pair of number 0
  Version from, to;
};

// The boundaries of one session in a run. Memory null: as above.
struct DeviceChain {
  uint8_t* memory;
  PairNumbers numbers;
  int32_t pairs;        // numbers that are eligible at any of them
  int32_t feature_row;  // of the pair of number 0
  int32_t cached;       // pairs in each sparse cache after the last
  Version last;
};

struct PieceSpan {
  const DevicePiece* data;
  int count;
  int most_tokens;
};

struct BoundarySpan {
  const DeviceBoundary* data;
  int count;
};

struct ChainSpan {
  const DeviceChain* data;
  int count;
};

// Pieces, and the boundaries that they reach.
struct PlanRun {
  int64_t first_piece, pieces;
  int64_t first_chain, chains;
  struct Round {  // a boundary of each chain that is so long
    int64_t first_boundary, boundaries;
  };
  std::vector<Round> rounds;
  int64_t most_pairs;    // of a chain
  int64_t feature_rows;  // of all
  int64_t versions;      // that the boundaries write
  bool attends_own;      // no piece comes after a boundary: hidden states are changed in place
  int most_tokens;
};

// Sessions of a pass that are configured alike.
struct PlanGroup {
  LolaConfig config;
  std::vector<size_t> tasks;  // of the pass
  std::vector<PlanRun> runs;
  int64_t first_whole;  // pieces of whole tasks, one for each
  int most_tokens;
};

struct PassPlan {
  std::vector<PlanGroup> groups;
  std::vector<DevicePiece> pieces;
  std::vector<DeviceBoundary> boundaries;
  std::vector<DeviceChain> chains;

  // Numbers that are equal for passes which launch the same kernels.
  std::vector<int64_t> shape() const;
};

// Of boundaries there are one, two, four, ... in a row, some of them empty. run_bytes: of the
// scratch memory that the boundaries of a run may take, if there is more than one.
PassPlan plan_pass(std::span<const PassTask> tasks, int64_t run_bytes);

}  // namespace lola

// What the attention kernels of a pass work on: its sessions cut into pieces at their chunk
// boundaries. All pieces of a round are attended at once, then the boundaries they reach are
// passed.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"

namespace lola {

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
};

// Memory null: a place left empty, so that passes of nearly the same shape have the same kernels.
struct DeviceBoundary {
  uint8_t* memory;
  int64_t seen;           // tokens so far
  int64_t first_leaving;  // position
  int64_t absorbed;       // pairs in the hidden state before
  int32_t cached;
  int32_t leaving;
  int32_t first_slot;  // of the first leaving pair in the ring
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

// Sessions of a pass that are configured alike.
struct PlanGroup {
  LolaConfig config;
  std::vector<size_t> tasks;  // of the pass

  struct Round {
    int64_t first_piece, pieces;
    int64_t first_boundary, boundaries;
    int most_tokens;
  };
  std::vector<Round> rounds;
  int64_t first_whole;  // pieces of whole tasks, for softmax layers: one for each task
  int most_tokens;
};

struct PassPlan {
  std::vector<PlanGroup> groups;
  std::vector<DevicePiece> pieces;
  std::vector<DeviceBoundary> boundaries;

  // Numbers that are equal for passes which launch the same kernels.
  std::vector<int64_t> shape() const;
};

// Empty places after boundaries: one, two, four, ... stand in a row.
PassPlan plan_pass(std::span<const PassTask> tasks);

}  // namespace lola

// Looks into a session's memories: which pairs are held exactly, and how well the hidden state
// would recall each.
#pragma once

#include <cstdint>
#include <vector>

#include "models/session.h"

namespace lola {

// What one query head holds exactly: its sparse cache, then its window, each oldest first.
struct HeadPairs {
  std::vector<int64_t> position;  // [pairs]
  std::vector<float> error;       // [pairs] SRE(k, v | Hs, s), see score.h
  int64_t cached = 0;             // the first of them are in the sparse cache
};

// Of each query head of a layer. UsageError where the layer has softmax attention.
std::vector<HeadPairs> recall_errors(const Session& session, int64_t layer);

}  // namespace lola

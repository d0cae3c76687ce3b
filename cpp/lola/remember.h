// Where a pair goes when it leaves the sliding window: into the sparse cache, or into the hidden
// state for good.
#pragma once

#include <cstdint>

#include "lola/lola_layer.h"

namespace lola {

// A chunk boundary after `seen` tokens, a multiple of the chunk size. Pairs leave the window and
// compete with the sparse cache; the hardest to recall stay exact, and the others are absorbed.
void pass_boundary(const KvHead& head, int64_t seen);

}  // namespace lola

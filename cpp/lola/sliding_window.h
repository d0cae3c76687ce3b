// Memory 1 at work: pairs enter it, and are read from it as float32.
#pragma once

#include <cstdint>

#include "lola/lola_layer.h"

namespace lola {

// The pairs of new tokens enter, rounded to the session's PairType; everything later reads the
// rounded pairs. position: of the first token.
void append_to_window(const KvHead& head, const QkvRows& rows, int64_t tokens, int64_t position);

// keys and values [count, head_dim] of the positions from `position` on, which are in the window.
void load_window(const KvHead& head, int64_t position, int64_t count, float* keys, float* values);

}  // namespace lola

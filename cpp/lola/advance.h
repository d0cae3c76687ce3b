// One LoLA layer's attention over new tokens. The life of a pair starts here: it enters the sliding
// window (sliding_window.h), queries read the three memories (attend.h), and at a chunk boundary it
// leaves the window for the sparse cache or the hidden state (remember.h), by its score (score.h).
#pragma once

#include <cstdint>

#include "lola/lola_layer.h"

namespace lola {

// Advances the memories of kv head `kv_head` by `tokens` tokens, the first at `position`, and
// writes the outputs of its query heads: out [tokens, heads * head_dim], row stride out_stride. kv
// heads are independent of each other. memory: the layer's, layout.bytes(), zero before the first
// token, aligned to 8.
void advance_kv_head(const Kernels& kernels, const LolaLayer& layer, const LolaConfig& config,
                     const LayerMemoryLayout& layout, uint8_t* memory, int64_t kv_head,
                     const QkvRows& rows, int64_t tokens, int64_t position, float* out,
                     int64_t out_stride, LolaScratch& scratch);

}  // namespace lola

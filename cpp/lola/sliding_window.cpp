#include "lola/sliding_window.h"

#include <algorithm>

#include "lola/pair_rows.h"

namespace lola {

void append_to_window(const KvHead& head, const QkvRows& rows, int64_t tokens, int64_t position) {
  const SlidingWindow window = head.window();
  const int64_t d = head.head_dim();
  const PairType type = head.config.pair_type;
  for (int64_t token = 0; token < tokens; ++token) {
    const int64_t row = (position + token) % window.capacity * head.layout.row_bytes();
    store_pairs(head.kernels, type, rows.k + token * rows.k_stride + head.index * d, d,
                window.k + row);
    store_pairs(head.kernels, type, rows.v + token * rows.v_stride + head.index * d, d,
                window.v + row);
  }
}

void load_window(const KvHead& head, int64_t position, int64_t count, float* keys, float* values) {
  const SlidingWindow window = head.window();
  const int64_t d = head.head_dim();
  while (count > 0) {
    const int64_t slot = position % window.capacity;
    const int64_t run = std::min(count, window.capacity - slot);
    const int64_t offset = slot * head.layout.row_bytes();
    load_pairs(head.kernels, head.config.pair_type, window.k + offset, run * d, keys);
    load_pairs(head.kernels, head.config.pair_type, window.v + offset, run * d, values);
    position += run;
    count -= run;
    keys += run * d;
    values += run * d;
  }
}

}  // namespace lola

#include "lola/advance.h"

#include <algorithm>

#include "lola/attend.h"
#include "lola/exact_sums.h"
#include "lola/remember.h"
#include "lola/sliding_window.h"

namespace lola {

void advance_kv_head(const Kernels& kernels, const LolaLayer& layer, const LolaConfig& config,
                     const LayerMemoryLayout& layout, uint8_t* memory, int64_t kv_head,
                     const QkvRows& rows, int64_t tokens, int64_t position, float* out,
                     int64_t out_stride, LolaScratch& scratch) {
  const KvHead head{kernels, layer, config, layout, memory, kv_head, scratch};
  for (int64_t done = 0; done < tokens;) {
    const int64_t now = position + done;
    const int64_t to_boundary = config.chunk_size - now % config.chunk_size;
    const int64_t piece = std::min({tokens - done, to_boundary, kPieceTokens});
    const QkvRows piece_rows = rows.from(done);
    append_to_window(head, piece_rows, piece, now);
    attend(head, piece_rows.q, piece_rows.q_stride, piece, now, out + done * out_stride,
           out_stride);
    if (piece == to_boundary) pass_boundary(head, now + piece);
    done += piece;
  }
}

}  // namespace lola

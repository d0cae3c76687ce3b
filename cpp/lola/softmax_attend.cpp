#include "lola/softmax_attend.h"

#include <algorithm>
#include <cmath>

#include "lola/pair_rows.h"

namespace lola {

void append_to_cache(const SoftmaxHead& head, const QkvRows& rows, int64_t tokens,
                     int64_t position) {
  const int64_t d = head.shape.head_dim;
  const PairType type = head.layout.pair_type();
  for (int64_t token = 0; token < tokens; ++token) {
    const int64_t at = position + token;
    const KvHeadPage page = head.layout.head(head.pages.of(at), head.index);
    const int64_t row = at % kKvPageTokens * head.layout.row_bytes();
    store_pairs(head.kernels, type, rows.k + token * rows.k_stride + head.index * d, d,
                page.k + row);
    store_pairs(head.kernels, type, rows.v + token * rows.v_stride + head.index * d, d,
                page.v + row);
  }
}

void softmax_attend_range(const SoftmaxHead& head, const float* q, int64_t q_stride, int64_t tokens,
                          int64_t position, int64_t begin, int64_t end, const ExactSums& sums) {
  const int64_t d = head.shape.head_dim;
  const int64_t size = head.shape.group_size() * tokens * d;
  float* queries = head.scratch.queries.get(size);
  gather_queries(head.shape, head.index, q, q_stride, tokens, queries);
  head.kernels.scale(queries, size, 1.0f / std::sqrt(static_cast<float>(d)));
  const QueryBlock block{queries, head.shape.group_size(), tokens, d};
  const int64_t row_bytes = head.layout.row_bytes();
  while (begin < end) {
    const KvHeadPage page = head.layout.head(head.pages.of(begin), head.index);
    const int64_t first = begin % kKvPageTokens;
    const int64_t count = std::min(end - begin, kKvPageTokens - first);
    const PairRun run{head.layout.pair_type(),       page.k, page.v, row_bytes, kKvPageTokens,
                      position + 1 - (begin - first)};
    add_pairs(head.kernels, block, run.part(first, count), sums, head.scratch);
    begin += count;
  }
}

void softmax_attend(const SoftmaxHead& head, const float* q, int64_t q_stride, int64_t tokens,
                    int64_t position, float* out, int64_t out_stride) {
  const int64_t d = head.shape.head_dim;
  for (int64_t done = 0; done < tokens; done += kPieceTokens) {
    const int64_t piece = std::min(kPieceTokens, tokens - done);
    const int64_t rows = head.shape.group_size() * piece;
    const int64_t now = position + done;
    const ExactSums sums =
        start_exact_sums(head.scratch.exact.get(exact_sums_size(rows, d)), rows, d);
    softmax_attend_range(head, q + done * q_stride, q_stride, piece, now, 0, now + piece, sums);
    write_softmax(head.shape, head.index, piece, sums, out + done * out_stride, out_stride);
  }
}

}  // namespace lola

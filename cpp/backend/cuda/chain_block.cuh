// What a block of lola_chain.cu does, step by step.
#pragma once

#include "backend/cuda/chain_memory.cuh"
#include "backend/cuda/lola_boundary.cuh"
#include "backend/cuda/lola_choice.cuh"

namespace lola::chain {

constexpr int kScored = kThreads / 2;  // pairs at a time
constexpr int kRowLanes = 8;           // that load a pair

template <PairType type>
struct Block {
  using Element = typename Memory<type>::Element;
  static constexpr int kStride = Memory<type>::kStride;
  const LolaView& view;
  const RunScratch& scratch;
  const Memory<type> m;
  const int head, column;  // the first of the block's
  const Owner owner;
  const Lane lane;
  const int warp;

  __device__ Block(float* shared, const LolaView& lola, const RunScratch& run)
      : view(lola),
        scratch(run),
        m(shared, lola, run.most),
        head(blockIdx.y),
        column(blockIdx.x * kColumns),
        owner(lola, lola.owner_of(blockIdx.y)),
        warp(static_cast<int>(threadIdx.x) / 32) {}

  __device__ int slot_at(int place) const {
    return m.ring[place >= m.slots ? place - m.slots : place];
  }
  __device__ int owner_heads() const { return view.head_scope ? 1 : view.group; }
  __device__ int parts() const { return view.head_dim / kColumns; }
  // The words of a boundary for pair 0, of one head of the owner in one part of the columns.
  __device__ uint64_t* words(uint32_t tag, int own_head, int part) const {
    const int64_t first = owner.index * owner_heads() + own_head;
    return scratch.words + ((tag % 2 * view.heads + first) * parts() + part) * scratch.most;
  }

  // Whether a warp has a part of the state, which features and which of the block's columns.
  __device__ bool has_state() const { return first_feature() < m.features; }
  __device__ int first_feature() const { return warp % (kWarps / 2) * kWarpRows; }
  __device__ int first_column() const { return warp / (kWarps / 2) * kHalf; }

  __device__ OwnState load_state(const HiddenRows& from) const {
    OwnState own{};
    if (!has_state()) return own;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int j = first_feature() + lane.row + 8 * i;
      if (j >= view.features) continue;
      own.rows[i] = four_at(from.state + static_cast<int64_t>(j) * view.head_dim + column +
                            first_column() + lane.quarter * 4);
      own.sum[i] = from.sum[j];
    }
    show_state(own);
    return own;
  }

  // The warp's part becomes what the block reads.
  __device__ void show_state(const OwnState& own) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int j = first_feature() + lane.row + 8 * i;
      const float4 row = own.rows[i];
      auto* to = reinterpret_cast<float2*>(m.state + j / 2 * kStateStride + j % 2 * 2 +
                                           first_column() + lane.quarter * 4);
      to[0] = {row.x, row.y};
      to[kColumns / 2] = {row.z, row.w};
      if (first_column() == 0 && lane.quarter == 0) m.sum[j] = own.sum[i];
    }
  }

  // Pairs [number, number + count) are on their way to the free slots from `place` on, which are
  // noted in order.
  __device__ void load_pairs(const DeviceBoundary& boundary, int number, int count, int place,
                             int* order) const {
    constexpr int kUnit = 16 / sizeof(Element);
    const int own = static_cast<int>(threadIdx.x) % kRowLanes;
    const int stride = feature_stride(view.features);
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x) / kRowLanes; i < count; i += kThreads / kRowLanes) {
      const int slot = slot_at(place + i);
      const int64_t row = head * scratch.rows + boundary.feature_row + number + i;
      const float* features = scratch.key_features + row * stride;
#pragma unroll 4
      for (int c = own * 4; c < m.features; c += kRowLanes * 4) {
        copy_ahead(m.phi + slot * m.phi_stride + c, features + (c < stride ? c : 0), c < stride);
      }
      const uint8_t* value =
          numbered_row(view, scratch, boundary.memory, boundary.numbers, owner, number + i, true);
      if (own < kColumns / kUnit) {
        Element* at = m.v + slot * kStride + own * kUnit;
        const int c = column + own * kUnit;
        if constexpr (type == PairType::kQ8_0) {
          *reinterpret_cast<float4*>(at) = load_four<type>(value, c);
        } else {
          copy_ahead(at, value + c * sizeof(Element), true);
        }
      }
      if (own > 0) continue;
      copy_float_ahead(m.norms + slot, scratch.key_norms + row, true);
      m.numbers[slot] = number + i;
      order[i] = slot;
    }
  }

  // y = Hs'phi of a warp's 16 pairs: y[2 h + n][2 g + e] of column 4 row + 2 h + g and pair
  // 8 n + 2 quarter + e. Hs is the first factor: four of its numbers can lie side by side, as a
  // product takes them. sum = phi's of the pairs in these slots, the lane's: its row, and row + 8.
  __device__ void recall(const int slots[2], float y[4][4], float sum[2]) const {
    const float *a = m.phi + slots[0] * m.phi_stride + lane.quarter * 2,
                *b = m.phi + slots[1] * m.phi_stride + lane.quarter * 2,
                *columns = m.state + lane.quarter * kStateStride + lane.row * 4;
    sum[0] = sum[1] = 0.0f;
#pragma unroll 4
    for (int j = 0; j < m.features; j += 8) {
      const float2 phi[2] = {two_at(a + j), two_at(b + j)};
      const float2 s = two_at(m.sum + j + lane.quarter * 2);
      SplitRows state[2];
      Split pairs[2][2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float4 four = four_at(columns + j / 2 * kStateStride + i * kColumns);
        state[i] = split_rows(four.x, four.y, four.z, four.w);
        pairs[i][0] = split(phi[i].x), pairs[i][1] = split(phi[i].y);
        sum[i] += phi[i].x * s.x + phi[i].y * s.y;
      }
      // As add_products(): none waits for the one before.
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        mma_tf32(y[i], state[i / 2].low, pairs[i % 2][0].high, pairs[i % 2][1].high);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        mma_tf32(y[i], state[i / 2].high, pairs[i % 2][0].low, pairs[i % 2][1].low);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        mma_tf32(y[i], state[i / 2].high, pairs[i % 2][0].high, pairs[i % 2][1].high);
      }
    }
    over_row(sum, [](float p, float q) { return p + q; });
  }

  // The recall errors of the eligible pairs, in this block's columns, go to all blocks of the
  // owner.
  __device__ void post_errors(const int* order, int all, bool empty, uint32_t tag) const {
    uint64_t* to = words(tag, view.head_scope ? 0 : head % view.group, column / kColumns);
#pragma unroll 1
    for (int begin = warp * kWarpRows; begin < all; begin += kWarps * kWarpRows) {
      const int last = all - 1, row = begin + lane.row;
      const int slots[2] = {order[min(row, last)], order[min(row + 8, last)]};
      float y[4][4] = {}, sum[2] = {1.0f, 1.0f};
      if (!empty) recall(slots, y, sum);
      const float factors[2] = {1.0f / sum[0], 1.0f / sum[1]};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int n = i / 2, e = i % 2, pair = lane.quarter * 2 + e;  // + 8 n
        const float factor = __shfl_sync(~0u, factors[n], pair * 4);
        const int slot = __shfl_sync(~0u, slots[n], pair * 4);
        const float4 value = four_at(m.v + slot * kStride + lane.row * 4);
        const float difference[4] = {y[n][e] * factor - value.x, y[n][2 + e] * factor - value.y,
                                     y[2 + n][e] * factor - value.z,
                                     y[2 + n][2 + e] * factor - value.w};
        float square = 0.0f;
#pragma unroll
        for (const float x : difference) square += x * x;
#pragma unroll
        for (int lanes = 4; lanes < 32; lanes *= 2) {
          square += __shfl_xor_sync(~0u, square, lanes);
        }
        const int at = begin + 8 * n + pair;
        if (lane.row == 0 && at < all) post(to + at, square, tag);
      }
    }
  }

  // errors = those of pair i for two heads of the owner, once all blocks have posted them.
  __device__ void await_errors(int i, const int heads[2], uint32_t tag, float errors[2]) const {
    constexpr int kParts = 4;  // at a time
    errors[0] = errors[1] = 0.0f;
#pragma unroll 1
    for (int part = 0; part < parts(); part += kParts) {
      uint64_t word[2 * kParts];
      bool there;
      do {
        there = true;
#pragma unroll
        for (int n = 0; n < 2 * kParts; ++n) {
          word[n] = peek(words(tag, heads[n / kParts], min(part + n % kParts, parts() - 1)) + i);
        }
#pragma unroll
        for (int n = 0; n < 2 * kParts; ++n) there = there && has_come(word[n], tag);
      } while (!there);
#pragma unroll
      for (int n = 0; n < 2 * kParts; ++n) {
        if (part + n % kParts >= parts()) continue;
        errors[n / kParts] += number_in(word[n]);
      }
    }
  }

  // m.keys = the largest scores that the owner's heads give. Begins and ends with a barrier, before
  // which m.keys were reset.
  __device__ void rank_keys(const DeviceBoundary& boundary, const int* order, int all, int policy,
                            uint32_t tag) const {
    const int most = owner_heads() - 1, half = static_cast<int>(threadIdx.x) / kScored;
    __syncthreads();
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x) % kScored; i < all; i += kScored) {
      const int slot = order[i];
      const int64_t position =
          position_of(view, boundary.memory, boundary.numbers, owner.index, m.numbers[slot]);
#pragma unroll 1
      for (int h = half; h <= most; h += 4) {
        const int heads[2] = {h, min(h + 2, most)};
        float errors[2];
        await_errors(i, heads, tag, errors);
        float best = -INFINITY;
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const int64_t own = owner.index * owner_heads() + heads[n];
          const float score = score_of(policy, {.recall_error = errors[n],
                                                .key_norm2 = m.norms[slot],
                                                .kappa = view.kappa[own],
                                                .head_dim = view.head_dim,
                                                .position = position,
                                                .age = boundary.seen - position,
                                                .head = own,
                                                .seed = view.seed});
          if (score > best) best = score;  // never true of a NaN
        }
        atomicMax(m.keys + i, rank_key(best));
      }
    }
    __syncthreads();
  }

  // m.lost, and the free slots from `place` on, are those of the pairs that are lost, in order;
  // next has the others. Returns how many are lost.
  __device__ int choose(const DeviceBoundary& boundary, const int* order, int all, int place,
                        int* next) const {
    const int capacity = static_cast<int>(view.sparse_capacity);
    const bool compete = all > capacity;
    const bool writes = column == 0 && (view.head_scope || head % view.group == 0);
    const int64_t part = cache_part(view, boundary.to, owner.index);
    int all_lost = 0;
#pragma unroll 1
    for (int begin = 0; begin < all; begin += kScored) {
      const int i = begin + static_cast<int>(threadIdx.x) / 2;
      const bool speaks = threadIdx.x % 2 == 0 && i < all;  // of two threads with the same i
      const bool keeps = !compete || rank_of<2>(m.keys, all, min(i, all - 1)) < capacity;
      int total;
      const int lost = all_lost + count_before<kWarps>(speaks && !keeps, m.warps, total);
      all_lost += total;
      if (!speaks) continue;
      const int slot = order[i], at = place + lost;
      if (!keeps) {
        m.lost[lost] = m.ring[at >= m.slots ? at - m.slots : at] = slot;
        continue;
      }
      next[i - lost] = slot;
      if (!writes) continue;
      scratch.caches[part + i - lost] = m.numbers[slot];
      scratch.scores[part + i - lost] = compete ? score_of_key(m.keys[i]) : 0.0f;
    }
    return all_lost;
  }

  // The lost pairs enter a warp's part of the state.
  __device__ void absorb(int count, OwnState& own) const {
    float sums[2][4] = {}, total[2] = {};
#pragma unroll 2
    for (int p = 0; p < count; p += 8) {
      const int at = p + lane.quarter * 2;
      const bool one = at < count, two = at + 1 < count;
      const int slots[2] = {m.lost[min(at, count - 1)], m.lost[min(at + 1, count - 1)]};
      const float *a = m.phi + slots[0] * m.phi_stride + first_feature() + lane.row,
                  *b = m.phi + slots[1] * m.phi_stride + first_feature() + lane.row;
      const float phi[4] = {one ? a[0] : 0.0f, one ? a[8] : 0.0f, two ? b[0] : 0.0f,
                            two ? b[8] : 0.0f};
      const float2 x = two_at(m.v + slots[0] * kStride + first_column() + lane.row * 2),
                   y = two_at(m.v + slots[1] * kStride + first_column() + lane.row * 2);
      const float even[2] = {x.x, x.y}, odd[2] = {y.x, y.y};
      add_products<2, type == PairType::kF16>(sums, split_rows(phi[0], phi[1], phi[2], phi[3]),
                                              even, odd);
      total[0] += phi[0] + phi[2], total[1] += phi[1] + phi[3];
    }
    over_row(total, [](float p, float q) { return p + q; });
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      own.rows[i].x += sums[0][2 * i], own.rows[i].y += sums[1][2 * i];
      own.rows[i].z += sums[0][2 * i + 1], own.rows[i].w += sums[1][2 * i + 1];
      own.sum[i] += total[i];
    }
  }

  __device__ void store_state(const OwnState& own, const HiddenRows& to) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int j = first_feature() + lane.row + 8 * i;
      if (j >= view.features) continue;
      const int64_t at = static_cast<int64_t>(j) * view.head_dim + column + first_column();
      *reinterpret_cast<float4*>(const_cast<float*>(to.state) + at + lane.quarter * 4) =
          own.rows[i];
      if (column + first_column() + lane.quarter == 0) const_cast<float*>(to.sum)[j] = own.sum[i];
    }
  }
};

}  // namespace lola::chain

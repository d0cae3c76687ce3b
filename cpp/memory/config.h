// What a session is configured with, and the shape of the attention it serves.
#pragma once

#include <cstdint>

namespace lola {

struct CachePolicy;  // policies/policy_table.h

enum class PairType { kF32, kF16, kQ8_0 };             // how keys and values are stored
enum class Scope { kHead, kGroup };                    // who owns a sparse cache: a query head, or a kv head
enum class Mixing { kLolcats, kGated, kNatural };      // LOLA.md-style weights of the exact pairs against the linear term

struct AttentionShape {
  int64_t heads = 0;         // H, query heads
  int64_t kv_heads = 0;      // G
  int64_t head_dim = 0;      // d
  int64_t feature_size = 0;  // F, size of phi(x); 0 for softmax layers

  int64_t group_size() const { return heads / kv_heads; }
};

struct LolaConfig {
  int64_t window_size = 64;  // eta, a multiple of chunk_size, or any number >= 1 when chunk_size is 1
  int64_t chunk_size = 64;   // C
  int64_t sparse_size = 64;  // lambda, pairs per owner; 0: no sparse cache
  Scope scope = Scope::kHead;
  const CachePolicy* policy = nullptr;
  Mixing mixing = Mixing::kGated;
  bool affine = false;
  PairType pair_type = PairType::kF16;
  uint64_t seed = 0;  // of the policy `random`
};

}  // namespace lola

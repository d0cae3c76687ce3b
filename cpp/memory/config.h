// What a session is configured with, and the shape of the attention it serves.
#pragma once

#include <cstdint>
#include <string_view>

namespace lola {

struct CachePolicy;  // policies/policy_table.h

enum class PairType { kF32, kF16, kQ8_0 };  // how keys and values are stored
enum class Scope { kHead, kGroup };         // who owns a sparse cache: a query head, or a kv head
enum class Mixing {
  kLolcats,
  kGated,
  kNatural
};  // weights of the exact pairs against the linear term

struct AttentionShape {
  int64_t heads = 0;         // H, query heads
  int64_t kv_heads = 0;      // G
  int64_t head_dim = 0;      // d
  int64_t feature_size = 0;  // F, size of phi(x); 0 for softmax layers

  int64_t group_size() const { return heads / kv_heads; }
};

struct LolaConfig {
  int64_t window_size =
      64;  // eta, a multiple of chunk_size, or any number >= 1 when chunk_size is 1
  int64_t chunk_size = 64;   // C
  int64_t sparse_size = 64;  // lambda, pairs per owner; 0: no sparse cache
  Scope scope = Scope::kHead;
  const CachePolicy* policy = nullptr;
  Mixing mixing = Mixing::kGated;
  bool affine = false;
  PairType pair_type = PairType::kF16;
  uint64_t seed = 0;  // of the policy `random`
};

// Throws UsageError, saying what was found and wanted.
void validate(const LolaConfig& config, const AttentionShape& shape);

// Heads and sizes of one attention layer, whatever its kind; feature_size is checked by the LoLA
// layers only.
void validate(const AttentionShape& shape, PairType pair_type);

// lambda as it takes effect: 0 under the policy `none`.
int64_t sparse_capacity(const LolaConfig& config);

// Bytes of one stored key or value.
int64_t pair_row_bytes(PairType type, int64_t head_dim);

// The names that files and the Python interface use; the find functions throw UsageError, listing
// the names.
const char* name_of(PairType type);
const char* name_of(Scope scope);
const char* name_of(Mixing mixing);
PairType find_pair_type(std::string_view name);
Scope find_scope(std::string_view name);
Mixing find_mixing(std::string_view name);

}  // namespace lola

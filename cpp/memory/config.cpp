#include "memory/config.h"

#include <iterator>
#include <string>

#include "base/error.h"
#include "base/text.h"
#include "memory/policies/policy_table.h"

namespace lola {
namespace {

// Far above anything useful, and low enough that no product of two of them overflows.
constexpr int64_t kMaxPairs = int64_t{1} << 24;
constexpr int64_t kMaxHeads = int64_t{1} << 16;
constexpr int64_t kMaxHeadDim = int64_t{1} << 16;
constexpr int64_t kMaxFeatureSize = int64_t{1} << 17;
constexpr int64_t kQ8BlockSize = 32;
constexpr int64_t kQ8BlockBytes = 34;

// In the order of the enumerators.
constexpr const char* kPairTypes[] = {"f32", "f16", "q8_0"};
constexpr const char* kScopes[] = {"head", "group"};
constexpr const char* kMixings[] = {"lolcats", "gated", "natural"};

void check_range(const char* what, int64_t found, int64_t least, int64_t most) {
  if (found < least || found > most) {
    throw UsageError(message(what, ": found ", found, ", wanted ", least, " to ", most));
  }
}

template <typename Enum, size_t kCount>
Enum find_name(const char* what, const char* const (&names)[kCount], std::string_view name) {
  std::string wanted;
  for (size_t i = 0; i < kCount; ++i) {
    if (name == names[i]) return static_cast<Enum>(i);
    wanted += (i == 0 ? "" : ", ") + std::string(names[i]);
  }
  throw UsageError(message(what, ": found ", quote(name), ", wanted one of ", wanted));
}

}  // namespace

void validate(const AttentionShape& shape, PairType pair_type) {
  check_range("heads", shape.heads, 1, kMaxHeads);
  check_range("kv_heads", shape.kv_heads, 1, shape.heads);
  check_range("head_dim", shape.head_dim, 1, kMaxHeadDim);
  if (shape.heads % shape.kv_heads != 0) {
    throw UsageError(
        message("heads: found ", shape.heads, ", wanted a multiple of kv_heads, ", shape.kv_heads));
  }
  if (pair_type == PairType::kQ8_0 && shape.head_dim % kQ8BlockSize != 0) {
    throw UsageError(message("pair_type q8_0: found head_dim ", shape.head_dim,
                             ", wanted a multiple of ", kQ8BlockSize));
  }
}

void validate(const LolaConfig& config, const AttentionShape& shape) {
  validate(shape, config.pair_type);
  check_range("feature_size", shape.feature_size, 1, kMaxFeatureSize);
  check_range("window_size", config.window_size, 1, kMaxPairs);
  check_range("chunk_size", config.chunk_size, 1, kMaxPairs);
  check_range("sparse_size", config.sparse_size, 0, kMaxPairs);
  if (config.window_size % config.chunk_size != 0) {
    throw UsageError(message("window_size: found ", config.window_size,
                             ", wanted a multiple of chunk_size, ", config.chunk_size));
  }
  if (config.policy == nullptr)
    throw UsageError("policy: found none set, wanted a row of the policy table");
}

int64_t sparse_capacity(const LolaConfig& config) {
  return config.policy->score != nullptr ? config.sparse_size : 0;
}

int64_t pair_row_bytes(PairType type, int64_t head_dim) {
  switch (type) {
    case PairType::kF32:
      return head_dim * 4;
    case PairType::kF16:
      return head_dim * 2;
    case PairType::kQ8_0:
      break;
  }
  return head_dim / kQ8BlockSize * kQ8BlockBytes;
}

const char* name_of(PairType type) { return kPairTypes[static_cast<int>(type)]; }
const char* name_of(Scope scope) { return kScopes[static_cast<int>(scope)]; }
const char* name_of(Mixing mixing) { return kMixings[static_cast<int>(mixing)]; }

PairType find_pair_type(std::string_view name) {
  return find_name<PairType>("pair_type", kPairTypes, name);
}
Scope find_scope(std::string_view name) { return find_name<Scope>("scope", kScopes, name); }
Mixing find_mixing(std::string_view name) { return find_name<Mixing>("mixing", kMixings, name); }

}  // namespace lola

// The numbers that a GGUF file's metadata gives about its model, checked.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "gguf/gguf_reader.h"
#include "models/architectures.h"

namespace lola {

enum class RopeScaling { kNone, kLinear, kYarn };

struct RopeParameters {
  int64_t dimensions = 0;  // the first values of a head that are rotated
  double base = 10000.0;
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1.0;                    // context extension, linear and yarn
  double original_context = 0.0;          // yarn
  double attention_factor = 1.0;          // yarn: multiplies cosine and sine
  double beta_fast = 32.0;                // yarn
  double beta_slow = 1.0;                 // yarn
  std::vector<float> frequency_divisors;  // rope_freqs.weight [dimensions / 2], or empty
};

struct Hyperparameters {
  const Architecture* architecture = nullptr;
  std::string key_prefix;  // of the file's keys: "llama." or "lola-llama."
  std::string name;        // general.name, may be empty
  int64_t layers = 0;
  int64_t dim = 0;  // width of the residual stream
  int64_t ffn_dim = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t vocabulary = 0;
  int64_t training_context = 0;
  float norm_eps = 0.0f;
  RopeParameters rope;
};

// FormatError where a number is missing, absurd or contradicts another; UnsupportedError for what
// is not implemented.
Hyperparameters read_hyperparameters(const GgufFile& file);

}  // namespace lola

// The table of architectures: how each differs from the one decoder they all are.
#pragma once

#include <string_view>

#include "backend/backend.h"
#include "gguf/gguf_reader.h"

namespace lola {

struct Architecture {
  const char* name;  // value of general.architecture, and prefix of its keys
  RopeLayout rope_layout;
  bool qkv_bias;  // q, k and v have biases
  bool qk_norm;   // q and k heads are RMS-normed before RoPE
};

// By general.architecture; "lola-llama" (the one-file form) is found as "llama". UnsupportedError
// lists the names.
const Architecture& find_architecture(const GgufFile& file);

// Prefix of the one-file form's architecture name.
inline constexpr std::string_view kOneFilePrefix = "lola-";

}  // namespace lola

// The weights of a decoder, found in a GGUF file by name and checked against its hyperparameters.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "gguf/gguf_reader.h"
#include "models/hyperparameters.h"
#include "models/stages.h"

namespace lola {

// y = x W' + bias + (x A') B'. The low-rank part is an adapter's; its scale is folded into B.
struct Linear {
  WeightMatrix weight;  // [out, in]
  Buffer bias;          // [out], or empty
  WeightMatrix lora_a;  // [rank, in], rows = 0 without an adapter
  WeightMatrix lora_b;  // [out, rank]
};

struct DecoderLayer {
  Buffer attention_norm;  // [dim]
  Linear q;               // [heads * head_dim, dim]
  Linear k, v;            // [kv_heads * head_dim, dim]
  Buffer q_norm, k_norm;  // [head_dim], or empty
  Linear output;          // [dim, heads * head_dim]
  Buffer ffn_norm;        // [dim]
  Linear gate, up;        // [ffn_dim, dim]
  Linear down;            // [dim, ffn_dim]
};

struct Weights {
  WeightMatrix token_embedding;  // [vocabulary, dim]
  std::vector<DecoderLayer> layers;
  Buffer output_norm;   // [dim]
  WeightMatrix output;  // [vocabulary, dim]; the embedding where the file has none (tied)
};

// Called with the bytes of the file that are loaded; what it throws ends the loading.
using LoadProgress = std::function<void(int64_t done)>;

// FormatError naming the tensor where one is missing or has another shape. progress: or empty.
Weights load_weights(const GgufFile& file, const Hyperparameters& h, const Stages& stages,
                     const LoadProgress& progress);

// A tensor of any format as float32. shape is what the tensor must have, slowest dimension first.
std::vector<float> read_floats(const GgufFile& file, const std::string& name,
                               const std::vector<int64_t>& shape);

// The values in backend memory; `what` names them where there is no room.
Buffer to_backend(Backend& backend, const std::vector<float>& values, const std::string& what);

// Tensor `name` checked to have `shape`.
const GgufTensor& checked_tensor(const GgufFile& file, const std::string& name,
                                 const std::vector<int64_t>& shape);

// "blk.<layer>.<suffix>"
std::string layer_tensor(int64_t layer, const std::string& suffix);

}  // namespace lola

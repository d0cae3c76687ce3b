// The LoLA adapter: feature maps, gates, defaults and LoRA, from a file of its own or from inside a
// one-file model.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "backend/backend.h"
#include "gguf/gguf_reader.h"
#include "models/hyperparameters.h"
#include "models/weights.h"

namespace lola {

// The attention of one layer: its LoLA parameters with the memory they live in, or nothing for
// softmax attention.
struct AttentionLayer {
  std::optional<LolaLayer> lola;
  Buffer query_map, key_map;  // [heads, feature_dim, head_dim]
  Buffer gate;                // [heads], after the sigmoid
  Buffer kappa;               // [heads]
};

struct Attention {
  std::vector<AttentionLayer> layers;
  LolaConfig defaults;
  bool has_lola = false;
};

// Whether a model file is of the one-file form, architecture lola-<base>, with the adapter inside.
bool is_one_file(const GgufFile& file);

// Every layer softmax: a plain GGUF file.
Attention plain_attention(const Hyperparameters& h);

// `file` holds the adapter's keys and tensors (adapter.type = lola, or a one-file model).
// FormatError where it is not one, does not fit the base, or holds numbers that are not finite.
Attention load_attention(const GgufFile& file, const Hyperparameters& h, const Stages& stages);

// Adds the adapter's LoRA tensors, if any, to the weights they are for.
void apply_lora(const GgufFile& file, const Hyperparameters& h, const Stages& stages,
                Weights& weights);

}  // namespace lola

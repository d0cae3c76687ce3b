#include "models/adapter.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <unordered_set>

#include "base/error.h"
#include "base/text.h"
#include "lola/feature_map.h"
#include "memory/policies/policy_table.h"

namespace lola {
namespace {

constexpr int64_t kMaxFeatureDim = 4096;
constexpr int64_t kMaxPairs = int64_t{1} << 24;
constexpr int64_t kMaxRank = 4096;

[[noreturn]] void wrong(const GgufFile& file, const std::string& where, const std::string& found,
                        const std::string& wanted) {
  throw FormatError(message(file.path(), ": ", where, ": found ", found, ", wanted ", wanted));
}

std::vector<float> finite_floats(const GgufFile& file, const std::string& name,
                                 const std::vector<int64_t>& shape) {
  std::vector<float> values = read_floats(file, name, shape);
  const auto bad =
      std::find_if(values.begin(), values.end(), [](float x) { return !std::isfinite(x); });
  if (bad != values.end()) {
    wrong(file, "tensor '" + name + "' element " + std::to_string(bad - values.begin()),
          std::to_string(*bad), "finite numbers");
  }
  return values;
}

// One adapter fits every quantization of its base, and nothing else.
void check_base(const GgufFile& file, const Hyperparameters& h) {
  const std::string base = "adapter.lola.base.";
  const auto check = [&](const std::string& key, int64_t wanted) {
    const auto found = file.find_int(base + key, 0, INT64_MAX);
    if (found && *found != wanted) {
      wrong(file, base + key, std::to_string(*found),
            std::to_string(wanted) + ", as the model has");
    }
  };
  if (&find_architecture(file) != h.architecture) {
    wrong(file, "general.architecture", quote(file.get_string("general.architecture")),
          std::string("'") + h.architecture->name + "', as the model has");
  }
  check("block_count", h.layers);
  check("head_count", h.heads);
  check("head_count_kv", h.kv_heads);
  check("key_length", h.head_dim);
  check("vocab_size", h.vocabulary);
  const auto rope_base = file.find_float(base + "rope_freq_base");
  if (rope_base && std::abs(*rope_base - h.rope.base) > 1e-6 * h.rope.base) {
    wrong(file, base + "rope_freq_base", std::to_string(*rope_base),
          std::to_string(h.rope.base) + ", as the model has");
  }
}

// The choice that the string at `key` names; `find` throws UsageError where it names none.
template <typename Find>
auto read_choice(const GgufFile& file, const std::string& key, const char* fallback,
                 const Find& find) {
  try {
    return find(file.find_string(key).value_or(fallback));
  } catch (const UsageError& error) {
    throw FormatError(message(file.path(), ": ", key, ": ", error.what()));
  }
}

LolaConfig read_defaults(const GgufFile& file) {
  LolaConfig config;
  config.window_size = file.find_int("adapter.lola.window_size", 1, kMaxPairs).value_or(64);
  config.chunk_size =
      file.find_int("adapter.lola.chunk_size", 1, kMaxPairs).value_or(config.window_size);
  config.sparse_size = file.find_int("adapter.lola.sparse_size", 0, kMaxPairs).value_or(0);
  config.scope = read_choice(file, "adapter.lola.sparse_scope", "head", find_scope);
  config.policy = read_choice(file, "adapter.lola.policy", "self_recall",
                              [](const std::string& name) { return &find_policy(name); });
  config.mixing = read_choice(file, "adapter.lola.mixing", "gated", find_mixing);
  config.affine = file.find_bool("adapter.lola.affine").value_or(false);
  return config;
}

// An adapter's tensors are all used: one that is not was meant for another model, or is damaged.
void check_names(const GgufFile& file, const Hyperparameters& h) {
  constexpr const char* kParts[] = {"attn_q",   "attn_k", "attn_v",  "attn_output",
                                    "ffn_gate", "ffn_up", "ffn_down"};
  constexpr const char* kLolaTensors[] = {"attn_lola_fq.weight", "attn_lola_fk.weight",
                                          "attn_lola_window.weight", "attn_lola_kappa.weight"};
  std::unordered_set<std::string> known;
  for (int64_t i = 0; i < h.layers; ++i) {
    for (const char* name : kLolaTensors) known.insert(layer_tensor(i, name));
    for (const char* part : kParts) {
      known.insert(layer_tensor(i, part) + ".weight.lora_a");
      known.insert(layer_tensor(i, part) + ".weight.lora_b");
    }
  }
  for (const GgufTensor& tensor : file.tensors()) {
    if (!known.contains(tensor.name)) {
      wrong(file, "tensor " + quote(tensor.name), "a name no layer of the model has",
            "feature maps, gates, kappa and LoRA of layers 0 to " + std::to_string(h.layers - 1));
    }
  }
}

FeatureMap read_feature_map(const GgufFile& file, const Hyperparameters& h) {
  FeatureMap map;
  file.get_string("adapter.lola.feature_map");
  map.kind = read_choice(file, "adapter.lola.feature_map", "", find_feature_map);
  map.map_size = file.get_int("adapter.lola.feature_dim", 1, kMaxFeatureDim);
  map.skip = file.find_bool("adapter.lola.skip_connection").value_or(false);
  if (map.skip && map.map_size != h.head_dim) {
    wrong(file, "adapter.lola.feature_dim", std::to_string(map.map_size),
          std::to_string(h.head_dim) + ", the head dim, for the skip connection");
  }
  return map;
}

std::vector<float> read_kappa(const GgufFile& file, int64_t layer, int64_t heads) {
  const std::string name = layer_tensor(layer, "attn_lola_kappa.weight");
  if (file.find_tensor(name) != nullptr) return finite_floats(file, name, {heads});
  const double kappa = file.find_float("adapter.lola.kappa").value_or(0.0);
  return std::vector<float>(static_cast<size_t>(heads), static_cast<float>(kappa));
}

AttentionLayer read_layer(const GgufFile& file, const Hyperparameters& h, const FeatureMap& map,
                          int64_t i, Backend& backend) {
  const std::vector<int64_t> map_shape = {h.heads, map.map_size, h.head_dim};
  const auto load = [&](const std::string& suffix, const std::vector<int64_t>& shape) {
    const std::string name = layer_tensor(i, suffix);
    return to_backend(backend, finite_floats(file, name, shape), "tensor '" + name + "'");
  };
  std::vector<float> gate =
      finite_floats(file, layer_tensor(i, "attn_lola_window.weight"), {h.heads});
  for (float& g : gate) g = 1.0f / (1.0f + std::exp(-g));

  AttentionLayer layer;
  layer.query_map = load("attn_lola_fq.weight", map_shape);
  layer.key_map = load("attn_lola_fk.weight", map_shape);
  layer.gate = to_backend(backend, gate, "gates");
  layer.kappa = to_backend(backend, read_kappa(file, i, h.heads), "kappa");
  layer.lola = LolaLayer{{h.heads, h.kv_heads, h.head_dim, feature_size(map)},
                         map,
                         layer.query_map.as<const float>(),
                         layer.key_map.as<const float>(),
                         layer.gate.as<const float>(),
                         layer.kappa.as<const float>()};
  return layer;
}

// The scale alpha / rank is folded into B, and both matrices become float32: they are small.
void add_lora(const GgufFile& file, const std::string& name, double alpha, Backend& backend,
              Linear& linear) {
  const std::string a_name = name + ".lora_a";
  const std::string b_name = name + ".lora_b";
  const GgufTensor* a = file.find_tensor(a_name);
  if (a == nullptr && file.find_tensor(b_name) == nullptr) return;
  const int64_t rank = file.tensor(a_name).shape[0];
  if (rank < 1 || rank > kMaxRank) {
    wrong(file, "tensor '" + a_name + "'", "rank " + std::to_string(rank),
          "1 to " + std::to_string(kMaxRank));
  }
  const std::vector<float> down = finite_floats(file, a_name, {rank, linear.weight.cols});
  std::vector<float> up = finite_floats(file, b_name, {linear.weight.rows, rank});
  const float scale = static_cast<float>(alpha / static_cast<double>(rank));
  for (float& x : up) x *= scale;
  const auto load = [&](const std::vector<float>& values, int64_t rows, int64_t cols) {
    return backend.load({&quant_format(QuantType::kF32),
                         reinterpret_cast<const uint8_t*>(values.data()), rows, cols},
                        WeightUse::kProducts);
  };
  linear.lora_a = load(down, rank, linear.weight.cols);
  linear.lora_b = load(up, linear.weight.rows, rank);
}

}  // namespace

bool is_one_file(const GgufFile& file) {
  return file.get_string("general.architecture").starts_with(kOneFilePrefix);
}

Attention plain_attention(const Hyperparameters& h) {
  Attention attention;
  attention.layers.resize(static_cast<size_t>(h.layers));
  attention.defaults.policy = &find_policy("none");
  return attention;
}

Attention load_attention(const GgufFile& file, const Hyperparameters& h, const Stages& stages) {
  file.get_int("adapter.lola.version", 1, 1);
  check_base(file, h);
  if (!is_one_file(file)) check_names(file, h);
  Attention attention = plain_attention(h);
  attention.has_lola = true;
  attention.defaults = read_defaults(file);
  const FeatureMap map = read_feature_map(file, h);
  const auto softmax_layers = file.find_int_array("adapter.lola.softmax_layers", 0, h.layers - 1)
                                  .value_or(std::vector<int64_t>());
  for (int64_t i = 0; i < h.layers; ++i) {
    if (std::count(softmax_layers.begin(), softmax_layers.end(), i) > 0) continue;
    attention.layers[static_cast<size_t>(i)] = read_layer(file, h, map, i, stages.backend_of(i));
  }
  try {
    validate(attention.defaults, {h.heads, h.kv_heads, h.head_dim, feature_size(map)});
  } catch (const UsageError& error) {
    throw FormatError(message(file.path(), ": ", error.what()));
  }
  return attention;
}

void apply_lora(const GgufFile& file, const Hyperparameters& h, const Stages& stages,
                Weights& weights) {
  const bool any =
      std::any_of(file.tensors().begin(), file.tensors().end(), [](const GgufTensor& t) {
        return t.name.ends_with(".lora_a") || t.name.ends_with(".lora_b");
      });
  if (!any) return;
  const double alpha = file.get_float("adapter.lora.alpha");
  for (int64_t i = 0; i < h.layers; ++i) {
    DecoderLayer& layer = weights.layers[static_cast<size_t>(i)];
    const auto add = [&](const char* part, Linear& linear) {
      add_lora(file, layer_tensor(i, part), alpha, stages.backend_of(i), linear);
    };
    add("attn_q.weight", layer.q);
    add("attn_k.weight", layer.k);
    add("attn_v.weight", layer.v);
    add("attn_output.weight", layer.output);
    add("ffn_gate.weight", layer.gate);
    add("ffn_up.weight", layer.up);
    add("ffn_down.weight", layer.down);
  }
}

}  // namespace lola

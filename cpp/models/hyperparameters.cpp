#include "models/hyperparameters.h"

#include <cmath>

#include "base/error.h"
#include "base/text.h"

namespace lola {
namespace {

// Bounds that no real model reaches and that keep every product of sizes far from overflow.
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxHeads = 4096;
constexpr int64_t kMaxHeadDim = 4096;
constexpr int64_t kMaxWidth = int64_t{1} << 20;
constexpr int64_t kMaxVocabulary = int64_t{1} << 24;
constexpr int64_t kMaxContext = int64_t{1} << 40;

double positive(const GgufFile& file, const std::string& key, double fallback) {
  const double value = file.find_float(key).value_or(fallback);
  if (!(value > 0.0)) {
    throw FormatError(message(file.path(), ": ", key, ": found ", value, ", wanted more than 0"));
  }
  return value;
}

void read_rope_scaling(const GgufFile& file, const std::string& prefix, RopeParameters& rope) {
  const std::string type = file.find_string(prefix + "rope.scaling.type").value_or("none");
  if (type == "none") {
    // Files of 2023 had the linear factor alone, under another name.
    if (file.find(prefix + "rope.scale_linear") == nullptr) return;
    rope.scaling = RopeScaling::kLinear;
    rope.factor = positive(file, prefix + "rope.scale_linear", 1.0);
    return;
  }
  rope.factor = positive(file, prefix + "rope.scaling.factor", 1.0);
  if (type == "linear") {
    rope.scaling = RopeScaling::kLinear;
  } else if (type == "yarn") {
    rope.scaling = RopeScaling::kYarn;
    rope.original_context = static_cast<double>(
        file.get_int(prefix + "rope.scaling.original_context_length", 1, kMaxContext));
    rope.beta_fast = positive(file, prefix + "rope.scaling.yarn_beta_fast", 32.0);
    rope.beta_slow = positive(file, prefix + "rope.scaling.yarn_beta_slow", 1.0);
    const double by_paper = 0.1 * std::log(rope.factor) + 1.0;  // YaRN, arXiv 2309.00071, eq. 22
    rope.attention_factor = positive(file, prefix + "rope.scaling.attn_factor", 1.0) * by_paper;
  } else {
    throw UnsupportedError(message(file.path(), ": ", prefix, "rope.scaling.type: found ",
                                   quote(type), ", supported: none, linear, yarn"));
  }
}

RopeParameters read_rope(const GgufFile& file, const std::string& prefix, int64_t head_dim) {
  RopeParameters rope;
  rope.dimensions = file.find_int(prefix + "rope.dimension_count", 2, head_dim).value_or(head_dim);
  if (rope.dimensions % 2 != 0) {
    throw FormatError(message(file.path(), ": ", prefix, "rope.dimension_count: found ",
                              rope.dimensions, ", wanted an even number"));
  }
  rope.base = positive(file, prefix + "rope.freq_base", 10000.0);
  read_rope_scaling(file, prefix, rope);
  const GgufTensor* divisors = file.find_tensor("rope_freqs.weight");
  if (divisors == nullptr) return rope;
  if (divisors->format->type != QuantType::kF32 || divisors->shape.size() != 1 ||
      divisors->shape[0] != rope.dimensions / 2) {
    throw FormatError(message(file.path(), ": tensor 'rope_freqs.weight': wanted ",
                              rope.dimensions / 2, " numbers of type F32"));
  }
  rope.frequency_divisors.resize(static_cast<size_t>(rope.dimensions / 2));
  divisors->format->decode(divisors->data, rope.dimensions / 2, rope.frequency_divisors.data());
  for (float divisor : rope.frequency_divisors) {
    if (!(divisor > 0.0f) || !std::isfinite(divisor)) {
      throw FormatError(message(file.path(), ": tensor 'rope_freqs.weight': found ", divisor,
                                ", wanted finite numbers above 0"));
    }
  }
  return rope;
}

int64_t read_vocabulary(const GgufFile& file) {
  const GgufTensor& embedding = file.tensor("token_embd.weight");
  if (embedding.shape.size() != 2 || embedding.shape[0] > kMaxVocabulary) {
    throw FormatError(message(file.path(), ": tensor 'token_embd.weight': wanted [vocabulary <= ",
                              kMaxVocabulary, ", dim]"));
  }
  const auto tokens = file.find_string_array("tokenizer.ggml.tokens");
  if (tokens && static_cast<int64_t>(tokens->size()) != embedding.shape[0]) {
    throw FormatError(message(file.path(), ": tokenizer.ggml.tokens: found ", tokens->size(),
                              " tokens, wanted ", embedding.shape[0],
                              ", the rows of tensor 'token_embd.weight'"));
  }
  return embedding.shape[0];
}

// Per-layer arrays of head counts (OpenELM, some pruned models) are not the decoder implemented
// here.
int64_t read_count(const GgufFile& file, const std::string& key, int64_t max) {
  const GgufValue* value = file.find(key);
  if (value != nullptr && value->type == GgufType::kArray) {
    throw UnsupportedError(
        message(file.path(), ": ", key, ": found one number per layer, supported: one for all"));
  }
  return file.get_int(key, 1, max);
}

}  // namespace

Hyperparameters read_hyperparameters(const GgufFile& file) {
  Hyperparameters h;
  h.architecture = &find_architecture(file);
  h.key_prefix = file.get_string("general.architecture") + ".";
  const std::string& prefix = h.key_prefix;
  h.name = escaped(file.find_string("general.name").value_or(""));
  if (file.find_int(prefix + "expert_count", 0, kMaxWidth).value_or(0) > 0) {
    throw UnsupportedError(message(file.path(), ": ", prefix,
                                   "expert_count: mixtures of experts are not implemented"));
  }
  h.layers = file.get_int(prefix + "block_count", 1, kMaxLayers);
  h.dim = file.get_int(prefix + "embedding_length", 1, kMaxWidth);
  h.ffn_dim = read_count(file, prefix + "feed_forward_length", kMaxWidth);
  h.heads = read_count(file, prefix + "attention.head_count", kMaxHeads);
  const std::string kv_key = prefix + "attention.head_count_kv";
  h.kv_heads = file.find(kv_key) == nullptr ? h.heads : read_count(file, kv_key, kMaxHeads);
  if (h.heads % h.kv_heads != 0) {
    throw FormatError(message(file.path(), ": ", kv_key, ": found ", h.kv_heads,
                              ", wanted a divisor of the ", h.heads, " query heads"));
  }
  const auto key_length = file.find_int(prefix + "attention.key_length", 2, kMaxHeadDim);
  if (!key_length && (h.dim % h.heads != 0 || h.dim / h.heads < 2)) {
    throw FormatError(message(file.path(), ": ", prefix, "embedding_length: found ", h.dim,
                              ", wanted a multiple of the ", h.heads, " heads"));
  }
  h.head_dim = key_length.value_or(h.dim / h.heads);
  const int64_t value_length =
      file.find_int(prefix + "attention.value_length", 1, kMaxHeadDim).value_or(h.head_dim);
  if (value_length != h.head_dim) {
    throw UnsupportedError(message(file.path(), ": ", prefix, "attention.value_length: found ",
                                   value_length, ", supported: the key length, ", h.head_dim));
  }
  h.norm_eps = static_cast<float>(file.get_float(prefix + "attention.layer_norm_rms_epsilon"));
  if (!(h.norm_eps >= 0.0f) || !std::isfinite(h.norm_eps)) {
    throw FormatError(message(file.path(), ": ", prefix, "attention.layer_norm_rms_epsilon: found ",
                              h.norm_eps, ", wanted a finite number of 0 or more"));
  }
  h.training_context = file.find_int(prefix + "context_length", 1, kMaxContext).value_or(2048);
  h.vocabulary = read_vocabulary(file);
  h.rope = read_rope(file, prefix, h.head_dim);
  return h;
}

}  // namespace lola

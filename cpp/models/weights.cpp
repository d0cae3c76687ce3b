#include "models/weights.h"

#include "base/error.h"
#include "base/system.h"

namespace lola {
namespace {

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

// Loads to one backend.
class Loader {
 public:
  Loader(const GgufFile& file, const Hyperparameters& h, Backend& backend,
         const std::function<void(int64_t bytes)>& loaded)
      : file_(file), h_(h), backend_(backend), loaded_(loaded) {}

  WeightMatrix matrix(const std::string& name, int64_t rows, int64_t cols,
                      WeightUse use = WeightUse::kProducts) const {
    const std::vector<int64_t> shape = {rows, cols};
    const GgufTensor& tensor = checked_tensor(file_, name, shape);
    const WeightMatrix weight = backend_.load({tensor.format, tensor.data, rows, cols}, use);
    if (weight.data != tensor.data) {
      drop_file_pages(tensor.data, static_cast<size_t>(rows * weight.row_bytes()));
    }
    loaded_(rows * weight.row_bytes());
    return weight;
  }

  Buffer vector(const std::string& name, int64_t size) const {
    return to_backend(backend_, read_floats(file_, name, {size}), "tensor '" + name + "'");
  }

  Linear linear(int64_t layer, const std::string& part, int64_t rows, int64_t cols,
                bool bias_required = false) const {
    Linear linear;
    linear.weight = matrix(layer_tensor(layer, part + ".weight"), rows, cols);
    const std::string bias = layer_tensor(layer, part + ".bias");
    if (bias_required || file_.find_tensor(bias) != nullptr) linear.bias = vector(bias, rows);
    return linear;
  }

  DecoderLayer layer(int64_t i) const {
    const int64_t q_dim = h_.heads * h_.head_dim;
    const int64_t kv_dim = h_.kv_heads * h_.head_dim;
    const bool bias = h_.architecture->qkv_bias;
    DecoderLayer layer;
    layer.attention_norm = vector(layer_tensor(i, "attn_norm.weight"), h_.dim);
    layer.q = linear(i, "attn_q", q_dim, h_.dim, bias);
    layer.k = linear(i, "attn_k", kv_dim, h_.dim, bias);
    layer.v = linear(i, "attn_v", kv_dim, h_.dim, bias);
    if (h_.architecture->qk_norm) {
      layer.q_norm = vector(layer_tensor(i, "attn_q_norm.weight"), h_.head_dim);
      layer.k_norm = vector(layer_tensor(i, "attn_k_norm.weight"), h_.head_dim);
    }
    layer.output = linear(i, "attn_output", h_.dim, q_dim);
    layer.ffn_norm = vector(layer_tensor(i, "ffn_norm.weight"), h_.dim);
    layer.gate = linear(i, "ffn_gate", h_.ffn_dim, h_.dim);
    layer.up = linear(i, "ffn_up", h_.ffn_dim, h_.dim);
    layer.down = linear(i, "ffn_down", h_.dim, h_.ffn_dim);
    return layer;
  }

 private:
  const GgufFile& file_;
  const Hyperparameters& h_;
  Backend& backend_;
  const std::function<void(int64_t bytes)>& loaded_;
};

}  // namespace

std::string layer_tensor(int64_t layer, const std::string& suffix) {
  return "blk." + std::to_string(layer) + "." + suffix;
}

const GgufTensor& checked_tensor(const GgufFile& file, const std::string& name,
                                 const std::vector<int64_t>& shape) {
  const GgufTensor& tensor = file.tensor(name);
  if (tensor.shape != shape) {
    throw FormatError(message(file.path(), ": tensor '", name, "': found shape ",
                              shape_text(tensor.shape), ", wanted ", shape_text(shape)));
  }
  return tensor;
}

std::vector<float> read_floats(const GgufFile& file, const std::string& name,
                               const std::vector<int64_t>& shape) {
  const GgufTensor& tensor = checked_tensor(file, name, shape);
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  std::vector<float> values(static_cast<size_t>(count));
  tensor.format->decode(tensor.data, count / tensor.format->block_size, values.data());
  drop_file_pages(tensor.data, tensor.bytes);
  return values;
}

Buffer to_backend(Backend& backend, const std::vector<float>& values, const std::string& what) {
  const int64_t bytes = static_cast<int64_t>(values.size() * sizeof(float));
  Buffer buffer = backend.allocate(bytes, what);
  backend.make_executor()->upload(buffer.as<float>(), values.data(), bytes);
  return buffer;
}

Weights load_weights(const GgufFile& file, const Hyperparameters& h, const Stages& stages,
                     const LoadProgress& progress) {
  int64_t done = 0;
  const std::function<void(int64_t)> loaded = [&](int64_t bytes) {
    done += bytes;
    if (progress) progress(done);
  };
  const auto loader = [&](Backend& backend) { return Loader(file, h, backend, loaded); };
  // A file without an output matrix multiplies with the embedding's.
  const bool tied = file.find_tensor("output.weight") == nullptr;
  const bool shared = tied && stages.size() == 1;
  const std::string embedding = "token_embd.weight";
  Weights weights;
  weights.token_embedding =
      loader(stages.first())
          .matrix(embedding, h.vocabulary, h.dim, shared ? WeightUse::kProducts : WeightUse::kRows);
  for (int64_t i = 0; i < h.layers; ++i) {
    weights.layers.push_back(loader(stages.backend_of(i)).layer(i));
  }
  const Loader last = loader(stages.last());
  weights.output_norm = last.vector("output_norm.weight", h.dim);
  weights.output = shared ? weights.token_embedding
                          : last.matrix(tied ? embedding : "output.weight", h.vocabulary, h.dim);
  return weights;
}

}  // namespace lola

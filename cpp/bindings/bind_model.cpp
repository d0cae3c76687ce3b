// Model and Session as Python sees them. Every long call releases the GIL and lets Ctrl-C through
// between passes.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "base/error.h"
#include "bindings/bindings.h"
#include "bindings/sampled_token.h"
#include "memory/policies/policy_table.h"
#include "models/batch.h"
#include "models/inspect.h"
#include "models/model.h"
#include "models/session.h"
#include "models/state_file.h"
#include "sampling/sampler.h"

namespace py = pybind11;

namespace lola {
namespace {

using Tokens = py::array_t<int64_t, py::array::c_style>;
using Logits = py::array_t<float, py::array::c_style | py::array::forcecast>;

// Python only hands out shared, immutable models; pybind11's holders want a non-const type.
using ModelHandle = std::shared_ptr<Model>;

ModelHandle handle(std::shared_ptr<const Model> model) {
  return std::const_pointer_cast<Model>(std::move(model));
}

template <typename T>
T option(const std::string& name, const py::handle& value, const char* wanted) {
  try {
    return py::cast<T>(value);
  } catch (const py::cast_error&) {
    const std::string problem = message(
        "session: ", name, ": found ", py::cast<std::string>(py::repr(value)), ", wanted ", wanted);
    if (std::is_integral_v<T> && PyLong_Check(value.ptr())) throw UsageError(problem);  // too large
    throw py::type_error(problem);
  }
}

SessionConfig session_config(const Model& model, const py::dict& options) {
  SessionConfig config{model.attention().defaults, model.hyperparameters().training_context};
  for (const auto& [key, value] : options) {
    const std::string name = py::cast<std::string>(key);
    const auto number = [&, &value = value] {
      return option<int64_t>(name, value, "a 64-bit integer");
    };
    const auto text = [&, &value = value] { return option<std::string>(name, value, "a string"); };
    if (name == "window_size") {
      config.lola.window_size = number();
    } else if (name == "chunk_size") {
      config.lola.chunk_size = number();
    } else if (name == "sparse_size") {
      config.lola.sparse_size = number();
    } else if (name == "sparse_scope") {
      config.lola.scope = find_scope(text());
    } else if (name == "policy") {
      config.lola.policy = &find_policy(text());
    } else if (name == "mixing") {
      config.lola.mixing = find_mixing(text());
    } else if (name == "pair_type") {
      config.lola.pair_type = find_pair_type(text());
    } else if (name == "policy_seed") {
      config.lola.seed = option<uint64_t>(name, value, "an integer from 0 to 2^64 - 1");
    } else if (name == "context_length") {
      config.context_length = number();
    } else {
      throw py::type_error("session: unexpected keyword argument '" + name + "'");
    }
  }
  return config;
}

py::dict config_dict(const SessionConfig& config) {
  py::dict result;
  result["window_size"] = config.lola.window_size;
  result["chunk_size"] = config.lola.chunk_size;
  result["sparse_size"] = config.lola.sparse_size;
  result["sparse_scope"] = name_of(config.lola.scope);
  result["policy"] = config.lola.policy->name;
  result["mixing"] = name_of(config.lola.mixing);
  result["pair_type"] = name_of(config.lola.pair_type);
  result["policy_seed"] = config.lola.seed;
  result["context_length"] = config.context_length;
  return result;
}

py::dict model_info(const Model& model) {
  const Hyperparameters& h = model.hyperparameters();
  int64_t softmax_layers = 0;
  for (const AttentionLayer& layer : model.attention().layers) softmax_layers += !layer.lola;
  py::dict result;
  result["name"] = h.name;
  result["architecture"] = h.architecture->name;
  result["layers"] = h.layers;
  result["softmax_layers"] = softmax_layers;
  result["dim"] = h.dim;
  result["ffn_dim"] = h.ffn_dim;
  result["heads"] = h.heads;
  result["kv_heads"] = h.kv_heads;
  result["head_dim"] = h.head_dim;
  result["vocabulary"] = h.vocabulary;
  result["training_context"] = h.training_context;
  result["weight_bytes"] = model.weight_bytes();
  result["has_lola"] = model.attention().has_lola;
  result["fingerprint"] = model.fingerprint();
  result["backend"] = model.stages().describe();
  return result;
}

// Of the backend of each stage.
std::vector<int64_t> free_bytes(const Model& model) {
  std::vector<int64_t> bytes;
  for (size_t i = 0; i < model.stages().size(); ++i) {
    bytes.push_back(model.stages()[i].backend->free_bytes());
  }
  return bytes;
}

Progress python_progress(const py::object& callback) {
  return [callback](int64_t done) {
    py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (!callback.is_none()) callback(done);
  };
}

std::vector<int32_t> to_vector(const Tokens& tokens) {
  if (tokens.ndim() != 1) throw UsageError("tokens: wanted a list or an array of one dimension");
  std::vector<int32_t> ids;
  for (const int64_t id : std::span(tokens.data(), static_cast<size_t>(tokens.size()))) {
    if (!std::in_range<int32_t>(id)) {
      throw UsageError(message("tokens: found id ", id, ", wanted a number of 32 bits"));
    }
    ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

// gpu_layers: None is all of them.
ModelHandle load_model(const std::string& path, const std::string& adapter,
                       const std::string& device, int threads,
                       const std::optional<std::variant<int64_t, std::string>>& gpu_layers,
                       const py::object& progress) {
  int64_t layers = kAllLayers;
  if (gpu_layers) {
    const auto* number = std::get_if<int64_t>(&*gpu_layers);
    if (number == nullptr ? std::get<std::string>(*gpu_layers) != "auto" : *number < 0) {
      throw UsageError(message("gpu_layers: found ",
                               py::cast<std::string>(py::repr(py::cast(*gpu_layers))),
                               ", wanted None, 'auto' or 0 or more"));
    }
    layers = number == nullptr ? kLayersThatFit : *number;
  }
  const ModelOptions options{adapter, device, threads, layers, python_progress(progress)};
  py::gil_scoped_release release;
  return handle(Model::load(path, options));
}

void check_session_tokens(const Session& session, const Tokens& ids) {
  check_tokens(session, to_vector(ids));
}

void advance_sessions(const std::vector<std::pair<Session*, Tokens>>& items,
                      const py::object& callback) {
  std::vector<std::vector<int32_t>> tokens;
  std::vector<Advance> advances;
  for (const auto& [session, ids] : items) tokens.push_back(to_vector(ids));
  for (size_t i = 0; i < items.size(); ++i) advances.push_back({items[i].first, tokens[i]});
  const Progress progress = python_progress(callback);
  py::gil_scoped_release release;
  advance_batch(advances, progress);
}

// One token each. Ctrl-C waits for wait_for().
void submit_tokens(const std::vector<std::pair<Session*, int32_t>>& items) {
  std::vector<Advance> advances;
  for (const auto& [session, token] : items) advances.push_back({session, {&token, 1}});
  py::gil_scoped_release release;
  advance_batch(advances, {}, Return::kEarly);
}

// For a pass that was submitted; nothing is lost where Ctrl-C ends it.
void wait_for(const Session& session) {
  if (session.is_over()) return session.wait();
  {
    py::gil_scoped_release release;
    session.wait();
  }
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

void wait_for_sessions(const std::vector<const Session*>& sessions) {
  for (const Session* session : sessions) {
    const auto lock = session->use();
    wait_for(*session);
  }
}

py::array_t<float> score_tokens(Session& session, const Tokens& ids, const py::object& callback) {
  const std::vector<int32_t> tokens = to_vector(ids);
  py::array_t<float> logprobs(static_cast<py::ssize_t>(tokens.size()));
  const Advance item{&session, tokens, logprobs.mutable_data()};
  const Progress progress = python_progress(callback);
  py::gil_scoped_release release;
  advance_batch({&item, 1}, progress);
  return logprobs;
}

// [tokens, dim]
py::array_t<float> embed_tokens(Session& session, const Tokens& ids, const py::object& callback) {
  const std::vector<int32_t> tokens = to_vector(ids);
  py::array_t<float> hidden(
      {static_cast<int64_t>(tokens.size()), session.model()->hyperparameters().dim});
  const Advance item{&session, tokens, nullptr, hidden.mutable_data()};
  const Progress progress = python_progress(callback);
  py::gil_scoped_release release;
  advance_batch({&item, 1}, progress);
  return hidden;
}

// callback(layer, q [rows, heads, d], k and v [rows, kv_heads, d]) for each layer of each pass.
void observe_attention(Session& session, const Tokens& ids, const py::object& callback) {
  const std::vector<int32_t> tokens = to_vector(ids);
  const Hyperparameters& h = session.model()->hyperparameters();
  const AttentionObserver observer = [&](int64_t layer, int64_t rows, const float* q,
                                         const float* k, const float* v) {
    py::gil_scoped_acquire gil;
    const auto array = [&](const float* values, int64_t heads) {
      return py::array_t<float>({rows, heads, h.head_dim}, values);
    };
    callback(layer, array(q, h.heads), array(k, h.kv_heads), array(v, h.kv_heads));
  };
  const Advance item{&session, tokens, nullptr, nullptr, &observer};
  const Progress progress = python_progress(py::none());
  py::gil_scoped_release release;
  advance_batch({&item, 1}, progress);
}

std::pair<std::unique_ptr<Session>, py::bytes> load_session(const ModelHandle& model,
                                                            const std::string& path) {
  StateFile::Loaded loaded;
  {
    py::gil_scoped_release release;
    loaded = StateFile::load(model, path);
  }
  return {std::move(loaded.session),
          py::bytes(reinterpret_cast<const char*>(loaded.extra.data()), loaded.extra.size())};
}

void save_session(const Session& session, const std::string& path, const std::string& extra) {
  py::gil_scoped_release release;
  StateFile::save(session, path, {reinterpret_cast<const uint8_t*>(extra.data()), extra.size()});
}

// Keeps the GIL once the pass is over: the rest is short, and it keeps two threads out of one
// sampler.
SampledToken sample_token(Session& session, Sampler& sampler, int64_t top_logprobs,
                          const std::optional<Logits>& adjusted) {
  const auto lock = session.use();
  wait_for(session);
  session.want_best(adjusted ? 1 : std::max(sampler.candidates(), top_logprobs));
  if (!adjusted) {
    if (auto token = sampler.sample(session.top_logits(), top_logprobs)) return *token;
  }
  if (session.logits().empty()) {
    throw UsageError("session: there is nothing to sample from before its first token");
  }
  if (!adjusted) return sampler.sample(session.logits(), top_logprobs);
  return sampler.sample(session.logits(), {adjusted->data(), static_cast<size_t>(adjusted->size())},
                        top_logprobs);
}

// [(position [pairs], recall error [pairs], pairs in the sparse cache), ...] of each query head.
py::list layer_recall_errors(const Session& session, int64_t layer) {
  std::vector<HeadPairs> heads;
  {
    py::gil_scoped_release release;
    heads = recall_errors(session, layer);
  }
  py::list result;
  for (const HeadPairs& head : heads) {
    const auto count = static_cast<py::ssize_t>(head.position.size());
    result.append(py::make_tuple(py::array_t<int64_t>(count, head.position.data()),
                                 py::array_t<float>(count, head.error.data()), head.cached));
  }
  return result;
}

py::array_t<float> logits_array(const Session& session) {
  const auto lock = session.use();
  return py::array_t<float>(static_cast<py::ssize_t>(session.logits().size()),
                            session.logits().data());
}

void bind_session(py::module_& module) {
  py::class_<Session>(module, "Session")
      .def(py::init([](const ModelHandle& model, const py::dict& options) {
             return std::make_unique<Session>(model, session_config(*model, options));
           }),
           py::arg("model"), py::arg("options"))
      .def_property_readonly("position", &Session::position)
      .def_property_readonly("attention_seconds", &Session::attention_seconds)
      .def_property_readonly("memory_bytes", &Session::memory_bytes)
      .def_property_readonly("config", [](const Session& s) { return config_dict(s.config()); })
      .def_property_readonly("has_logits", &Session::has_logits)
      .def_property_readonly("logits", &logits_array)
      .def("fork", &Session::fork, py::call_guard<py::gil_scoped_release>())
      .def("spill", &Session::spill, py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("spilled", &Session::spilled)
      .def("check_tokens", &check_session_tokens, py::arg("tokens"))
      .def("score", &score_tokens, py::arg("tokens"), py::arg("progress"))
      .def("embed", &embed_tokens, py::arg("tokens"), py::arg("progress"))
      .def("observe_attention", &observe_attention, py::arg("tokens"), py::arg("callback"))
      .def("sample", &sample_token, py::arg("sampler"), py::arg("top_logprobs"),
           py::arg("adjusted") = py::none())
      .def("recall_errors", &layer_recall_errors, py::arg("layer"))
      .def("save", &save_session, py::arg("path"), py::arg("extra"));
}

}  // namespace

void bind_model(py::module_& module) {
  py::class_<Model, ModelHandle>(module, "Model")
      .def(py::init(&load_model), py::arg("path"), py::arg("adapter"), py::arg("device"),
           py::arg("threads"), py::arg("gpu_layers") = py::none(), py::arg("progress") = py::none())
      .def_property_readonly("info", &model_info)
      .def_property_readonly("free_bytes", &free_bytes)
      .def_property_readonly("runs_behind", &Model::runs_behind)
      .def_property_readonly(
          "file", [](const Model& m) { return std::const_pointer_cast<GgufFile>(m.file()); })
      .def_property_readonly(
          "defaults",
          [](const Model& m) {
            return config_dict({m.attention().defaults, m.hyperparameters().training_context});
          })
      .def(
          "session_bytes",
          [](const Model& m, const py::dict& options) {
            const SessionConfig config = session_config(m, options);
            return SessionLayout(m, config).bytes(config.context_length);
          },
          py::arg("options"))
      .def("load_session", &load_session, py::arg("path"));
  bind_session(module);
  module.def("advance", &advance_sessions, py::arg("items"), py::arg("progress"));
  module.def("submit", &submit_tokens, py::arg("items"));
  module.def("wait", &wait_for_sessions, py::arg("sessions"));
}

}  // namespace lola

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "bindings/bindings.h"
#include "bindings/sampled_token.h"

namespace py = pybind11;

namespace lola {
namespace {

int32_t token_id(const char* what, int64_t id) {
  if (id < 0 || id > std::numeric_limits<int32_t>::max()) {
    throw UsageError(message(what, ": found ", id, ", wanted the id of a token"));
  }
  return static_cast<int32_t>(id);
}

uint64_t seed_of(const std::optional<py::int_>& seed) {
  if (!seed) {
    std::random_device device;
    return (static_cast<uint64_t>(device()) << 32) | device();
  }
  const unsigned long long value = PyLong_AsUnsignedLongLong(seed->ptr());
  if (PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    throw UsageError(message("seed: found ", py::str(*seed).cast<std::string>(),
                             ", wanted None or 0 to 2**64 - 1"));
  }
  return value;
}

std::unique_ptr<Sampler> make_sampler(double temperature, int64_t top_k, double top_p, double min_p,
                                      double repetition_penalty, double frequency_penalty,
                                      double presence_penalty, int64_t penalty_window,
                                      const std::map<int64_t, double>& logit_bias,
                                      const std::optional<py::int_>& seed) {
  SamplerConfig config;
  config.temperature = temperature;
  config.top_k = top_k;
  config.top_p = top_p;
  config.min_p = min_p;
  config.repetition_penalty = repetition_penalty;
  config.frequency_penalty = frequency_penalty;
  config.presence_penalty = presence_penalty;
  config.penalty_window = penalty_window;
  for (const auto& [id, bias] : logit_bias) {
    config.logit_bias.emplace_back(token_id("logit_bias", id), bias);
  }
  config.seed = seed_of(seed);
  return std::make_unique<Sampler>(std::move(config));
}

using Logits = py::array_t<float, py::array::c_style | py::array::forcecast>;

SampledToken sample(Sampler& sampler, const Logits& logits, int64_t top_logprobs) {
  if (logits.ndim() != 1) {
    throw UsageError(message("logits: found ", logits.ndim(), " dimensions, wanted [vocabulary]"));
  }
  return sampler.sample({logits.data(), static_cast<size_t>(logits.size())}, top_logprobs);
}

void accept(Sampler& sampler, const std::vector<int64_t>& ids) {
  std::vector<int32_t> tokens;
  tokens.reserve(ids.size());
  for (const int64_t id : ids) tokens.push_back(token_id("ids", id));
  sampler.accept(tokens);
}

py::bytes save_sampler(const Sampler& sampler) {
  const std::vector<uint8_t> bytes = sampler.save();
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::unique_ptr<Sampler> load_sampler(const py::bytes& bytes) {
  const std::string_view view = bytes;
  return std::make_unique<Sampler>(
      Sampler::load({reinterpret_cast<const uint8_t*>(view.data()), view.size()}));
}

}  // namespace

// The calls keep the GIL: they are short, and it keeps two threads out of one sampler.
void bind_sampler(py::module_& module) {
  const SamplerConfig defaults;
  py::class_<Sampler>(module, "Sampler",
                      "Chooses tokens from logits; the same options, seed and history choose the "
                      "same tokens on every machine.")
      .def(py::init(&make_sampler), py::kw_only(), py::arg("temperature") = defaults.temperature,
           py::arg("top_k") = defaults.top_k, py::arg("top_p") = defaults.top_p,
           py::arg("min_p") = defaults.min_p,
           py::arg("repetition_penalty") = defaults.repetition_penalty,
           py::arg("frequency_penalty") = defaults.frequency_penalty,
           py::arg("presence_penalty") = defaults.presence_penalty,
           py::arg("penalty_window") = defaults.penalty_window,
           py::arg("logit_bias") = std::map<int64_t, double>(), py::arg("seed") = py::none())
      .def_property_readonly("seed", [](const Sampler& sampler) { return sampler.config().seed; })
      .def("accept", &accept, py::arg("ids"), "Tokens of a prompt, for the penalties to see.")
      .def("sample", &sample, py::arg("logits"), py::arg("top_logprobs") = 0,
           "logits [vocabulary] -> (id, logprob, [(id, logprob), ...] of the most likely).")
      .def("save", &save_sampler, "Everything that the next sample depends on.")
      .def_static("load", &load_sampler, py::arg("bytes"),
                  "FormatError on bytes that save did not give.");
}

}  // namespace lola

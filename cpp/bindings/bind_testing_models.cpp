// Parts of models by themselves, for the tests.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "bindings/bindings.h"
#include "bindings/sampled_token.h"
#include "models/rope.h"
#include "models/stages.h"
#include "sampling/candidates.h"

namespace py = pybind11;

namespace lola {
namespace {

using Logits = py::array_t<float, py::array::c_style | py::array::forcecast>;

// Cosine and sine, [dimensions / 2] each.
std::pair<py::array_t<float>, py::array_t<float>> rope_angles(int64_t dimensions, double base,
                                                              int64_t position) {
  RopeParameters parameters;
  parameters.dimensions = dimensions;
  parameters.base = base;
  const Rope rope(parameters);
  std::pair<py::array_t<float>, py::array_t<float>> angles{rope.pairs(), rope.pairs()};
  rope.angles(position, angles.first.mutable_data(), angles.second.mutable_data());
  return angles;
}

// What a sampler chooses that is only given the `count` best of the logits; None where it cannot
// tell.
std::optional<SampledToken> sample_from_best(Sampler& sampler, const Logits& logits, int64_t count,
                                             int64_t top_logprobs) {
  const std::span<const float> all{logits.data(), static_cast<size_t>(logits.size())};
  const Peaks peaks = find_peaks(all);
  const std::vector<Candidate> found = best(all, peaks, count);
  return sampler.sample(TopLogits{logits.size(), exp_sum(all, peaks.max), found}, top_logprobs);
}

// The CPU with another amount of memory.
class BackendWithRoom final : public Backend {
 public:
  BackendWithRoom(std::string name, int64_t free) : name_(std::move(name)), free_(free) {}

  std::string describe() const override { return name_; }
  int64_t pass_tokens() const override { return cpu_->pass_tokens(); }
  void check(const AttentionShape& shape) const override { cpu_->check(shape); }
  int64_t free_bytes() const override { return free_; }
  int64_t stored_bytes(const WeightMatrix& file, WeightUse use) const override {
    return cpu_->stored_bytes(file, use);
  }
  Buffer allocate(int64_t bytes, const std::string& what, Fill fill) const override {
    return cpu_->allocate(bytes, what, fill);
  }
  WeightMatrix load(const WeightMatrix& file, WeightUse use) override {
    return cpu_->load(file, use);
  }
  std::unique_ptr<Executor> make_executor() override { return cpu_->make_executor(); }

 private:
  std::string name_;
  int64_t free_;
  std::shared_ptr<Backend> cpu_ = make_backend("cpu", {1});
};

// [(backend, first layer, end), ...]: where the layers of a file would lie.
py::list placed_layers(const std::string& path, const std::string& adapter, int64_t device_layers,
                       int64_t device_bytes, int64_t host_bytes) {
  const auto file = GgufFile::open(path);
  const auto adapter_file = adapter.empty() ? nullptr : GgufFile::open(adapter);
  const Stages stages =
      place_layers(*file, adapter_file.get(), read_hyperparameters(*file), device_layers,
                   std::make_shared<BackendWithRoom>("device", device_bytes),
                   [&] { return std::make_shared<BackendWithRoom>("host", host_bytes); });
  py::list result;
  for (size_t i = 0; i < stages.size(); ++i) {
    result.append(py::make_tuple(stages[i].backend->describe(), stages[i].begin, stages[i].end));
  }
  return result;
}

}  // namespace

void bind_testing_models(py::module_& testing) {
  testing.def("rope_angles", &rope_angles, py::kw_only(), py::arg("dimensions"), py::arg("base"),
              py::arg("position"));
  testing.def("candidates_wanted", &Sampler::candidates, py::arg("sampler"));
  testing.def("sample_from_best", &sample_from_best, py::arg("sampler"), py::arg("logits"),
              py::arg("count"), py::arg("top_logprobs") = 0);
  testing.attr("layers_that_fit") = kLayersThatFit;
  testing.def("placed_layers", &placed_layers, py::kw_only(), py::arg("path"), py::arg("adapter"),
              py::arg("device_layers"), py::arg("device_bytes"), py::arg("host_bytes"));
}

}  // namespace lola

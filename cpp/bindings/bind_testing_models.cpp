// Parts of models by themselves, for the tests.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <utility>

#include "bindings/bindings.h"
#include "models/rope.h"

namespace py = pybind11;

namespace lola {
namespace {

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

}  // namespace

void bind_testing_models(py::module_& testing) {
  testing.def("rope_angles", &rope_angles, py::kw_only(), py::arg("dimensions"), py::arg("base"),
              py::arg("position"));
}

}  // namespace lola

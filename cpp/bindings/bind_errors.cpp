#include "base/error.h"
#include "bindings/bindings.h"

namespace py = pybind11;

namespace lola {

void bind_errors(py::module_& module) {
  // Base first: pybind11 asks the newest translator first.
  const py::object& base = py::register_exception<Error>(module, "LolaError", PyExc_Exception);
  const auto with = [&](PyObject* builtin) {
    return py::make_tuple(base, py::reinterpret_borrow<py::object>(builtin));
  };
  py::register_exception<UsageError>(module, "UsageError", with(PyExc_ValueError));
  py::register_exception<FormatError>(module, "FormatError", with(PyExc_ValueError));
  py::register_exception<UnsupportedError>(module, "UnsupportedError", with(PyExc_RuntimeError));
  py::register_exception<DeviceError>(module, "DeviceError", with(PyExc_RuntimeError));
}

}  // namespace lola

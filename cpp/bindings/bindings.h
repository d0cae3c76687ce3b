// One function per binding file; module.cpp calls them in order.
#pragma once

#include <pybind11/pybind11.h>

namespace lola {

void bind_errors(pybind11::module_& module);
void bind_gguf(pybind11::module_& module);
void bind_convert(pybind11::module_& module);
void bind_sampler(pybind11::module_& module);
void bind_model(pybind11::module_& module);

// Submodule _core.testing: formats, kernels and memories by themselves, for the tests only.
void bind_testing_quant(pybind11::module_& testing);
void bind_testing_kernels(pybind11::module_& testing);
void bind_testing_matmul(pybind11::module_& testing);
void bind_testing_lola(pybind11::module_& testing);
void bind_testing_models(pybind11::module_& testing);
void bind_testing_machine(pybind11::module_& testing);

}  // namespace lola

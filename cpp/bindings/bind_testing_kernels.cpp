#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "kernels/kernels.h"

#include <pybind11/stl.h>

namespace lola {

void bind_testing_kernels(pybind11::module_& testing) {
  testing.def("available_isas", [] {
    std::vector<std::string> names;
    for (const char* const* name = available_isas(); *name != nullptr; ++name) names.push_back(*name);
    return names;
  });
  testing.def("selected_isa", [] { return std::string(select_kernels().name); });
}

}  // namespace lola

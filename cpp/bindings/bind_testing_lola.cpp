#include "bindings/bindings.h"

namespace lola {

void bind_testing_lola(pybind11::module_&) {}

}  // namespace lola

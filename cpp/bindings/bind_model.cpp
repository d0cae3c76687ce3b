#include "bindings/bindings.h"

namespace lola {

void bind_model(pybind11::module_&) {}

}  // namespace lola

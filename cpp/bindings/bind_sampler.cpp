#include "bindings/bindings.h"

namespace lola {

void bind_sampler(pybind11::module_&) {}

}  // namespace lola

#include "bindings/bindings.h"

namespace lola {

void bind_gguf(pybind11::module_&) {}

}  // namespace lola

#include "bindings/bindings.h"

#define LOLA_STRING_OF(text) #text
#define LOLA_STRING(text) LOLA_STRING_OF(text)

#if defined(__clang__)
#define LOLA_COMPILER __VERSION__
#elif defined(__GNUC__)
#define LOLA_COMPILER "GCC " __VERSION__
#else
#define LOLA_COMPILER "MSVC " LOLA_STRING(_MSC_FULL_VER)
#endif

PYBIND11_MODULE(_core, module) {
  module.attr("__version__") = LOLA_STRING(LOLA_VERSION);
  module.attr("compiler") = LOLA_COMPILER;
  lola::bind_errors(module);
  lola::bind_gguf(module);
  lola::bind_convert(module);
  lola::bind_sampler(module);
  lola::bind_model(module);
  pybind11::module_ testing = module.def_submodule("testing", "Inner parts, for the tests only.");
  lola::bind_testing_quant(testing);
  lola::bind_testing_kernels(testing);
  lola::bind_testing_matmul(testing);
  lola::bind_testing_lola(testing);
  lola::bind_testing_models(testing);
  lola::bind_testing_machine(testing);
}

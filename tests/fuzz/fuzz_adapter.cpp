// Reads any bytes as the adapter of tiny_model.gguf; where they are one, a session sees a few
// tokens.
#include <cstddef>
#include <cstdint>
#include <string>

#include "base/error.h"
#include "input_file.h"
#include "models/model.h"
#include "use_model.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string model = std::string(LOLA_FUZZ_DATA) + "/tiny_model.gguf";
  try {
    lola_fuzz::use_model(lola::Model::load(model, {lola_fuzz::input_file(data, size), "cpu", 1}),
                         {5, 6, 7, 8, 5, 6, 7, 8, 9});
  } catch (const lola::Error&) {
  }
  return 0;
}

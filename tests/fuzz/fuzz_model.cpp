// Loads any bytes as a model; where they are one, a session of it sees a few tokens.
#include <cstddef>
#include <cstdint>

#include "base/error.h"
#include "input_file.h"
#include "models/model.h"
#include "use_model.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    lola_fuzz::use_model(lola::Model::load(lola_fuzz::input_file(data, size), {"", "cpu", 1}),
                         {0, 0, 0});
  } catch (const lola::Error&) {
  }
  return 0;
}

// Reads any bytes as a session saved with tiny_model.gguf and tiny_adapter.gguf, and as the state
// of a sampler that such a file carries.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "gguf/gguf_reader.h"
#include "input_file.h"
#include "models/batch.h"
#include "models/model.h"
#include "models/state_file.h"
#include "sampling/sampler.h"

namespace {

std::shared_ptr<const lola::Model> load_model() {
  const std::string folder = LOLA_FUZZ_DATA;
  return lola::Model::load(folder + "/tiny_model.gguf", {folder + "/tiny_adapter.gguf", "cpu", 1});
}

// A file may ask for a KV cache of any length: as lazily as it is allocated, the sanitizer counts
// it.
bool asks_for_much(const uint8_t* data, size_t size) {
  const auto file = lola::GgufFile::parse({data, size}, "fuzz");
  return file->get_int("state.context_length", INT64_MIN, INT64_MAX) > 4096;
}

void load_session(const std::string& path) {
  static const auto model = load_model();
  const lola::StateFile::Loaded loaded = lola::StateFile::load(model, path);
  const int64_t before = loaded.session->position();
  const std::vector<int32_t> tokens = {5, 6, 7};
  const lola::Advance item{loaded.session.get(), tokens};
  lola::advance_batch({&item, 1}, {});
  if (loaded.session->position() != before + 3) __builtin_trap();
}

void load_sampler(const uint8_t* data, size_t size) {
  lola::Sampler sampler = lola::Sampler::load({data, size});
  const std::vector<float> logits(16, 0.5f);
  sampler.sample(logits, 0);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    if (!asks_for_much(data, size)) load_session(lola_fuzz::input_file(data, size));
  } catch (const lola::Error&) {
  }
  try {
    load_sampler(data, size);
  } catch (const lola::Error&) {
  }
  return 0;
}

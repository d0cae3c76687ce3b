// Loads any bytes as a model; where they are one, a session of it sees a few tokens.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/error.h"
#include "input_file.h"
#include "models/batch.h"
#include "models/model.h"
#include "models/session.h"

namespace {

constexpr int64_t kMaxSessionBytes = int64_t{1} << 20;  // a file may ask for any window

void advance(const std::shared_ptr<const lola::Model>& model) {
  const lola::SessionConfig config{model->attention().defaults, 4};
  if (lola::SessionLayout(*model, config).bytes() > kMaxSessionBytes) return;
  lola::Session session(model, config);
  const std::vector<int32_t> tokens(3, 0);
  const lola::Advance item{&session, tokens};
  lola::advance_batch({&item, 1}, {});
  if (session.position() != 3) __builtin_trap();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    advance(lola::Model::load(lola_fuzz::input_file(data, size), {"", "cpu", 1}));
  } catch (const lola::Error&) {
  }
  return 0;
}

// What a fuzz target does with a model that loads.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "models/batch.h"
#include "models/model.h"
#include "models/session.h"

namespace lola_fuzz {

// A session of the model sees the tokens, unless the file asks for a large one: it may name any
// window.
inline void use_model(const std::shared_ptr<const lola::Model>& model,
                      const std::vector<int32_t>& tokens) {
  constexpr int64_t kMaxSessionBytes = int64_t{1} << 20;
  const int64_t length = static_cast<int64_t>(tokens.size());
  const lola::SessionConfig config{model->attention().defaults, length};
  if (lola::SessionLayout(*model, config).bytes(length) > kMaxSessionBytes) return;
  lola::Session session(model, config);
  const lola::Advance item{&session, tokens};
  lola::advance_batch({&item, 1}, {});
  if (session.position() != length) __builtin_trap();
}

}  // namespace lola_fuzz

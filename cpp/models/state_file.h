// A session on disk: a GGUF file bound to its model, portable between backends.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "models/session.h"

namespace lola {

class StateFile {
 public:
  // `extra` is the caller's own bytes (sampler, pending tokens), given back by load.
  static void save(const Session& session, const std::string& path, std::span<const uint8_t> extra);

  struct Loaded {
    std::unique_ptr<Session> session;
    std::vector<uint8_t> extra;
  };

  // FormatError where the file is damaged or belongs to another model.
  static Loaded load(std::shared_ptr<const Model> model, const std::string& path);
};

}  // namespace lola

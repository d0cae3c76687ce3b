#pragma once

#include <memory>

#include "backend/backend.h"

namespace lola {

std::shared_ptr<Backend> make_cpu_backend(const BackendOptions& options);

}  // namespace lola

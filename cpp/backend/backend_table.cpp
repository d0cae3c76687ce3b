#include <memory>
#include <string>

#include "backend/backend.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/cuda_library.h"
#include "base/error.h"

namespace lola {
namespace {

struct BackendRow {
  const char* device;
  std::shared_ptr<Backend> (*make)(const BackendOptions& options);
};

constexpr BackendRow kBackends[] = {
    {"cpu", make_cpu_backend},
    {"cuda", make_cuda_backend},
};

}  // namespace

std::shared_ptr<Backend> make_backend(const std::string& device, const BackendOptions& options) {
  std::string known;
  for (const BackendRow& row : kBackends) {
    if (device == row.device) return row.make(options);
    known += known.empty() ? row.device : std::string(", ") + row.device;
  }
  throw UnsupportedError(message("device: found '", device, "', this build has: ", known));
}

}  // namespace lola

#include "backend/cuda_library.h"

#include <string>

#include "base/error.h"

#if defined(__linux__)
#include <dlfcn.h>
#endif

namespace lola {
namespace {

constexpr const char* kHowToBuild =
    "device cuda: this build has no CUDA part; build with -C cmake.define.LOLA_CUDA=ON";

#if defined(__linux__)
using MakeBackend = Backend* (*)(const BackendOptions&);

// The library beside the one that this code is in.
std::string library_path() {
  Dl_info here{};
  dladdr(reinterpret_cast<const void*>(&library_path), &here);
  const std::string own = here.dli_fname == nullptr ? "" : here.dli_fname;
  return own.substr(0, own.rfind('/') + 1) + "liblola_cuda.so";
}

MakeBackend find_maker() {
  const std::string path = library_path();
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw UnsupportedError(message(kHowToBuild, " (", dlerror(), ")"));
  return reinterpret_cast<MakeBackend>(dlsym(library, "lola_make_cuda_backend"));
}
#endif

}  // namespace

std::shared_ptr<Backend> make_cuda_backend([[maybe_unused]] const BackendOptions& options) {
#if defined(__linux__)
  static const MakeBackend make = find_maker();
  if (make != nullptr) return std::shared_ptr<Backend>(make(options));
#endif
  throw UnsupportedError(kHowToBuild);
}

}  // namespace lola

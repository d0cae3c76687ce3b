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
// The library beside the one that this code is in.
std::string library_path() {
  Dl_info here{};
  dladdr(reinterpret_cast<const void*>(&library_path), &here);
  const std::string own = here.dli_fname == nullptr ? "" : here.dli_fname;
  return own.substr(0, own.rfind('/') + 1) + "liblola_cuda.so";
}

void* load_library() {
  const std::string path = library_path();
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw UnsupportedError(message(kHowToBuild, " (", dlerror(), ")"));
  return library;
}

// A function of the library.
template <typename Function>
Function find(const char* name) {
  static void* const library = load_library();
  void* symbol = dlsym(library, name);
  if (symbol == nullptr) throw UnsupportedError(message(kHowToBuild, " (", dlerror(), ")"));
  return reinterpret_cast<Function>(symbol);
}
#else
template <typename Function>
Function find(const char*) {
  throw UnsupportedError(kHowToBuild);
}
#endif

}  // namespace

std::shared_ptr<Backend> make_cuda_backend(const BackendOptions& options) {
  const auto make = find<Backend* (*)(const BackendOptions&)>("lola_make_cuda_backend");
  return std::shared_ptr<Backend>(make(options));
}

std::vector<GpuInfo> list_gpus() {
  std::vector<GpuInfo> gpus;
  find<void (*)(std::vector<GpuInfo>&)>("lola_list_gpus")(gpus);
  return gpus;
}

}  // namespace lola

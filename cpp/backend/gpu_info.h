// What the CUDA library knows of a GPU.
#pragma once

#include <cstdint>
#include <string>

namespace lola {

struct GpuInfo {
  std::string name;
  int major, minor;  // compute capability
  int64_t free_bytes, total_bytes;
};

}  // namespace lola

// Where a fuzz target puts its input, for what reads files only.
#pragma once

#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>

namespace lola_fuzz {

// The bytes as a file, in memory where the system has such a folder. Each process has one.
inline const std::string& input_file(const uint8_t* data, size_t size) {
  static const std::string path = [] {
    const std::filesystem::path memory = "/dev/shm";
    const auto folder =
        std::filesystem::exists(memory) ? memory : std::filesystem::temp_directory_path();
    return (folder / ("lola-fuzz-" + std::to_string(getpid()) + ".gguf")).string();
  }();
  std::filesystem::remove(path);  // a mapping of the input before must keep its bytes
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  return path;
}

}  // namespace lola_fuzz

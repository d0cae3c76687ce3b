// What the operating systems call differently. Paths are UTF-8 on Windows, bytes elsewhere.
#pragma once

#include <filesystem>
#include <string>

namespace lola {

std::filesystem::path native_path(const std::string& path);

// The text of the calling thread's last failure (errno, GetLastError).
std::string last_system_error();

}  // namespace lola

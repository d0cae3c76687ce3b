// What the operating systems call differently. Paths are UTF-8 on Windows, bytes elsewhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>

namespace lola {

std::filesystem::path native_path(const std::string& path);

// The text of the calling thread's last failure (errno, GetLastError).
std::string last_system_error();

// Bytes that programs may still take without others being thrown out; the largest number where the
// system does not say.
int64_t available_memory();

// A hint, for memory that is read over and over from one end to the other.
void advise_huge_pages(void* data, size_t bytes);

// Gives back the physical pages that lie wholly inside a range of a mapped file; touched again,
// they are read again.
void drop_file_pages(const void* data, size_t bytes);

}  // namespace lola

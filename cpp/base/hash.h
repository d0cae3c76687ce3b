// A fast 128-bit hash for fingerprints and checksums. It finds accidents, not attacks.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace lola {

class Hasher {
 public:
  void add(uint64_t word) {
    a_ = mix(a_ ^ word, 0x9E3779B97F4A7C15u);
    b_ = mix(b_ + word, 0xC2B2AE3D27D4EB4Fu);
  }

  void add(const void* data, uint64_t bytes) {
    add(bytes);
    const auto* next = static_cast<const uint8_t*>(data);
    uint64_t word = 0;
    for (; bytes >= sizeof(word); bytes -= sizeof(word), next += sizeof(word)) {
      std::memcpy(&word, next, sizeof(word));
      add(word);
    }
    word = 0;
    if (bytes > 0) std::memcpy(&word, next, bytes);
    add(word);
  }

  void add(std::string_view text) { add(text.data(), text.size()); }

  // 32 digits
  std::string hex() const {
    constexpr char kDigits[] = "0123456789abcdef";
    std::string text;
    for (uint64_t half : {a_, b_}) {
      for (int shift = 60; shift >= 0; shift -= 4) text += kDigits[(half >> shift) & 15u];
    }
    return text;
  }

 private:
  static uint64_t mix(uint64_t x, uint64_t factor) {
    x *= factor;
    return x ^ (x >> 32);
  }

  uint64_t a_ = 0x6C6F6C61u;
  uint64_t b_ = 0x63707021u;
};

}  // namespace lola

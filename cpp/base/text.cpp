#include "base/text.h"

#include <cstddef>
#include <cstdint>

#include "base/error.h"

namespace lola {
namespace {

constexpr size_t kMaxQuoted = 256;

// Bytes of the well-formed UTF-8 character at text[at] (Unicode table 3-7), or 0 when there is
// none.
size_t utf8_length(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) -> uint8_t {
    return at + i < text.size() ? static_cast<uint8_t>(text[at + i]) : 0;
  };
  const auto continues = [&](size_t i) { return (byte(i) & 0xC0u) == 0x80u; };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead < 0xC2 || lead > 0xF4) return 0;
  if (lead < 0xE0) return continues(1) ? 2 : 0;
  const uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;   // no overlong forms
  const uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;  // no surrogates
  if (byte(1) < low || byte(1) > high || !continues(2)) return 0;
  if (lead < 0xF0) return 3;
  return continues(3) ? 4 : 0;
}

}  // namespace

bool is_utf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const size_t length = utf8_length(text, at);
    if (length == 0) return false;
    at += length;
  }
  return true;
}

std::string escaped(std::string_view text) {
  constexpr char kHex[] = "0123456789abcdef";
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const uint8_t byte = static_cast<uint8_t>(text[at]);
    const size_t length = byte < 0x20 || byte == 0x7F ? 0 : utf8_length(text, at);
    if (length == 0) {
      out += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15u]};
      ++at;
    } else {
      out += text.substr(at, length);
      at += length;
    }
  }
  return out;
}

std::string quote(std::string_view text) {
  const char* end = text.size() > kMaxQuoted ? "...'" : "'";
  return message("'", escaped(text.substr(0, kMaxQuoted)), end);
}

}  // namespace lola

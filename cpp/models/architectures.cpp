#include "models/architectures.h"

#include <string>

#include "base/error.h"
#include "base/text.h"

namespace lola {
namespace {

constexpr Architecture kArchitectures[] = {
    // name, RoPE layout, q/k/v biases, q/k norms
    {"llama", RopeLayout::kInterleaved, false, false},
    {"qwen2", RopeLayout::kHalf, true, false},
    {"qwen3", RopeLayout::kHalf, false, true},
};

}  // namespace

const Architecture& find_architecture(const GgufFile& file) {
  const std::string name = file.get_string("general.architecture");
  std::string_view base = name;
  if (base.starts_with(kOneFilePrefix)) base.remove_prefix(kOneFilePrefix.size());
  std::string known;
  for (const Architecture& architecture : kArchitectures) {
    if (base == architecture.name) return architecture;
    known += known.empty() ? "" : ", ";
    known += architecture.name;
  }
  throw UnsupportedError(
      message(file.path(), ": general.architecture: found ", quote(name), ", supported: ", known));
}

}  // namespace lola

// Finds the parts of a split GGUF file: name-00001-of-0000N.gguf.
#pragma once

#include <string>
#include <vector>

#include "gguf/gguf_part.h"

namespace lola {

// `path` may be any part. A file that is not split is its only part.
std::vector<GgufPart> open_gguf_parts(const std::string& path);

// FormatError when the bytes are a part of a split file: alone they are not a model.
void check_not_split(const GgufPart& part);

}  // namespace lola

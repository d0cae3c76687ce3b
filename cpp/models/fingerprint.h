#pragma once

#include <string>

#include "gguf/gguf_reader.h"

namespace lola {

// 32 hexadecimal digits from all metadata, every tensor's name, type and shape, and samples of
// every tensor's bytes. Reading a few pages of each tensor tells apart fine-tunes of one base
// without reading gigabytes. adapter may be null.
std::string fingerprint(const GgufFile& model, const GgufFile* adapter);

}  // namespace lola

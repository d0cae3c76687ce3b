// A GGUF file in other formats: its metadata as it is, each tensor in the format that is planned
// for it.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "gguf/gguf_reader.h"
#include "quant/quant_table.h"

namespace lola {

struct TensorPlan {
  std::string name;
  QuantType type;
  std::vector<float> importance;  // [columns], or empty: all columns alike
};

struct QuantizeOptions {
  uint32_t file_type;  // general.file_type: llama.cpp's number of the mixture
  int threads;
  // Called with the bytes of the source done so far; what it throws ends the call, and no file is
  // left behind.
  std::function<void(uint64_t done)> progress;
};

// Tensors that are not in the plan keep their format. Memory is bounded: a slab of rows at a time,
// whatever the size of the model. The bytes do not depend on the number of threads. UsageError
// where the plan names a tensor that the file does not have; errors of encode_rows.h.
void quantize_file(const GgufFile& source, const std::string& path,
                   std::span<const TensorPlan> plan, const QuantizeOptions& options);

}  // namespace lola

// Writes GGUF v3 files. The file appears under its name only when it is complete.
#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "gguf/gguf_value.h"
#include "quant/quant_table.h"

namespace lola {

// What the reader would refuse, the writer refuses: a bad or repeated name, a shape that does not
// fit the bytes (UsageError).
class GgufWriter {
 public:
  // Takes the next bytes of a tensor.
  using Sink = std::function<void(const void* data, size_t bytes)>;
  // Hands the bytes of a tensor to a sink, in order, in as many parts as it likes.
  using Fill = std::function<void(const Sink& sink)>;

  void put_int(std::string key, int64_t value);
  void put_uint(std::string key, uint64_t value);
  void put_float(std::string key, double value);  // f64
  void put_bool(std::string key, bool value);
  void put_string(std::string key, std::string_view value);
  void put_int_array(std::string key, std::span<const int64_t> values);
  void put_bytes(std::string key, std::span<const uint8_t> values);  // array of u8

  void put_value(std::string key, const GgufValue& value);  // as another file has it

  // data must stay valid until write(). shape is slowest dimension first.
  void put_tensor(std::string name, QuantType type, std::span<const int64_t> shape,
                  const void* data, uint64_t bytes);
  // For what is too large to hold: write() calls fill when it is the tensor's turn.
  void put_tensor(std::string name, QuantType type, std::span<const int64_t> shape, Fill fill);

  // Writes to a temporary file beside `path`, flushes it to the disk, then renames it over `path`.
  // DeviceError when that fails; nothing is left behind then, and an older file of that name is
  // unchanged.
  void write(const std::string& path) const;

 private:
  struct Tensor {
    std::string name;
    QuantType type;
    std::vector<int64_t> shape;
    uint64_t bytes;
    Fill fill;
  };

  void add_tensor(Tensor tensor);
  void start_key(std::string key, GgufType type);
  std::string header() const;

  std::string metadata_;
  std::set<std::string> keys_;
  std::set<std::string> tensor_names_;
  std::vector<Tensor> tensors_;
};

}  // namespace lola

#include "convert/quantize_file.h"

#include <algorithm>
#include <map>
#include <string_view>

#include "base/error.h"
#include "base/text.h"
#include "base/thread_pool.h"
#include "convert/encode_rows.h"
#include "gguf/gguf_writer.h"

namespace lola {
namespace {

constexpr int64_t kSlabBytes = int64_t{8} << 20;  // of encoded rows, between two writes
constexpr uint32_t kQuantizationVersion = 2;      // of the block layouts, as llama.cpp counts them

// What the new file says for itself. It is whole, with the alignment that needs no key.
constexpr std::string_view kOwnKeys[] = {
    "general.alignment", "general.file_type", "general.quantization_version",
    "split.no",          "split.count",       "split.tensors.count"};

void put_u32(GgufWriter& writer, const char* key, uint32_t value) {
  writer.put_value(key, {GgufType::kU32, GgufType::kU32, 1,
                         reinterpret_cast<const uint8_t*>(&value), sizeof(value)});
}

void copy_keys(const GgufFile& source, uint32_t file_type, GgufWriter& writer) {
  for (const std::string& key : source.keys()) {
    const bool own = std::find(std::begin(kOwnKeys), std::end(kOwnKeys), key) != std::end(kOwnKeys);
    if (!own) writer.put_value(key, *source.find(key));
  }
  put_u32(writer, "general.quantization_version", kQuantizationVersion);
  put_u32(writer, "general.file_type", file_type);
}

class Encoder {
 public:
  Encoder(int threads, const std::function<void(uint64_t)>& progress)
      : pool_(threads), progress_(progress), rows_(static_cast<size_t>(threads)) {}

  void copy(const GgufTensor& tensor, const GgufWriter::Sink& sink) {
    sink(tensor.data, static_cast<size_t>(tensor.bytes));
    report(tensor.bytes);
  }

  void encode(const GgufTensor& tensor, const QuantFormat& format,
              std::span<const float> importance, const GgufWriter::Sink& sink) {
    const int64_t cols = tensor.shape.back();
    const int64_t from_bytes = row_bytes(*tensor.format, cols);
    const int64_t to_bytes = row_bytes(format, cols);
    const int64_t rows = static_cast<int64_t>(tensor.bytes) / from_bytes;
    const int64_t slab_rows = std::max<int64_t>(1, kSlabBytes / to_bytes);
    for (int64_t first = 0; first < rows; first += slab_rows) {
      const int64_t count = std::min(slab_rows, rows - first);
      slab_.resize(static_cast<size_t>(count * to_bytes));
      pool_.parallel_for(count, [&](int64_t i, int thread) {
        std::vector<float>& row = rows_[static_cast<size_t>(thread)];
        row.resize(static_cast<size_t>(cols));
        tensor.format->decode(tensor.data + (first + i) * from_bytes,
                              cols / tensor.format->block_size, row.data());
        encode_row(format, tensor.name, row, importance, slab_.data() + i * to_bytes);
      });
      sink(slab_.data(), slab_.size());
      report(static_cast<uint64_t>(count * from_bytes));
    }
  }

 private:
  void report(uint64_t bytes) {
    done_ += bytes;
    if (progress_) progress_(done_);
  }

  ThreadPool pool_;
  const std::function<void(uint64_t)>& progress_;
  std::vector<std::vector<float>> rows_;  // one for each thread
  std::vector<uint8_t> slab_;
  uint64_t done_ = 0;
};

}  // namespace

void quantize_file(const GgufFile& source, const std::string& path,
                   std::span<const TensorPlan> plan, const QuantizeOptions& options) {
  std::map<std::string_view, const TensorPlan*> plan_of;
  for (const TensorPlan& item : plan) {
    if (source.find_tensor(item.name) == nullptr) {
      throw UsageError(message(source.path(), ": tensor ", quote(item.name),
                               " is planned, but not in the file"));
    }
    plan_of[item.name] = &item;
  }
  GgufWriter writer;
  copy_keys(source, options.file_type, writer);
  Encoder encoder(options.threads, options.progress);
  for (const GgufTensor& tensor : source.tensors()) {
    const auto found = plan_of.find(tensor.name);
    const QuantFormat* format =
        found == plan_of.end() ? tensor.format : &quant_format(found->second->type);
    if (format == tensor.format) {
      writer.put_tensor(tensor.name, format->type, tensor.shape,
                        [&](const auto& sink) { encoder.copy(tensor, sink); });
      continue;
    }
    const std::vector<float>& importance = found->second->importance;
    check_encodes(*format, tensor.name, tensor.shape.back());
    check_importance(importance, tensor.name, tensor.shape.back());
    writer.put_tensor(tensor.name, format->type, tensor.shape,
                      [&encoder, &tensor, format, &importance](const auto& sink) {
                        encoder.encode(tensor, *format, importance, sink);
                      });
  }
  writer.write(path);
}

}  // namespace lola

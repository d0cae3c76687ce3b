// The bytes of a sampler: a magic number, then little-endian 64-bit words.
#include <bit>
#include <limits>
#include <utility>

#include "base/error.h"
#include "sampling/sampler.h"

namespace lola {
namespace {

constexpr uint64_t kMagic = 0x315241534C4F4CFFu;  // changes with the layout

class Writer {
 public:
  void put(uint64_t word) {
    for (int byte = 0; byte < 8; ++byte) bytes_.push_back(static_cast<uint8_t>(word >> (8 * byte)));
  }
  void put(int64_t value) { put(static_cast<uint64_t>(value)); }
  void put(double value) { put(std::bit_cast<uint64_t>(value)); }
  void put_size(size_t size) { put(static_cast<uint64_t>(size)); }

  std::vector<uint8_t> take() { return std::move(bytes_); }

 private:
  std::vector<uint8_t> bytes_;
};

class Reader {
 public:
  explicit Reader(std::span<const uint8_t> bytes) : bytes_(bytes) {}

  uint64_t word() {
    if (bytes_.size() < 8)
      throw FormatError("sampler state: found an early end, wanted more bytes");
    uint64_t word = 0;
    for (int byte = 0; byte < 8; ++byte) word |= static_cast<uint64_t>(bytes_[byte]) << (8 * byte);
    bytes_ = bytes_.subspan(8);
    return word;
  }
  int64_t integer() { return static_cast<int64_t>(word()); }
  double number() { return std::bit_cast<double>(word()); }

  int32_t token() {
    const uint64_t id = word();
    if (id > static_cast<uint64_t>(std::numeric_limits<int32_t>::max())) {
      throw FormatError(message("sampler state: found token ", id, ", wanted a 31-bit id"));
    }
    return static_cast<int32_t>(id);
  }

  // A count of entries that are still to come, `words` words each.
  uint64_t count(uint64_t words) {
    const uint64_t count = word();
    if (count > bytes_.size() / 8 / words) {
      throw FormatError(
          message("sampler state: found ", count, " entries in ", bytes_.size(), " bytes"));
    }
    return count;
  }

  void end() const {
    if (!bytes_.empty()) {
      throw FormatError(
          message("sampler state: found ", bytes_.size(), " bytes after its end, wanted none"));
    }
  }

 private:
  std::span<const uint8_t> bytes_;
};

SamplerConfig read_config(Reader& in) {
  SamplerConfig config;
  config.temperature = in.number();
  config.top_k = in.integer();
  config.top_p = in.number();
  config.min_p = in.number();
  config.repetition_penalty = in.number();
  config.frequency_penalty = in.number();
  config.presence_penalty = in.number();
  config.penalty_window = in.integer();
  config.seed = in.word();
  const uint64_t biases = in.count(2);
  for (uint64_t i = 0; i < biases; ++i) {
    const int32_t id = in.token();
    config.logit_bias.emplace_back(id, in.number());
  }
  return config;
}

void write_config(Writer& out, const SamplerConfig& config) {
  out.put(config.temperature);
  out.put(config.top_k);
  out.put(config.top_p);
  out.put(config.min_p);
  out.put(config.repetition_penalty);
  out.put(config.frequency_penalty);
  out.put(config.presence_penalty);
  out.put(config.penalty_window);
  out.put(config.seed);
  out.put_size(config.logit_bias.size());
  for (const auto& [id, bias] : config.logit_bias) {
    out.put(static_cast<int64_t>(id));
    out.put(bias);
  }
}

Sampler configured(SamplerConfig config) {
  try {
    return Sampler(std::move(config));
  } catch (const UsageError& error) {
    throw FormatError(message("sampler state: ", error.what()));
  }
}

}  // namespace

std::vector<uint8_t> Sampler::save() const {
  Writer out;
  out.put(kMagic);
  write_config(out, config_);
  out.put(draws_);
  out.put_size(recent_.order().size());
  for (const int32_t token : recent_.order()) out.put(static_cast<int64_t>(token));
  // Counts of a bounded window follow from its tokens.
  const bool unbounded = recent_.order().empty();
  out.put_size(unbounded ? recent_.counts().size() : 0);
  if (unbounded) {
    for (const auto& [token, count] : recent_.counts()) {
      out.put(static_cast<int64_t>(token));
      out.put(count);
    }
  }
  return out.take();
}

Sampler Sampler::load(std::span<const uint8_t> bytes) {
  Reader in(bytes);
  if (in.word() != kMagic) {
    throw FormatError("sampler state: found other bytes, wanted those that a sampler saved");
  }
  Sampler sampler = configured(read_config(in));
  sampler.draws_ = in.word();
  const bool bounded = sampler.recent_.window() > 0;
  const uint64_t recent = in.count(1);
  if (recent > static_cast<uint64_t>(bounded ? sampler.recent_.window() : 0)) {
    throw FormatError(
        message("sampler state: found ", recent, " recent tokens, wanted no more than its window"));
  }
  for (uint64_t i = 0; i < recent; ++i) sampler.recent_.push(in.token());
  const uint64_t counted = in.count(2);
  if (counted > 0 && sampler.recent_.window() >= 0) {
    throw FormatError(
        "sampler state: found counts of all tokens, wanted none with a bounded window");
  }
  int64_t previous = -1;
  for (uint64_t i = 0; i < counted; ++i) {
    const int32_t token = in.token();
    const int64_t count = in.integer();
    if (token <= previous || count <= 0) {
      throw FormatError(message("sampler state: found token ", token, " with count ", count,
                                ", wanted ascending tokens with counts above 0"));
    }
    sampler.recent_.set_count(token, count);
    previous = token;
  }
  in.end();
  return sampler;
}

}  // namespace lola

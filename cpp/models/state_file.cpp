#include "models/state_file.h"

#include <cstring>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/hash.h"
#include "base/text.h"
#include "gguf/gguf_reader.h"
#include "gguf/gguf_writer.h"
#include "memory/policies/policy_table.h"
#include "models/workspace.h"

namespace lola {
namespace {

constexpr int64_t kVersion = 1;
constexpr int64_t kMaxPosition = int64_t{1} << 62;

QuantType tensor_type(MemorySection::Element element, PairType pair_type) {
  if (element == MemorySection::Element::kF32 || pair_type == PairType::kF32)
    return QuantType::kF32;
  return pair_type == PairType::kF16 ? QuantType::kF16 : QuantType::kQ8_0;
}

// One array of one layer: where it is in the session's memory, and how it is called in the file.
struct StateArray {
  std::string name;
  MemorySection::Element element;
  std::vector<int64_t> shape;
  std::vector<MemoryRange> ranges;

  int64_t bytes() const {
    int64_t sum = 0;
    for (const MemoryRange& range : ranges) sum += range.bytes;
    return sum;
  }
};

std::vector<StateArray> state_arrays(const SessionLayout& layout, int64_t position) {
  std::vector<StateArray> arrays;
  for (int64_t layer = 0; layer < layout.layers(); ++layer) {
    const bool lola = layout.is_lola(layer);
    for (const MemorySection& section : lola ? layout.lola().sections() : layout.kv().sections()) {
      StateArray array{layer_tensor(layer, section.name), section.element, section.shape,
                       layout.ranges(layer, section, position)};
      if (!lola) array.shape[1] = position;
      if (array.bytes() > 0) arrays.push_back(std::move(array));
    }
  }
  return arrays;
}

// Every number that a session is made of besides its arrays, under its key.
using Numbers = std::vector<std::pair<std::string, int64_t>>;

Numbers numbers_of(const SessionConfig& config, int64_t position) {
  return {{"state.position", position},
          {"state.context_length", config.context_length},
          {"state.window_size", config.lola.window_size},
          {"state.chunk_size", config.lola.chunk_size},
          {"state.sparse_size", config.lola.sparse_size},
          {"state.seed", static_cast<int64_t>(config.lola.seed)},
          {"state.affine", config.lola.affine ? 1 : 0}};
}

using Names = std::vector<std::pair<std::string, std::string>>;

Names names_of(const SessionConfig& config, const Model& model) {
  return {{"state.fingerprint", model.fingerprint()},
          {"state.policy", config.lola.policy->name},
          {"state.mixing", name_of(config.lola.mixing)},
          {"state.sparse_scope", name_of(config.lola.scope)},
          {"state.pair_type", name_of(config.lola.pair_type)}};
}

Hasher hash_header(const Numbers& numbers, const Names& names, std::span<const uint8_t> extra) {
  Hasher hasher;
  for (const auto& [key, value] : numbers) hasher.add(static_cast<uint64_t>(value));
  for (const auto& [key, value] : names) hasher.add(std::string_view(value));
  hasher.add(extra.data(), extra.size());
  return hasher;
}

SessionConfig read_config(const GgufFile& file) {
  SessionConfig config;
  config.context_length = file.get_int("state.context_length", 1, kMaxPosition);
  config.lola.window_size = file.get_int("state.window_size", 1, kMaxPosition);
  config.lola.chunk_size = file.get_int("state.chunk_size", 1, kMaxPosition);
  config.lola.sparse_size = file.get_int("state.sparse_size", 0, kMaxPosition);
  config.lola.seed = static_cast<uint64_t>(file.get_int("state.seed", INT64_MIN, INT64_MAX));
  config.lola.affine = file.get_int("state.affine", 0, 1) == 1;
  config.lola.policy = &find_policy(file.get_string("state.policy"));
  config.lola.mixing = find_mixing(file.get_string("state.mixing"));
  config.lola.scope = find_scope(file.get_string("state.sparse_scope"));
  config.lola.pair_type = find_pair_type(file.get_string("state.pair_type"));
  return config;
}

void check_owner(const GgufFile& file, const Model& model) {
  const std::string type = file.find_string("general.type").value_or("");
  if (type != "state") {
    throw FormatError(
        message(file.path(), ": general.type: found ", quote(type), ", wanted 'state'"));
  }
  file.get_int("state.version", kVersion, kVersion);
  const std::string found = file.get_string("state.fingerprint");
  if (found != model.fingerprint()) {
    throw FormatError(message(file.path(), ": state.fingerprint: found ", quote(found), ", wanted ",
                              model.fingerprint(),
                              ": the state was saved with another model or adapter"));
  }
}

// The bytes of an array in the file, checked to be as many as the session needs.
std::span<const uint8_t> array_bytes(const GgufFile& file, const StateArray& array,
                                     PairType pair_type) {
  const uint8_t* data = nullptr;
  uint64_t bytes = 0;
  if (array.element == MemorySection::Element::kI64) {
    const GgufValue* value = file.find(array.name);
    if (value != nullptr && value->type == GgufType::kArray &&
        value->element_type == GgufType::kI64) {
      data = value->data;
      bytes = value->bytes;
    }
  } else {
    const GgufTensor& tensor = checked_tensor(file, array.name, array.shape);
    if (tensor.format->type == tensor_type(array.element, pair_type)) {
      data = tensor.data;
      bytes = tensor.bytes;
    }
  }
  if (data == nullptr || bytes != static_cast<uint64_t>(array.bytes())) {
    throw FormatError(message(file.path(), ": array '", array.name, "': wanted ", array.bytes(),
                              " bytes of the session's own type"));
  }
  return {data, bytes};
}

int64_t read_position(const GgufFile& file, const SessionLayout& layout,
                      const SessionConfig& config) {
  return file.get_int("state.position", 0, layout.has_kv() ? config.context_length : kMaxPosition);
}

// The session of the file's configuration. The arrays are checked before it takes memory, so that a
// file cannot ask for more than it brings.
std::unique_ptr<Session> empty_session(const GgufFile& file, std::shared_ptr<const Model> model) {
  try {
    const SessionConfig config = read_config(file);
    const SessionLayout layout(*model, config);
    for (const StateArray& array : state_arrays(layout, read_position(file, layout, config))) {
      array_bytes(file, array, config.lola.pair_type);
    }
    return std::make_unique<Session>(std::move(model), config);
  } catch (const UsageError& error) {
    throw FormatError(message(file.path(), ": ", error.what()));
  }
}

}  // namespace

void StateFile::save(const Session& session, const std::string& path,
                     std::span<const uint8_t> extra) {
  const auto lock = session.use();
  const Model& model = *session.model_;
  const auto workspaces = model.borrow_workspaces();
  GgufWriter writer;
  writer.put_string("general.type", "state");
  writer.put_string("general.architecture", model.hyperparameters().architecture->name);
  writer.put_int("state.version", kVersion);
  const Numbers numbers = numbers_of(session.config_, session.position_);
  const Names names = names_of(session.config_, model);
  for (const auto& [key, value] : numbers) writer.put_int(key, value);
  for (const auto& [key, value] : names) writer.put_string(key, value);
  writer.put_bytes("state.extra", extra);

  Hasher hasher = hash_header(numbers, names, extra);
  const std::vector<StateArray> arrays = state_arrays(session.layout_, session.position_);
  const std::optional<HostImage> copied =
      session.spilled() ? std::nullopt
                        : std::optional(session.memory_.image(session.position_, *workspaces));
  const HostImage& image = copied ? *copied : session.memory_.host();
  std::vector<std::vector<uint8_t>> host(arrays.size());
  for (size_t i = 0; i < arrays.size(); ++i) {
    const StateArray& array = arrays[i];
    host[i].reserve(static_cast<size_t>(array.bytes()));
    for (const MemoryRange& range : array.ranges) {
      host[i].insert(host[i].end(), image.at(range), image.at(range) + range.bytes);
    }
    hasher.add(host[i].data(), host[i].size());
    if (array.element == MemorySection::Element::kI64) {
      const auto* values = reinterpret_cast<const int64_t*>(host[i].data());
      writer.put_int_array(array.name, {values, host[i].size() / sizeof(int64_t)});
    } else {
      const QuantType type = tensor_type(array.element, session.config_.lola.pair_type);
      writer.put_tensor(array.name, type, array.shape, host[i].data(), host[i].size());
    }
  }
  const auto logits = session.logits();
  if (!logits.empty()) {
    const int64_t shape[] = {static_cast<int64_t>(logits.size())};
    writer.put_tensor("logits", QuantType::kF32, shape, logits.data(), logits.size_bytes());
  }
  hasher.add(logits.data(), logits.size_bytes());
  writer.put_string("state.checksum", hasher.hex());
  writer.write(path);
}

StateFile::Loaded StateFile::load(std::shared_ptr<const Model> model, const std::string& path) {
  const auto file = GgufFile::open(path);
  check_owner(*file, *model);
  Loaded loaded;
  loaded.session = empty_session(*file, model);
  Session& session = *loaded.session;
  session.position_ = read_position(*file, session.layout_, session.config_);
  const GgufValue* extra = file->find("state.extra");
  if (extra == nullptr || extra->type != GgufType::kArray || extra->element_type != GgufType::kU8) {
    throw FormatError(message(path, ": state.extra: wanted an array of u8"));
  }
  loaded.extra.assign(extra->data, extra->data + extra->bytes);

  Hasher hasher = hash_header(numbers_of(session.config_, session.position_),
                              names_of(session.config_, *model), loaded.extra);
  HostImage image(session.layout_, session.position_);
  for (const StateArray& array : state_arrays(session.layout_, session.position_)) {
    const auto bytes = array_bytes(*file, array, session.config_.lola.pair_type);
    hasher.add(bytes.data(), bytes.size());
    const uint8_t* next = bytes.data();
    for (const MemoryRange& range : array.ranges) {
      std::memcpy(image.at(range), next, static_cast<size_t>(range.bytes));
      next += range.bytes;
    }
  }
  const auto workspaces = model->borrow_workspaces();
  session.memory_.load(image, *workspaces);
  if (file->find_tensor("logits") != nullptr) {
    session.set_logits(read_floats(*file, "logits", {model->hyperparameters().vocabulary}),
                       workspaces->back().executor());
  }
  hasher.add(session.logits().data(), session.logits().size_bytes());
  if (hasher.hex() != file->get_string("state.checksum")) {
    throw FormatError(message(path, ": state.checksum does not match: the file is damaged"));
  }
  return loaded;
}

}  // namespace lola

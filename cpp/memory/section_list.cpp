#include "memory/section_list.h"

#include <utility>

#include "base/error.h"

namespace lola {
namespace {

constexpr int64_t kAlignment = 64;  // a cache line, and the widest vector
constexpr int64_t kMaxBytes = int64_t{1} << 56;

int64_t row_bytes(MemorySection::Element element, PairType pair_type, int64_t size) {
  switch (element) {
    case MemorySection::Element::kPair:
      return pair_row_bytes(pair_type, size);
    case MemorySection::Element::kF32:
      return size * 4;
    case MemorySection::Element::kI64:
      break;
  }
  return size * 8;
}

}  // namespace

int64_t SectionList::add(const char* name, MemorySection::Element element,
                         std::vector<int64_t> shape) {
  int64_t size = row_bytes(element, pair_type_, shape.back());
  for (size_t i = 0; i + 1 < shape.size(); ++i) {
    if (shape[i] > kMaxBytes / size) {
      throw UsageError(message(
          "memory '", name, "': found more than 2^56 bytes, wanted sizes that can be allocated"));
    }
    size *= shape[i];
  }
  const int64_t offset = bytes_;
  bytes_ += (size + kAlignment - 1) / kAlignment * kAlignment;
  sections_.push_back({name, element, std::move(shape), offset, size});
  return offset;
}

}  // namespace lola

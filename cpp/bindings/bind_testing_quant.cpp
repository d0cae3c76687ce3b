#include <pybind11/numpy.h>

#include <string_view>

#include "base/error.h"
#include "bindings/bindings.h"
#include "quant/quant_table.h"

namespace lola {
namespace {

namespace py = pybind11;

py::list list_formats() {
  py::list formats;
  for (const QuantFormat& format : quant_formats()) {
    py::dict row;
    row["type"] = static_cast<uint32_t>(format.type);
    row["name"] = format.name;
    row["block_size"] = format.block_size;
    row["block_bytes"] = format.block_bytes;
    row["group_size"] = format.group_size;
    row["has_min"] = format.has_min;
    formats.append(row);
  }
  return formats;
}

// How many blocks of the format the bytes are.
int64_t block_count(const QuantFormat& format, std::string_view bytes) {
  const int64_t size = static_cast<int64_t>(bytes.size());
  if (size % format.block_bytes != 0) {
    throw UsageError(message(format.name, " data: found ", size, " bytes, wanted a multiple of ",
                             format.block_bytes));
  }
  return size / format.block_bytes;
}

py::array_t<float> decode_blocks(uint32_t type, const py::bytes& data) {
  const QuantFormat& format = quant_format(QuantType{type});
  const std::string_view bytes = data;
  const int64_t count = block_count(format, bytes);
  py::array_t<float> out(count * format.block_size);
  format.decode(reinterpret_cast<const uint8_t*>(bytes.data()), count, out.mutable_data());
  return out;
}

py::tuple unpack(uint32_t type, const py::bytes& data) {
  const QuantFormat& format = quant_format(QuantType{type});
  if (!format.unpack) throw UsageError(message(format.name, " has no integer form"));
  const std::string_view bytes = data;
  const int64_t count = block_count(format, bytes);
  const int64_t weights = count * format.block_size;
  py::array_t<int8_t> q(weights);
  py::array_t<float> scale(weights / format.group_size);
  py::array_t<float> min(format.has_min ? scale.size() : 0);
  format.unpack(reinterpret_cast<const uint8_t*>(bytes.data()), count, q.mutable_data(),
                scale.mutable_data(), format.has_min ? min.mutable_data() : nullptr);
  return py::make_tuple(q, scale, format.has_min ? py::object(min) : py::none());
}

}  // namespace

void bind_testing_quant(py::module_& testing) {
  testing.def("quant_formats", list_formats);
  testing.def("decode", decode_blocks, py::arg("type"), py::arg("data"));
  testing.def("unpack", unpack, py::arg("type"), py::arg("data"));
}

}  // namespace lola

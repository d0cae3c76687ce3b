#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/text.h"
#include "bindings/bindings.h"
#include "gguf/gguf_reader.h"
#include "gguf/gguf_writer.h"

namespace py = pybind11;

namespace lola {
namespace {

// UTF-8 on Windows, the file system's bytes elsewhere: what the core takes.
std::string core_path(const std::filesystem::path& path) {
  const std::u8string text = path.u8string();
  return std::string(text.begin(), text.end());
}

py::str path_to_python(const GgufFile& file) {
  return py::reinterpret_steal<py::str>(PyUnicode_DecodeFSDefaultAndSize(
      file.path().data(), static_cast<py::ssize_t>(file.path().size())));
}

py::str decode(std::string_view text) {
  return py::reinterpret_steal<py::str>(
      PyUnicode_DecodeUTF8(text.data(), static_cast<py::ssize_t>(text.size()), "replace"));
}

const char* numpy_type(GgufType type) {
  switch (type) {
    case GgufType::kU8:
      return "u1";
    case GgufType::kI8:
      return "i1";
    case GgufType::kU16:
      return "<u2";
    case GgufType::kI16:
      return "<i2";
    case GgufType::kU32:
      return "<u4";
    case GgufType::kI32:
      return "<i4";
    case GgufType::kU64:
      return "<u8";
    case GgufType::kI64:
      return "<i8";
    case GgufType::kF32:
      return "<f4";
    case GgufType::kF64:
      return "<f8";
    case GgufType::kBool:
      return "?";
    default:
      throw UsageError("numpy_type: found strings or arrays, wanted numbers or bools");
  }
}

py::object array_to_python(const GgufValue& array) {
  if (array.element_type == GgufType::kString) {
    py::list strings;
    visit_strings(
        array, [&](std::string_view text) { strings.append(py::bytes(text.data(), text.size())); });
    return strings;
  }
  return py::array(py::dtype(numpy_type(array.element_type)),
                   {static_cast<py::ssize_t>(array.count)}, array.data);
}

py::object to_python(const GgufValue& value) {
  switch (value.type) {
    case GgufType::kArray:
      return array_to_python(value);
    case GgufType::kString:
      return decode({reinterpret_cast<const char*>(value.data), static_cast<size_t>(value.bytes)});
    case GgufType::kBool:
      return py::bool_(*value.data != 0);
    case GgufType::kF32:
    case GgufType::kF64:
      return py::float_(load_float(value.type, value.data));
    default:
      return visit_integer(value.type, value.data,
                           [](auto number) -> py::object { return py::int_(number); });
  }
}

// pybind11 has no holder of const objects; no method that is bound changes the file.
std::shared_ptr<GgufFile> to_holder(std::shared_ptr<const GgufFile> file) {
  return std::const_pointer_cast<GgufFile>(std::move(file));
}

std::shared_ptr<GgufFile> open_gguf(const std::filesystem::path& path) {
  const py::gil_scoped_release release;
  return to_holder(GgufFile::open(core_path(path)));
}

std::shared_ptr<GgufFile> parse_gguf(const py::bytes& data, std::string name) {
  const std::string_view view = data;
  const py::gil_scoped_release release;
  return to_holder(GgufFile::parse({reinterpret_cast<const uint8_t*>(view.data()), view.size()},
                                   std::move(name)));
}

py::object get(const GgufFile& file, const std::string& key, py::object fallback) {
  const GgufValue* value = file.find(key);
  return value == nullptr ? fallback : to_python(*value);
}

// The numbers GGUF gives the types: what a copy needs to be of the same type.
std::pair<uint32_t, uint32_t> value_type(const GgufFile& file, const std::string& key) {
  const GgufValue* value = file.find(key);
  if (value == nullptr) throw UsageError(message("key ", quoted(key), " is not in the file"));
  return {static_cast<uint32_t>(value->type), static_cast<uint32_t>(value->element_type)};
}

py::list tensors(const GgufFile& file) {
  py::list rows;
  for (const GgufTensor& tensor : file.tensors()) {
    rows.append(py::make_tuple(decode(tensor.name), tensor.format->name,
                               py::tuple(py::cast(tensor.shape)), tensor.bytes));
  }
  return rows;
}

py::array_t<uint8_t> tensor_data(const GgufFile& file, const std::string& name) {
  const GgufTensor& tensor = file.tensor(name);
  py::array_t<uint8_t> out(static_cast<py::ssize_t>(tensor.bytes));
  uint8_t* data = out.mutable_data();
  const py::gil_scoped_release release;
  std::memcpy(data, tensor.data, static_cast<size_t>(tensor.bytes));
  return out;
}

std::optional<py::bytes> find_bytes(const GgufFile& file, const std::string& key) {
  const auto text = file.find_string(key);
  return text ? std::optional<py::bytes>(py::bytes(*text)) : std::nullopt;
}

std::optional<std::vector<py::bytes>> find_bytes_array(const GgufFile& file,
                                                       const std::string& key) {
  const auto strings = file.find_string_array(key);
  if (!strings) return std::nullopt;
  std::vector<py::bytes> out;
  out.reserve(strings->size());
  for (const std::string_view text : *strings) out.emplace_back(text.data(), text.size());
  return out;
}

void bind_reader(py::module_& module) {
  py::class_<GgufFile, std::shared_ptr<GgufFile>>(
      module, "GgufFile", "A GGUF file, mapped into memory. Any part of a split file opens all.")
      .def(py::init(&open_gguf), py::arg("path"))
      .def_property_readonly("path", &path_to_python)
      .def_property_readonly("file_bytes", &GgufFile::file_bytes)
      .def("keys", &GgufFile::keys)
      .def("get", &get, py::arg("key"), py::arg("default") = py::none(),
           "The value of a key; strings decoded with errors='replace', arrays of strings as list "
           "of bytes, arrays of numbers as numpy arrays.")
      .def("value_type", &value_type, py::arg("key"),
           "GGUF's numbers of the value's type and of an array's element type.")
      .def("find_int", &GgufFile::find_int, py::arg("key"), py::arg("min"), py::arg("max"))
      .def("find_float", &GgufFile::find_float, py::arg("key"))
      .def("find_bool", &GgufFile::find_bool, py::arg("key"))
      .def("find_string", &find_bytes, py::arg("key"))
      .def("find_int_array", &GgufFile::find_int_array, py::arg("key"), py::arg("min"),
           py::arg("max"))
      .def("find_float_array", &GgufFile::find_float_array, py::arg("key"))
      .def("find_string_array", &find_bytes_array, py::arg("key"))
      .def("tensors", &tensors, "List of (name, type name, shape slowest first, bytes).")
      .def("tensor_data", &tensor_data, py::arg("name"), "The tensor's bytes, as uint8 array.");
  module.def("parse_gguf", &parse_gguf, py::arg("data"), py::arg("name"));
}

void bind_writer(py::module_& module) {
  py::class_<GgufWriter>(module, "GgufWriter", "Writes GGUF v3 files, whole or not at all.")
      .def(py::init<>())
      .def("put_int", &GgufWriter::put_int, py::arg("key"), py::arg("value"))
      .def("put_uint", &GgufWriter::put_uint, py::arg("key"), py::arg("value"))
      .def("put_float", &GgufWriter::put_float, py::arg("key"), py::arg("value"))
      .def("put_bool", &GgufWriter::put_bool, py::arg("key"), py::arg("value"))
      .def("put_string", &GgufWriter::put_string, py::arg("key"), py::arg("value"))
      .def(
          "put_int_array",
          [](GgufWriter& writer, std::string key, const std::vector<int64_t>& values) {
            writer.put_int_array(std::move(key), values);
          },
          py::arg("key"), py::arg("values"))
      .def(
          "put_bytes",
          [](GgufWriter& writer, std::string key, const py::bytes& values) {
            const std::string_view view = values;
            writer.put_bytes(std::move(key),
                             {reinterpret_cast<const uint8_t*>(view.data()), view.size()});
          },
          py::arg("key"), py::arg("values"))
      .def(
          "put_tensor",
          [](GgufWriter& writer, std::string name, const std::string& type,
             const std::vector<int64_t>& shape, const py::bytes& data) {
            const std::string_view view = data;
            writer.put_tensor(std::move(name), quant_format(type).type, shape, view.data(),
                              view.size());
          },
          py::keep_alive<1, 5>(), py::arg("name"), py::arg("type"), py::arg("shape"),
          py::arg("data"), "shape is slowest dimension first.")
      .def(
          "write",
          [](const GgufWriter& writer, const std::filesystem::path& path) {
            const py::gil_scoped_release release;
            writer.write(core_path(path));
          },
          py::arg("path"));
}

}  // namespace

void bind_gguf(py::module_& module) {
  bind_reader(module);
  bind_writer(module);
}

}  // namespace lola

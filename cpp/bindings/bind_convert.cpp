#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/cpu_count.h"
#include "base/error.h"
#include "base/text.h"
#include "base/thread_pool.h"
#include "bindings/bindings.h"
#include "convert/encode_rows.h"
#include "convert/quantize_file.h"

namespace py = pybind11;

namespace lola {
namespace {

using FloatArray = py::array_t<float, py::array::c_style | py::array::forcecast>;

std::span<const float> to_span(const std::optional<FloatArray>& values) {
  if (!values) return {};
  return {values->data(), static_cast<size_t>(values->size())};
}

int thread_count(int threads) { return threads == 0 ? default_thread_count() : threads; }

py::array_t<uint8_t> encode(const FloatArray& values, const std::string& type,
                            const std::string& name, const std::optional<FloatArray>& importance,
                            int threads) {
  if (values.ndim() < 1) throw UsageError("tensor " + quote(name) + ": wanted rows of weights");
  const QuantFormat& format = quant_format(type);
  const int64_t cols = values.shape(values.ndim() - 1);
  check_encodes(format, name, cols);
  check_importance(to_span(importance), name, cols);
  const int64_t bytes = row_bytes(format, cols);
  std::vector<py::ssize_t> shape(values.shape(), values.shape() + values.ndim());
  shape.back() = static_cast<py::ssize_t>(bytes);
  py::array_t<uint8_t> out(shape);
  const float* from = values.data();
  uint8_t* to = out.mutable_data();
  const int64_t rows = cols == 0 ? 0 : values.size() / cols;
  const py::gil_scoped_release release;
  ThreadPool pool(thread_count(threads));
  pool.parallel_for(rows, [&](int64_t row, int) {
    encode_row(format, name, {from + row * cols, static_cast<size_t>(cols)}, to_span(importance),
               to + row * bytes);
  });
  return out;
}

using PlanRow = std::tuple<std::string, std::string, std::optional<FloatArray>>;

void quantize(const GgufFile& source, const std::string& path, const std::vector<PlanRow>& rows,
              uint32_t file_type, int threads, const py::object& progress) {
  std::vector<TensorPlan> plan;
  for (const auto& [name, type, importance] : rows) {
    const std::span<const float> values = to_span(importance);
    plan.push_back({name, quant_format(type).type, {values.begin(), values.end()}});
  }
  const auto report = [&progress](uint64_t done) {
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (!progress.is_none()) progress(done);
  };
  const py::gil_scoped_release release;
  quantize_file(source, path, plan, {file_type, thread_count(threads), report});
}

}  // namespace

void bind_convert(py::module_& module) {
  module.def("encode", &encode, py::arg("values"), py::arg("type"), py::arg("name"),
             py::arg("importance") = py::none(), py::arg("threads") = 0,
             "float32 [..., columns] as the bytes [..., bytes of a row] of a format.");
  module.def("quantize_file", &quantize, py::arg("source"), py::arg("path"), py::arg("plan"),
             py::arg("file_type"), py::arg("threads") = 0, py::arg("progress") = py::none(),
             "Writes `source` with the tensors of the plan, (name, format, importance), encoded "
             "anew.");
}

}  // namespace lola

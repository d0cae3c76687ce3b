#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "base/error.h"
#include "bindings/bindings.h"
#include "kernels/matmul.h"

namespace lola {
namespace {

namespace py = pybind11;

// type, data, rows, bias [rows] or None, out [tokens, rows or more], accumulate
using Job = std::tuple<uint32_t, py::array_t<uint8_t>, int64_t, std::optional<py::array_t<float>>,
                       py::array_t<float>, bool>;

int64_t row_stride(const py::array_t<float>& array) {
  if (array.ndim() == 2 && array.size() == 0) return array.shape(1);
  if (array.ndim() != 2 || array.strides(1) != sizeof(float)) {
    throw UsageError("array: wanted two dimensions, the last one without gaps");
  }
  return array.strides(0) / static_cast<int64_t>(sizeof(float));
}

WeightMatrix make_weight(const Job& job, int64_t cols) {
  WeightMatrix weight{&quant_format(QuantType{std::get<0>(job)}), std::get<1>(job).data(),
                      std::get<2>(job), cols};
  const int64_t bytes = weight.rows * weight.row_bytes();
  if (std::get<1>(job).nbytes() != bytes || cols % weight.format->block_size != 0) {
    throw UsageError(message("weight data: found ", std::get<1>(job).nbytes(), " bytes, wanted ",
                             bytes, " for whole blocks"));
  }
  return weight;
}

// The weight in panels.
class Panels {
 public:
  explicit Panels(const WeightMatrix& rows) : matrix_(rows) {
    memory_.resize(static_cast<size_t>(panel_bytes(rows)) + kLineBytes);
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    uint8_t* out = memory_.data() + (kLineBytes - address % kLineBytes) % kLineBytes;
    for (int64_t i = 0; i * kPanelRows < rows.rows; ++i) write_panel(rows, i, out);
    matrix_.data = out;
    matrix_.panels = true;
  }

  const WeightMatrix& matrix() const { return matrix_; }

 private:
  WeightMatrix matrix_;
  std::vector<uint8_t> memory_;
};

// A pool and its scratch memory, kept from call to call as the engine keeps them.
class Matmul {
 public:
  Matmul(const std::string& isa, int threads)
      : kernels_(kernels_by_name(isa.c_str())), pool_(threads) {}

  void multiply(const py::array_t<float>& x, std::vector<Job> jobs) {
    const int64_t tokens = x.shape(0);
    const int64_t x_stride = row_stride(x);
    std::vector<Panels> weights;
    weights.reserve(jobs.size());
    for (const Job& job : jobs) weights.emplace_back(make_weight(job, x.shape(1)));
    std::vector<MatmulJob> products;
    for (size_t i = 0; i < jobs.size(); ++i) {
      auto& [type, data, rows, bias, out, accumulate] = jobs[i];
      const int64_t out_stride = row_stride(out);
      if (out.shape(0) != tokens || out.shape(1) < rows || (bias && bias->size() != rows)) {
        throw UsageError("out or bias: the shape does not fit the weight");
      }
      products.push_back({&weights[i].matrix(), bias ? bias->data() : nullptr, out.mutable_data(),
                          out_stride, accumulate});
    }
    const float* input = x.data();
    py::gil_scoped_release release;
    matmul(kernels_, pool_, scratch_, input, x_stride, tokens, products);
  }

 private:
  const Kernels& kernels_;
  ThreadPool pool_;
  MatmulScratch scratch_;
};

py::array_t<float> decode_weight_row(uint32_t type, const py::array_t<uint8_t>& data, int64_t rows,
                                     int64_t cols, int64_t row, bool panels) {
  const WeightMatrix weight{&quant_format(QuantType{type}), data.data(), rows, cols};
  if (row < 0 || row >= rows || data.nbytes() != rows * weight.row_bytes()) {
    throw UsageError("row or data: outside the weight");
  }
  py::array_t<float> out(cols);
  if (panels) {
    decode_row(Panels(weight).matrix(), row, out.mutable_data());
  } else {
    decode_row(weight, row, out.mutable_data());
  }
  return out;
}

}  // namespace

void bind_testing_matmul(py::module_& testing) {
  py::class_<Matmul>(testing, "Matmul")
      .def(py::init<const std::string&, int>(), py::arg("isa"), py::arg("threads"))
      .def("multiply", &Matmul::multiply, py::arg("x"), py::arg("jobs"));
  testing.def("decode_weight_row", decode_weight_row, py::arg("type"), py::arg("data"),
              py::arg("rows"), py::arg("cols"), py::arg("row"), py::arg("panels"));
}

}  // namespace lola
